"""Claims on a terminal: tables of arms, verdicts, and sheets of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]


def show(rows: Mapping[str, Row], console: Console) -> None:
    """Rows of arms as one table; any others as verdicts, with their sheets behind."""
    if all(row.get("table") for row in rows.values()):
        arms(rows, console)
        return
    verdicts(rows, console)
    for row in rows.values():
        sheets(row, console)


def arms(rows: Mapping[str, Row], console: Console) -> None:
    from rich.table import Table

    from steelyard.report.claims import budgets, head, lines, note

    columns = budgets(rows)
    table = Table(title="test accuracy in %, mean ± sd over seeds", title_justify="left")
    table.add_column("arm", overflow="fold")
    for column in columns:
        table.add_column(head(column), no_wrap=True)
    last, notes = None, []
    for data, arm, cells in lines(rows):
        if data != last:
            table.add_section()
            table.add_row(f"[bold]{data}[/bold]")
            last = data
        shown = {at: f"{entry['mean']:.2f} ± {entry['sd']:.2f}" for at, entry in cells.items()}
        said = note(cells)
        if said:
            notes.append(f"* {arm} ({data}): {said}")
        table.add_row(_escaped(arm + "*" * bool(said)), *(shown.get(one, "") for one in columns))
    console.print(table)
    for line in notes:
        console.print(line, markup=False, highlight=False)
    for key, row in rows.items():
        console.print(
            f"[bold]{key}[/bold]: {_escaped(row['claim'])}: [bold]{row['verdict']}[/bold]"
        )
        deciding = [one for one in row.get("comparisons", ()) if one["decides"]]
        for one in deciding:
            where = f"{one['data']}, {head(one['epsilon'])}"
            text = f"  {where}: {one['method']} - {one['baseline']}: {one['difference']:+.2f} ± "
            text += f"{one['error']:.2f}, p {one['p']:.3f}: {one['finding']}"
            console.print(text, markup=False, highlight=False)


def verdicts(rows: Mapping[str, Row], console: Console) -> None:
    from rich.table import Table

    table = Table(title="claims", show_lines=True)
    for column in ("claim", "published", "here", "verdict"):
        table.add_column(column, overflow="fold")
    for key, row in rows.items():
        numbers = "\n".join(f"{what}: {value}" for what, value in row["numbers"].items())
        title = f"{_escaped(row['claim'])}\n[dim]{_escaped(row['paper'])}; {key}[/dim]"
        table.add_row(title, _escaped(str(row["published"])), _escaped(numbers), row["verdict"])
    console.print(table)


def sheets(row: Row, console: Console) -> None:
    """The tables of a claim of any shape."""
    from rich.table import Table

    from steelyard.report.sheets import shown

    for sheet in row.get("sheets", ()):
        table = Table(title=_escaped(sheet["title"]), title_justify="left")
        for column in sheet["columns"]:
            table.add_column(_escaped(column), overflow="fold")
        for line in sheet["rows"]:
            table.add_row(*(_escaped(shown(cell)) for cell in line))
        console.print(table)
        if sheet.get("note"):
            console.print(sheet["note"], markup=False, highlight=False)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
