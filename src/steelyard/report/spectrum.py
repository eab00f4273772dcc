"""The power spectrum over steps of a released gradient, before and after a low-pass filter.

The idea of Figure 2 of DOPPLER, Zhang et al. 2024, arXiv 2408.13460: the gradient is slow, the
noise is white, so what stands above the noise stands at the left.

    S(f)     = Welch's estimate of the power density of a coordinate over steps, mean of coordinates
    floor    = noise_std^2 at every frequency f
    filtered = |H(f)|^2 floor,   H(f) = sum_k b_k e^(-2 pi i f k) / sum_k a_k e^(-2 pi i f k) / H(0)

Densities are two-sided: white noise of standard deviation s has density s^2, and the integral over
(-0.5, 0.5) cycles per step is the mean square.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steelyard.report.plots import drawn_png, drawn_svg, frame
from steelyard.runs.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

SEGMENT = 128  # steps: the longest segment of Welch's method
Spectrum = dict[str, NDArray[np.float64]]
STYLES: dict[str, tuple[str, str, Any, float]] = {  # label, role of the colour, dash, width
    "released": ("released gradient", "plain", "-", 1.9),
    "filtered": ("after the filter", "private", "-", 1.9),
    "noise": ("noise", "plain", (0, (2, 2)), 1.1),
    "noise_filtered": ("noise after the filter", "private", (0, (2, 2)), 1.1),
}


def spectrum(
    released: ArrayLike,
    filtered: ArrayLike | None = None,
    *,
    noise_std: ArrayLike,
    b: Sequence[float] | None = None,
    a: Sequence[float] = (1.0,),
    segment: int | None = None,
) -> Spectrum:
    """Power densities by frequency.

    released, filtered: [T, k], `Recorder.values` before and behind the filter. noise_std: a number
    or [T], `Recorder.noise_std`. b, a: the filter's coefficients, for the noise behind it. segment:
    steps of a segment; default T / 4, between 16 and 128.

    Returns arrays [F]: "frequency" in cycles per step from 0 to 0.5, "released", "noise", and where
    there is something to make them of, "filtered" and "noise_filtered".

    Guarantees: no mean is subtracted, so a constant gradient shows at frequency 0.
    Raises ValueError for fewer than 16 steps, values that are not finite, and arrays that do not
    fit together.
    """
    from scipy.signal import welch

    streams = {"released": np.asarray(released, float)}
    if filtered is not None:
        streams["filtered"] = np.asarray(filtered, float)
    shape = streams["released"].shape
    for name, values in streams.items():
        if values.ndim != 2 or values.shape != shape or len(values) < 16 or not values.shape[1]:
            raise ValueError(
                f"{name} must be [steps, coordinates] with 16 steps or more, the same for all; "
                f"found {list(values.shape)} and {list(shape)}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are not finite: the run has diverged")
    length = min(len(streams["released"]), segment or min(SEGMENT, max(16, shape[0] // 4)))
    as_it_is: Any = False
    found: Spectrum = {"frequency": np.arange(length // 2 + 1) / length}
    for name, values in streams.items():
        _, density = welch(  # [length, k]
            values, nperseg=length, detrend=as_it_is, return_onesided=False, axis=0
        )
        found[name] = density[: length // 2 + 1].mean(1)
    floor = float(np.mean(np.square(np.asarray(noise_std, float))))
    found["noise"] = np.full(length // 2 + 1, floor)
    if b is not None:
        z = np.exp(-2j * np.pi * found["frequency"])
        response = np.polynomial.polynomial.polyval(z, b) / np.polynomial.polynomial.polyval(z, a)
        found["noise_filtered"] = floor * np.abs(response * sum(a) / sum(b)) ** 2
    return found


def write_spectrum(path: str | Path, found: Spectrum, *, title: str = "") -> Path:
    """Draw what `spectrum` returned as a PNG, with its numbers beside it as CSV; the PNG's path.

    Raises ValueError, one line, where a file cannot be written.
    """
    path = Path(path)
    write_atomically(path.with_suffix(".csv"), csv_text(found))
    return write_atomically(path, png(found, title=title))


def csv_text(found: Spectrum) -> str:
    """One line per frequency under a line of names; `read_csv` is its inverse."""
    lines = [",".join(found), *(",".join(f"{x:.6g}" for x in row) for row in _rows(found))]
    return "\n".join(lines) + "\n"


def read_csv(path: str | Path) -> Spectrum:
    """What `csv_text` wrote. Raises ValueError, one line, for anything else."""
    names, *lines = Path(path).read_text(encoding="utf-8").splitlines() or [""]
    columns = names.split(",")
    try:
        rows = np.array([[float(x) for x in line.split(",")] for line in lines])
        if columns[0] != "frequency" or rows.shape != (len(lines), len(columns)) or not lines:
            raise ValueError("other columns")
    except ValueError as error:
        raise ValueError(f"'{path}' is not the spectrum of a run ({error}): train again") from None
    return dict(zip(columns, rows.T, strict=True))


def svg(found: Spectrum) -> str:
    """For the page: see `steelyard.report.plots.svg`."""
    return drawn_svg("spectrum", lambda axes, colours: _draw(axes, found, colours))


def png(found: Spectrum, *, title: str = "") -> bytes:
    """The densities on a logarithmic axis against the frequency, on white paper."""
    return drawn_png(lambda axes, colours: _draw(axes, found, colours), title=title)


def _draw(axes: Axes, found: Spectrum, colours: Mapping[str, str]) -> None:
    for name, (label, role, dash, width) in STYLES.items():
        if name in found and found[name].any():  # a run without noise has no line for it
            color = colours[role]
            axes.semilogy(
                found["frequency"], found[name], color=color, ls=dash, lw=width, label=label
            )
    axes.set_xlim(0, 0.5)
    axes.set_xlabel("cycles per step", loc="right", color=colours["muted"], labelpad=1)
    axes.set_ylabel("power density", color=colours["muted"])
    frame(axes, colours)
    axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9.5)


def _rows(found: Spectrum) -> NDArray[np.float64]:
    return np.stack(list(found.values()), 1)  # [F, columns]
