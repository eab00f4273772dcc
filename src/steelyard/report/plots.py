"""Draw the panels with matplotlib: each as an SVG string for the page, all as one PNG.

The SVG is drawn once in colours that name roles, which are then replaced by CSS variables of the
page, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from steelyard.report.curves import Line, Panel, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIGHT = {  # as in style.css; here for the PNG
    "ink": "#1d2125",
    "muted": "#5b636c",
    "line": "#dcd8ce",
    "private": "#0b6868",
    "plain": "#9c440d",
    "brass": "#84610f",
}
MARKERS = {role: f"#0a0b{at:02x}" for at, role in enumerate(LIGHT, start=1)}
SIZE = (4.15, 2.75)  # inches; on the page the drawing is scaled to the column
DASHES = {"private": "-", "plain": (0, (5, 2))}  # apart in black and white, too


def svg(panel: Panel) -> str:
    """One panel as an <svg> element to be put into HTML: no namespace, no style sheet, no script.

    Guarantees: every colour is `var(--role)`; ids start with the panel's key; the same panel gives
    the same text.
    """
    return drawn_svg(panel.key, partial(_draw, panel=panel))


def drawn_svg(
    key: str,
    draw: Callable[[Axes, dict[str, str]], None],
    *,
    size: tuple[float, float] = SIZE,
) -> str:
    """As `svg`, of whatever `draw(axes, colours by role)` draws; key: what its ids start with.
    size: width and height in inches at the text's size; the page scales all to its column."""
    from matplotlib.figure import Figure

    with _style(key):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(), MARKERS)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _for_page(out.getvalue(), key)


def png(panels: Sequence[Panel]) -> bytes:
    """All panels side by side on white paper, with titles; a blank strip if there are none."""
    return drawn_sheet(
        [
            (panel.title[0].upper() + panel.title[1:], partial(_draw, panel=panel))
            for panel in panels
        ]
    )


def drawn_sheet(
    charts: Sequence[tuple[str, Callable[[Axes, dict[str, str]], None]]], *, columns: int = 0
) -> bytes:
    """(title, draw) of several charts, side by side (0) or `columns` to a row, on white paper."""
    from matplotlib.figure import Figure

    with _style("png"):
        columns = min(columns or len(charts), len(charts)) or 1
        rows = max(1, -(-len(charts) // columns))
        figure = Figure(figsize=(SIZE[0] * columns, (SIZE[1] + 0.35) * rows), dpi=160)
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
        places = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (title, draw) in zip(places, charts, strict=False):
            draw(axes, LIGHT)
            axes.set_title(title, loc="left", color=LIGHT["ink"], fontsize=11, weight="bold")
        for axes in figure.axes[len(charts) :]:
            axes.set_axis_off()
        out = io.BytesIO()
        figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()


def drawn_png(
    draw: Callable[[Axes, dict[str, str]], None], *, title: str = "", height: float = 1.3
) -> bytes:
    """One chart on white paper, larger than on the page; height in units of SIZE[1]."""
    from matplotlib.figure import Figure

    with _style("png"):
        size = (1.6 * SIZE[0], height * SIZE[1])
        figure = Figure(figsize=size, dpi=160, layout="constrained")
        axes = figure.subplots()
        draw(axes, LIGHT)
        if title:
            axes.set_title(title, loc="left", color=LIGHT["ink"], fontsize=11, weight="bold")
        out = io.BytesIO()
        figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()


def frame(axes: Axes, colours: Mapping[str, str]) -> None:
    """What all charts share: faint horizontal lines, no ticks, a line at the bottom alone."""
    axes.grid(axis="y", color=colours["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=colours["muted"], pad=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_edgecolor(colours["muted"])
        spine.set_linewidth(0.8)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """matplotlib's own defaults whatever the user's are, text as text, reproducible ids."""
    import matplotlib.style

    ours = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 10.5}
    with matplotlib.style.context(["default", ours]):
        yield


def _draw(axes: Axes, colors: dict[str, str], panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    last = max(line.points[-1][0] for line in panel.lines)
    axes.set_xlim(0, last or 1.0)
    axes.set_ylim(panel.low, panel.high)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=last > 5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x:,.4g}" if x < 1e4 else f"{x:,.0f}")
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}{panel.unit}"))
    axes.set_xlabel(panel.clock, loc="right", color=colors["muted"], labelpad=1)
    frame(axes, colors)
    axes.tick_params(color=colors["line"])
    axes.tick_params(axis="x", length=3)
    if panel.mark is not None:
        value, name = panel.mark
        axes.axhline(value, color=colors["brass"], linewidth=1.1, linestyle=(0, (2, 2)))
        _text(axes, f"{name} {value:.3g}", (0, value), 5, colors["brass"], "left")
    for line, (anchor, rise) in zip(panel.lines, _places(panel, last), strict=True):
        color, end = colors[line.role], line.ends[1]
        drawn = axes.plot(
            *zip(*line.points, strict=True), color=color, lw=1.9, ls=DASHES[line.role]
        )
        if panel.key == "epsilon":
            drawn[0].set_drawstyle("steps-pre")  # between two logged steps the later bound holds
        axes.plot(*end, marker="o", markersize=4.5, color=color, clip_on=False, zorder=5)
        side = "right" if _at_the_end(line, last) else "left"
        _text(axes, f"{line.label} {panel.shown(end[1])}", anchor, rise, color, side)


def _places(panel: Panel, last: float) -> list[tuple[Point, float]]:
    """Where the label of each line stands: a point, and points above (below: negative) it."""
    span = panel.high - panel.low

    def clear(line: Line, above: bool) -> Point:
        """The line's end, shifted up (down) past what of the line a label there would cover."""
        x, y = line.ends[1]
        if not _at_the_end(line, last):
            return x, y
        covered = [v for t, v in line.points if t >= x - 0.35 * last and math.isfinite(v)]
        return x, min(max(covered), y + 0.1 * span) if above else max(min(covered), y - 0.1 * span)

    if panel.mark is not None:
        return [(clear(line, above=False), -8.0) for line in panel.lines]  # under the budget
    if len(panel.lines) == 1:
        return [(clear(panel.lines[0], above=True), 7.0)]
    upper = max((0, 1), key=lambda at: panel.lines[at].ends[1][1])
    high, low = panel.lines[upper], panel.lines[1 - upper]
    (x0, y0), (x1, y1) = high.ends[1], low.ends[1]
    if (y1 - panel.low) / span > 0.115:
        places = [(clear(high, above=True), 7.0), (clear(low, above=False), -8.0)]
    elif (y0 - y1) / span > 0.25 or abs(x0 - x1) > 0.3 * last:
        # a label under the lower line would hit the axis
        places = [(clear(high, above=True), 7.0), (clear(low, above=True), 7.0)]
    else:
        places = [(clear(high, above=True), 20.0), (clear(high, above=True), 7.0)]
    return places if upper == 0 else places[::-1]


def _at_the_end(line: Line, last: float) -> bool:
    """False for a run that stopped early: there is room for its label behind its end."""
    return line.ends[1][0] > 0.7 * last


def _text(axes: Axes, text: str, at: Point, rise: float, color: str, side: str) -> None:
    """A direct label `rise` points above (below, if negative) a point of the chart."""
    axes.annotate(
        text,
        at,
        xytext=(2 if side == "left" else 0, rise),
        textcoords="offset points",
        ha=side,
        va="bottom" if rise > 0 else "top",
        color=color,
        weight="bold",
        annotation_clip=False,
    )


def _for_page(text: str, key: str) -> str:
    """What matplotlib wrote, as part of an HTML page and in the page's own font and colours."""
    head, body = text[text.index("<svg") :].strip().split(">", 1)
    head = re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", head)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would style the whole page
    text = f"{head}>{body}"
    text = re.sub(r"font-family:[^;\"]*;?\s*", "", text)
    text = re.sub(r"(font: [^;\"]*?px)[^;\"]*", r"\1 inherit", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", text)
    for role, marker in MARKERS.items():
        text = text.replace(marker, f"var(--{role})")
    return text
