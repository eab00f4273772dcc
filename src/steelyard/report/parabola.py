"""A fitted parabola with the losses it was fitted to, along one direction.

points    (x, y) of the probes on the axis of the direction
curve     c0 - b x + a x^2 / 2
lines     x = 1, the optimizer's own step; x = b / a, the minimiser, where a > 0
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steelyard.report.plots import drawn_png, drawn_svg, frame
from steelyard.runs.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    from steelyard.steps.quadratic import Quadratic

GRID = 201  # points of the drawn curve
FAR = 1.5  # a minimiser farther out than this many times the probes is not drawn


def write_parabola(
    path: str | Path, fitted: Quadratic, *, direction: int = 0, loss: int = 0, title: str = ""
) -> Path:
    """Draw one direction and one loss of a fit as a PNG, with its points beside it as CSV; the
    PNG's path.

    Raises ValueError, one line, for a fit that is not finite, for a direction or loss that it does
    not have, and where a file cannot be written.
    """
    path = Path(path)
    picture = png(fitted, direction=direction, loss=loss, title=title)
    write_atomically(path.with_suffix(".csv"), csv_text(fitted, direction=direction, loss=loss))
    return write_atomically(path, picture)


def csv_text(fitted: Quadratic, *, direction: int = 0, loss: int = 0) -> str:
    """A line for each probe on the direction's axis, by x: x, loss there, loss of the parabola."""
    x, y = _along(fitted, direction, loss)
    rows = zip(x, y, _curve(fitted, direction, loss, x), strict=True)
    return (
        "\n".join(["x,loss,fitted", *(",".join(f"{v:.10g}" for v in row) for row in rows)]) + "\n"
    )


def svg(fitted: Quadratic, *, direction: int = 0, loss: int = 0, key: str = "parabola") -> str:
    """For the page: see `steelyard.report.plots.svg`; key: what its ids start with."""
    _along(fitted, direction, loss)  # refuses before anything is drawn
    return drawn_svg(key, lambda axes, c: draw(axes, fitted, c, direction=direction, loss=loss))


def png(fitted: Quadratic, *, direction: int = 0, loss: int = 0, title: str = "") -> bytes:
    """Loss against multiples of the step, on white paper."""
    _along(fitted, direction, loss)
    return drawn_png(
        lambda axes, colours: draw(axes, fitted, colours, direction=direction, loss=loss),
        title=title,
    )


def draw(
    axes: Axes,
    fitted: Quadratic,
    colours: Mapping[str, str],
    *,
    direction: int = 0,
    loss: int = 0,
) -> None:
    """The parabola and its points on axes of `steelyard.report.plots`."""
    x, y = _along(fitted, direction, loss)
    a, b = float(fitted.a[loss, direction]), float(fitted.b[loss, direction])
    best = b / a if a > 0 else math.nan
    ends = [x.min(), x.max(), *([best] if abs(best) <= FAR * np.abs(x).max() else [])]
    margin = 0.08 * (max(ends) - min(ends))
    grid = np.linspace(min(ends) - margin, max(ends) + margin, GRID)
    curve = _curve(fitted, direction, loss, grid)
    label = f"parabola, R² = {fitted.r2[loss]:.4f}" if fitted.dof > 0 else "parabola"
    axes.plot(grid, curve, color=colours["private"], lw=1.9, label=label)
    noise = float(fitted.sigma[loss])
    axes.errorbar(
        x,
        y,
        yerr=noise or None,
        fmt="o",
        color=colours["plain"],
        ms=5,
        elinewidth=1,
        label="losses",
    )
    axes.axvline(1, color=colours["muted"], lw=1, ls=(0, (2, 2)), label="the step, x = 1")
    if grid[0] <= best <= grid[-1]:
        axes.axvline(best, color=colours["brass"], lw=1.2, ls="-", label=f"minimum, x = {best:.3g}")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_xlabel("multiples of the step", loc="right", color=colours["muted"], labelpad=1)
    axes.set_ylabel("loss", color=colours["muted"])
    frame(axes, colours)
    axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9.5)


def _along(
    fitted: Quadratic, direction: int, loss: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the probes that move along this direction alone, by x."""
    J, K = fitted.b.shape
    if not (0 <= direction < K and 0 <= loss < J):
        raise ValueError(
            f"the fit has {K} directions and {J} losses, counted from 0; found direction "
            f"{direction}, loss {loss}"
        )
    if not np.isfinite(fitted.b[loss]).all():
        raise ValueError("the fit is not finite (a probe loss was nan or inf): nothing to draw")
    X = fitted.points.x
    here = ~np.delete(X, direction, 1).any(1)
    order = np.argsort(X[here, direction], kind="stable")
    return X[here, direction][order], fitted.points.y[here, loss][order]


def _curve(
    fitted: Quadratic, direction: int, loss: int, x: NDArray[np.float64]
) -> NDArray[np.float64]:
    X = np.zeros((len(x), fitted.b.shape[1]))
    X[:, direction] = x
    return fitted.predict(X)[:, loss]
