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
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steelyard.report.claims import COLORS, GREYS, MARKERS, Look, Rows, table_line
from steelyard.report.plots import LIGHT, _style, frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Mapping[str, Any]

PANEL = (4.6, 3.3)  # inches
LEGEND = 0.2  # of them for each name below a panel
WIDEST = 3  # panels side by side
TITLE = 44  # characters in a line of a panel's title


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
            text += [table_line(sheet["columns"]), table_line(["---"] * len(sheet["columns"]))]
            text += [table_line([shown(cell) for cell in line]) for line in sheet["rows"]]
            text += ["", sheet["note"]] if sheet.get("note") else []
        text += ["", f"Setting: {row['setting']}. Cost: {row['cost_s'] / 3600:.1f} core hours."]
    return "\n".join(text) + "\n"


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
        for axes, panel in zip(grid, panels, strict=False):
            draw(axes, panel)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        out = io.BytesIO()
        figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()


def draw(axes: Axes, panel: Panel) -> None:
    """One panel: lines with their spread, the legend below."""
    looks = _looks(panel["lines"])
    for line in panel["lines"]:
        look = looks[line["name"]]
        x, y = _gaps(line["x"]), _gaps(line["y"])
        axes.plot(
            x, y, color=look.color, marker=look.marker, ls=look.dash, ms=3.8, lw=1.3,
            label=line["name"],
        )  # fmt: skip
        if line.get("low"):
            low, high = _gaps(line["low"]), _gaps(line["high"])
            axes.fill_between(x, low, high, color=look.color, alpha=0.14, lw=0)
    if panel.get("log_x"):
        axes.set_xscale("log")
    if panel.get("log_y"):
        axes.set_yscale("log")
    frame(axes, LIGHT)
    title = textwrap.fill(panel["title"], TITLE)
    axes.set_title(title, loc="left", fontsize=10.5, color=LIGHT["ink"])
    axes.set_xlabel(panel["x"], loc="right", color=LIGHT["muted"])
    axes.set_ylabel(panel["y"], color=LIGHT["muted"])
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.17), ncols=2, frameon=False, fontsize=8.5,
        borderaxespad=0, columnspacing=1.2,
    )  # fmt: skip


def _legend(panel: Panel) -> list[str]:
    return list(dict.fromkeys(line["name"] for line in panel["lines"]))


def _looks(lines: Sequence[Mapping[str, Any]]) -> dict[str, Look]:
    """Methods in colours with solid lines, all others in grey with dashes or dots."""
    looks: dict[str, Look] = {}
    methods = [one for one in lines if one.get("role", "method") == "method"]
    others = [one for one in lines if one not in methods]
    for at, one in enumerate(methods):
        looks[one["name"]] = Look(color=COLORS[at % 8], marker=MARKERS[at % 8], dash="-")
    for at, one in enumerate(others):
        reference = one["role"] == "reference"
        looks[one["name"]] = Look(
            color=GREYS[at % len(GREYS)],
            marker="" if reference else MARKERS[at % 8],
            dash=(":", "-.")[at % 2] if reference else "--",
        )
    return looks


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
