"""The predicted gain of nested choices of parameter groups against their share of the model.

The Pareto view of AdaPEFT, Xu and Bu, arXiv 2505.12579, section 2.1; what is drawn comes from
`steelyard.surgery.select.front` and `choose`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from steelyard.report.plots import drawn_png, drawn_svg, frame
from steelyard.runs.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes


class Chosen(Protocol):
    """Groups, their share of the model's parameters (0 to 1), the gain predicted for them."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def share(self) -> float: ...

    @property
    def gain(self) -> float: ...


def write_front(
    path: str | Path, front: Sequence[Chosen], *, chosen: Chosen | None = None, title: str = ""
) -> Path:
    """Draw the nested choices as a PNG, with their numbers beside it as CSV; the PNG's path.

    chosen: one choice to mark, on the front or below it. Raises ValueError, one line, for an empty
    front and where a file cannot be written.
    """
    path = Path(path)
    picture = png(front, chosen=chosen, title=title)
    write_atomically(path.with_suffix(".csv"), csv_text(front))
    return write_atomically(path, picture)


def csv_text(front: Sequence[Chosen]) -> str:
    """share, gain, and the group that each choice adds."""
    lines = ["share,gain,added"]
    lines += [f"{one.share:.6g},{one.gain:.6g},{one.names[-1]}" for one in front]
    return "\n".join(lines) + "\n"


def svg(front: Sequence[Chosen], *, chosen: Chosen | None = None) -> str:
    """For the page: see `steelyard.report.plots.svg`."""
    return drawn_svg("front", lambda axes, colours: _draw(axes, front, chosen, colours))


def png(front: Sequence[Chosen], *, chosen: Chosen | None = None, title: str = "") -> bytes:
    """The gain against the share of parameters trained, logarithmic, on white paper."""
    return drawn_png(lambda axes, colours: _draw(axes, front, chosen, colours), title=title)


def _draw(
    axes: Axes, front: Sequence[Chosen], chosen: Chosen | None, colours: Mapping[str, str]
) -> None:
    if not front:
        raise ValueError("the front is empty: no group had three fits that were believed")
    from matplotlib.ticker import FuncFormatter

    shares, gains = [100 * one.share for one in front], [one.gain for one in front]
    axes.semilogx(shares, gains, color=colours["private"], lw=1.9, marker="o", ms=4.5)
    for one, share, gain in zip(front, shares, gains, strict=True):
        axes.annotate(
            f"+ {one.names[-1]}", (share, gain), xytext=(-4, 6), textcoords="offset points",
            ha="right", va="bottom", color=colours["ink"], fontsize=9,
        )  # fmt: skip
    if chosen is not None:
        axes.plot(
            100 * chosen.share, chosen.gain, "o", ms=11, mfc="none", mec=colours["brass"], mew=1.6
        )
    axes.set_xlim(min(shares) / 6, max(100.0, 1.2 * max(shares)))
    axes.set_ylim(0, 1.2 * max([*gains, chosen.gain if chosen else 0.0]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}%"))
    axes.set_xlabel("parameters trained", loc="right", color=colours["muted"], labelpad=1)
    axes.set_ylabel("predicted gain per step", color=colours["muted"])
    frame(axes, colours)
