"""Claims of any shape: a topic's page of tables, and its picture of panels.

A row of a claim may have

    sheets   [{"title", "columns": [...], "rows": [[text, number or None, ...], ...], "note"}]
    panels   [{"title", "x", "y", "log_x", "log_y", "lines": [{"name", "role", "x", "y", "low",
              "high"}]}]     role: method, baseline or reference; low and high: the spread

in plain values; a y of None breaks its line.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steelyard.report.axes import log_ticks
from steelyard.report.claims import COLORS, GREYS, MARKERS, Look, Rows, table_line
from steelyard.report.plots import LIGHT, _style, frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Mapping[str, Any]

PANEL = (4.6, 3.3)  # inches
LEGEND = 0.2  # of them for each name below a panel
WIDEST = 3  # panels side by side
TITLE = 44  # characters in a line of a panel's title
COLUMN = 16  # characters in a line of a table's heading
BANDS = 4  # lines: of more, bands would hide each other, so their spread is whiskers
MARKS = 6  # markers and whiskers of a line with many points
SIDE = 0.035  # of an axis: how far whiskers at the same x are moved apart, on each side
BASELINES = ((0, (5, 2)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
NUMBER = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?%| ± [\d.,]+( ?%)?)?")


def shown(value: Any) -> str:
    """A cell: text as it is, numbers with four digits, "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def markdown(rows: Rows, topic: str) -> str:
    """The page claims/<topic>.md: picture, and for each claim its verdict, numbers and sheets."""
    text = [
        f"# Claims: {topic}",
        "",
        f"Written by `steelyard claims {topic} --run`; nothing here is edited by hand.",
    ]
    if panels_of(rows):
        text += ["", f"![{topic}]({topic}.png)"]
    for name, row in rows.items():
        text += ["", f"## {name}: {row['verdict']}", "", f"{row['paper']}: {row['claim']}."]
        text += ["", f"Published: {row['published']}.", ""]
        text += [f"- {what}: {value}" for what, value in row["numbers"].items()]
        for sheet in row.get("sheets", ()):
            text += ["", f"### {sheet['title']}", ""]
            text += _table(sheet["columns"], sheet["rows"])
            text += ["", sheet["note"]] if sheet.get("note") else []
        text += ["", f"Setting: {row['setting']}. Cost: {row['cost_s'] / 3600:.1f} core hours."]
    return "\n".join(text) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Long headings broken between words, numbers to the right."""
    heads = ["<br>".join(textwrap.wrap(c, COLUMN, break_long_words=False)) for c in columns]
    lines = [[shown(cell) for cell in line] for line in rows]
    filled = [[line[at] for line in lines if line[at]] for at in range(len(columns))]
    numbers = [bool(own) and all(NUMBER.fullmatch(cell) for cell in own) for own in filled]
    rules = ["---:" if right else "---" for right in numbers]
    return [table_line(line) for line in (heads, rules, *lines)]


def panels_of(rows: Rows) -> list[Panel]:
    """All panels of a topic, each with its claim's name in the title."""
    return [
        {**panel, "title": f"{name}: {panel['title']}"}
        for name, row in rows.items()
        for panel in row.get("panels", ())
    ]


def png(rows: Rows) -> bytes:
    """The panels of all claims, three in a row, names below each. Raises ValueError for none."""
    from matplotlib.figure import Figure

    panels = panels_of(rows)
    if not panels:
        raise ValueError("nothing to draw: no row has panels; measure with --run")
    columns = min(WIDEST, len(panels))
    lines = -(-len(panels) // columns)
    names = max(len(_legend(panel)) for panel in panels)
    with _style("sheets"):
        size = (PANEL[0] * columns, (PANEL[1] + LEGEND * -(-names // 2)) * lines)
        figure = Figure(figsize=size, dpi=110)
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        looks = [one for row in rows.values() for one in _shared(row.get("panels", ()))]
        for axes, panel, look in zip(grid, panels, looks, strict=False):
            draw(axes, panel, look)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        out = io.BytesIO()
        figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()


def draw(axes: Axes, panel: Panel, looks: Mapping[str, Look] | None = None) -> None:
    """One panel: lines with their spread, the legend below. looks: of its lines, where other panels
    have them, too."""
    lines = panel["lines"]
    looks = _looks(lines) if looks is None else looks
    if panel.get("log_x"):
        axes.set_xscale("log")
    if panel.get("log_y"):
        axes.set_yscale("log")
    values = sorted({v for line in lines for v in line["x"]})
    places = _places(lines, log=bool(panel.get("log_x")))
    for at, (line, x) in enumerate(zip(lines, places, strict=True)):
        look, y = looks[line["name"]], _gaps(line["y"])
        every = _every(at, len(x))
        axes.plot(
            x, y, color=look.color, marker=look.marker, ls=look.dash, ms=3.8, label=line["name"],
            lw=1.6 if line.get("role", "method") == "method" else 1.1, markevery=every,
        )  # fmt: skip
        if not line.get("low"):
            continue
        low, high = _gaps(line["low"]), _gaps(line["high"])
        if len(lines) <= BANDS:
            axes.fill_between(x, low, high, color=look.color, alpha=0.14, lw=0)
        else:
            axes.vlines(x[every], low[every], high[every], color=look.color, lw=0.8, alpha=0.8)
    if panel.get("log_x"):
        log_ticks(axes.xaxis, values, exact=True)
    elif len(values) <= MARKS:
        axes.set_xticks(values)
    if panel.get("log_y"):
        log_ticks(axes.yaxis, axes.get_ylim())
    frame(axes, LIGHT)
    title = textwrap.fill(panel["title"], TITLE, break_on_hyphens=False)
    axes.set_title(title, loc="left", fontsize=10.5, color=LIGHT["ink"])
    axes.set_xlabel(panel["x"], loc="right", color=LIGHT["muted"])
    axes.set_ylabel(panel["y"], color=LIGHT["muted"])
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.17), ncols=2, frameon=False, fontsize=8.5,
        borderaxespad=0, columnspacing=1.2, handlelength=2.7,
    )  # fmt: skip


def _every(at: int, points: int) -> slice:
    """Which points of line `at` have a marker: all of a few, of many some, others than its
    neighbours'."""
    step = max(1, points // MARKS)
    return slice(at % step, None, step)


def _places(lines: Sequence[Mapping[str, Any]], *, log: bool) -> list[list[float]]:
    """x of each line; many lines over the same few x stand side by side, or whiskers would hide
    each other."""
    values = sorted({v for line in lines for v in line["x"]})
    if len(lines) <= BANDS or len(values) > MARKS:
        return [_gaps(line["x"]) for line in lines]
    wide = math.log10(values[-1] / values[0]) if log else values[-1] - values[0]
    shifts = [2 * SIDE * (at / (len(lines) - 1) - 0.5) * wide for at in range(len(lines))]
    return [
        [v * 10**shift if log else v + shift for v in line["x"]]
        for line, shift in zip(lines, shifts, strict=True)
    ]


def _legend(panel: Panel) -> list[str]:
    return list(dict.fromkeys(line["name"] for line in panel["lines"]))


def _shared(panels: Sequence[Panel]) -> list[dict[str, Look]]:
    """The looks of each panel of a claim: a name looks the same in all that have it."""
    names = [{line["name"] for line in panel["lines"]} for panel in panels]
    lines = [line for panel in panels for line in panel["lines"]]
    found = []
    for group in names:
        while (more := group.union(*(own for own in names if own & group))) != group:
            group = more
        found.append(_looks([line for line in lines if line["name"] in group]))
    return found


def _looks(lines: Sequence[Mapping[str, Any]]) -> dict[str, Look]:
    """A look for each name: methods in colours with solid lines, all others in grey with dashes or
    dots; where colours or dashes come again, the marker or the dash is another."""
    roles = {one["name"]: one.get("role", "method") for one in lines}
    looks: dict[str, Look] = {}
    for at, name in enumerate(n for n, role in roles.items() if role == "method"):
        looks[name] = Look(
            color=COLORS[at % 8], marker=MARKERS[(at + at // 8) % 8], dash="--" if at >= 8 else "-"
        )
    for at, name in enumerate(n for n, role in roles.items() if role != "method"):
        reference = roles[name] == "reference"
        looks[name] = Look(
            color=GREYS[at % len(GREYS)],
            marker="" if reference else MARKERS[at % 8],
            dash=(":", "-.")[at % 2] if reference else BASELINES[at % len(BASELINES)],
        )
    return looks


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
