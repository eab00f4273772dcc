"""Claims that were compared arm by arm: one table, and one plot of accuracy against epsilon.

An entry is a plain dict with data, arm, role, note, epsilon (None: no privacy), mean, sd, seeds, lr
and values, accuracies in %; `rows` maps a claim's name to its row, whose "table" lists entries.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steelyard.report.plots import LIGHT, _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Entry = Mapping[str, Any]
Rows = Mapping[str, Mapping[str, Any]]

# apart for the colour-blind, too (Okabe and Ito 2008, the yellow darkened); markers tell them apart
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a7a00", "#7f3c8d")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
GREYS = ("#1d2125", "#5b636c", "#8d949b")
DASHES = ("--", ":", "-.")
PANEL = (4.3, 3.1)  # inches
LEGEND = 2.9
SPREAD = 0.5  # of a step between two epsilons: arms stand side by side in it


@dataclass(frozen=True, kw_only=True)
class Look:
    """How an arm is drawn: methods in colours, what they are compared with in grey."""

    color: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]


def tabulated(rows: Rows) -> dict[str, list[Entry]]:
    """The entries of each claim that has a table."""
    return {name: list(row["table"]) for name, row in rows.items() if row.get("table")}


def budgets(rows: Rows) -> list[float | None]:
    """The epsilons of all entries, rising, no privacy last."""
    found = {entry["epsilon"] for entries in tabulated(rows).values() for entry in entries}
    private = sorted(value for value in found if value is not None)
    return [*private, *([None] if None in found else [])]


def lines(rows: Rows) -> list[tuple[str, str, dict[float | None, Entry]]]:
    """(data, arm, {epsilon: entry}), once for results that several claims share."""
    table: dict[tuple[str, str], dict[float | None, Entry]] = {}
    for claim, entries in tabulated(rows).items():
        for entry in entries:
            arm = entry["arm"]
            cell = table.setdefault((entry["data"], arm), {})
            known = cell.get(entry["epsilon"])
            if known is not None and known["values"] != entry["values"]:
                cell = table.setdefault((entry["data"], f"{arm} ({claim})"), {})
            cell[entry["epsilon"]] = entry
    order = list(dict.fromkeys(data for data, _ in table))
    placed = sorted(table.items(), key=lambda item: order.index(item[0][0]))
    return [(data, arm, cell) for (data, arm), cell in placed]


def note(cells: Mapping[float | None, Entry]) -> str:
    """What must be known about the arm of a line; "" for nothing."""
    return next((entry["note"] for entry in cells.values() if entry.get("note")), "")


def told(entry: Entry) -> str:
    """ "83.12 ± 0.21 (4)": mean, standard deviation over the seeds, learning rate."""
    return f"{entry['mean']:.2f} ± {entry['sd']:.2f} ({entry['lr']:g})"


def head(epsilon: float | None) -> str:
    return "no privacy" if epsilon is None else f"ε = {epsilon:g}"


def markdown(rows: Rows, topic: str) -> str:
    """The page claims/<topic>.md: plot, table, what each claim comes to, how it was done."""
    columns = budgets(rows)
    entries = [entry for found in tabulated(rows).values() for entry in found]
    counts = sorted({len(entry["seeds"]) for entry in entries})
    seeds = " or ".join(str(count) for count in counts)
    text = [
        f"# Claims: {topic}",
        "",
        f"Written by `steelyard claims {topic} --run`; nothing here is edited by hand. Test "
        f"accuracy in %, mean ± standard deviation over {seeds} seeds, in brackets the learning "
        "rate.",
        "",
        f"![accuracy against epsilon]({topic}.png)",
        "",
        table_line(["data", "arm", *map(head, columns)]),
        table_line(["---"] * (2 + len(columns))),
    ]
    text += [
        table_line(
            [
                data,
                arm + (f" ({note(cells)})" if note(cells) else ""),
                *(told(cells[one]) if one in cells else "" for one in columns),
            ]
        )
        for data, arm, cells in lines(rows)
    ]
    for name, row in rows.items():
        if not row.get("table"):
            continue
        text += ["", f"## {name}: {row['verdict']}", "", f"{row['paper']}: {row['claim']}."]
        text += ["", f"Published: {row['published']}.", ""]
        text += [f"- {what}: {value}" for what, value in row["numbers"].items()]
        text += ["", f"Setting: {row['setting']}. Cost: {row['cost_s'] / 3600:.1f} core hours."]
    return "\n".join(text) + "\n"


def png(rows: Rows) -> bytes:
    """One panel for each claim (a row of panels) and data set, arms with their spread over seeds.

    Raises ValueError if no row has a table.
    """
    from matplotlib.figure import Figure

    tables = tabulated(rows)
    if not tables:
        raise ValueError("nothing to draw: no row has a table; measure with --run")
    data = list(dict.fromkeys(entry["data"] for found in tables.values() for entry in found))
    with _style("claims"):
        size = (PANEL[0] * len(data) + LEGEND, PANEL[1] * len(tables))
        figure = Figure(figsize=size, dpi=110)
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.1)
        grid = figure.subplots(
            len(tables), len(data) + 1, squeeze=False,
            width_ratios=[PANEL[0]] * len(data) + [LEGEND],
        )  # fmt: skip
        for places, (name, entries) in zip(grid, tables.items(), strict=True):
            looks = _looks(entries)
            verdict = rows[name]["verdict"]
            for axes, one in zip(places, data, strict=False):
                here = [entry for entry in entries if entry["data"] == one]
                if not here:
                    axes.set_axis_off()
                    continue
                _draw(axes, here, looks)
                if axes is places[0]:
                    axes.set_ylabel("test accuracy, %", color=LIGHT["muted"])
                axes.set_title(f"{name}: {one}", loc="left", fontsize=10.5, color=LIGHT["ink"])
            _legend(places[-1], looks, f"{name}: {verdict}")
        out = io.BytesIO()
        figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()


def _looks(entries: Sequence[Entry]) -> dict[str, Look]:
    """One look for each arm: the same in all panels of a claim."""
    roles = {entry["arm"]: entry.get("role", "method") for entry in entries}
    methods = [arm for arm, role in roles.items() if role == "method"]
    others = [arm for arm, role in roles.items() if role != "method"]
    looks: dict[str, Look] = {}
    for at, arm in enumerate(others):
        color = GREYS[at % len(GREYS)]
        looks[arm] = Look(color=color, marker=MARKERS[at % 8], dash=DASHES[at % 3])
    for at, arm in enumerate(methods):
        looks[arm] = Look(color=COLORS[at % 8], marker=MARKERS[at % 8], dash="-")
    return looks


def _draw(axes: Axes, entries: Sequence[Entry], looks: Mapping[str, Look]) -> None:
    private = sorted({e["epsilon"] for e in entries if e["epsilon"] is not None})
    arms = list(dict.fromkeys(e["arm"] for e in entries if e["epsilon"] is not None))
    for entry in entries:
        if entry["epsilon"] is None:
            look = looks[entry["arm"]]
            axes.axhline(entry["mean"], color=look.color, lw=1.3, ls=look.dash, zorder=1)
            low, high = entry["mean"] - entry["sd"], entry["mean"] + entry["sd"]
            axes.axhspan(low, high, color=look.color, alpha=0.08, lw=0, zorder=0)
    for at, arm in enumerate(arms):
        shift = SPREAD * ((at + 0.5) / len(arms) - 0.5)
        found = sorted(
            (e for e in entries if e["arm"] == arm and e["epsilon"] is not None),
            key=lambda e: e["epsilon"],
        )
        look = looks[arm]
        axes.errorbar(
            [private.index(e["epsilon"]) + shift for e in found],
            [e["mean"] for e in found],
            yerr=[e["sd"] for e in found],
            color=look.color, marker=look.marker, ls=look.dash,
            ms=4.5, lw=1.3, elinewidth=1.1, capsize=2.0,
        )  # fmt: skip
    axes.set_xticks(range(len(private)), [head(one) for one in private])
    axes.set_xlim(-0.5, max(len(private) - 0.5, 0.5))
    axes.grid(axis="y", color=LIGHT["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=LIGHT["muted"])
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_edgecolor(LIGHT["muted"])


def _legend(axes: Axes, looks: Mapping[str, Look], title: str) -> None:
    from matplotlib.lines import Line2D

    axes.set_axis_off()
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, ls=look.dash, ms=5, lw=1.3, label=arm)
        for arm, look in looks.items()
    ]
    axes.legend(
        handles=handles, loc="center left", bbox_to_anchor=(0, 0.5), frameon=False, fontsize=9,
        title=title, title_fontsize=10, alignment="left",
    )  # fmt: skip


def table_line(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
