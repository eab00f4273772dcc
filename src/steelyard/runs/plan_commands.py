"""`steelyard plan lr`: the verb and what it shows. As `cli`, it loads no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steelyard import terminal

if TYPE_CHECKING:
    from steelyard.runs.plan_lr import LrPlan


def register(plan_app: typer.Typer) -> None:
    """Make `lr` a command of `plan_app`."""
    plan_app.command("lr")(lr_command)


def lr_command(
    runs: Annotated[list[Path], typer.Argument(help="run folders, .csv or TensorBoard files")],
    steps: Annotated[int, typer.Option(help="optimizer steps of the planned run")],
    schedule: Annotated[
        str | None,
        typer.Option(help="linear, cosine, wsd:0.8,...; default: that of the longest run"),
    ] = None,
    warmup: Annotated[float, typer.Option(help="share of the steps, with --schedule")] = 0.02,
    held_out: Annotated[
        list[str] | None, typer.Option(help="runs to test on, repeatable; default: the longest")
    ] = None,
    at_least: Annotated[int, typer.Option(help="leave out runs of fewer steps")] = 1,
    loss: Annotated[str, typer.Option(help="auto, train, test, or a column or tag")] = "auto",
    lr: Annotated[str, typer.Option(help="the learning rate's column or tag")] = "lr",
    target: Annotated[float | None, typer.Option(help="loss to reach: how many steps?")] = None,
    plot: Annotated[Path | None, typer.Option(help="new PNG: loss against 1/sqrt(T)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the plan as JSON")] = False,
) -> None:
    """The best peak learning rate and the loss of a longer run, from finished runs.

    First how well the longest of these runs is predicted from the others.
    """
    from steelyard.plans.schedule_shapes import parse_shape
    from steelyard.runs.plan_lr import plan_lr

    if plot is not None and plot.exists():
        raise ValueError(f"{plot} exists already: give a new file to --plot")
    plan = plan_lr(
        runs,
        steps,
        schedule=None if schedule is None else parse_shape(schedule, warmup),
        held_out=held_out or (),
        at_least=at_least,
        loss=loss,
        lr=lr,
        target=target,
    )
    if plot is not None:
        from steelyard.report.laws import write_ends

        write_ends(plot, plan)
    if as_json:
        typer.echo(json.dumps(as_record(plan), indent=1))
        return
    _show(plan)


def as_record(plan: LrPlan) -> dict[str, Any]:
    """The plan as JSON has it; numbers that are not finite are None."""

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "held_out": [
            {**dataclasses.asdict(h), "predicted": {k: plain(v) for k, v in h.predicted.items()}}
            for h in plan.held_out
        ],
        "protocol": plan.protocol,
        "largest_error": {name: plain(plan.error(name)) for name in plan.forecasts},
        "regret": {name: plain(plan.regret(name)) for name in plan.forecasts},
        "method": plan.method,
        "steps": plan.steps,
        "schedule": plan.schedule,
        **dataclasses.asdict(plan.best),
        "target": plan.target,
        "required_steps": plan.required,
        "notes": list(plan.notes),
    }


def _show(plan: LrPlan) -> None:
    from rich.markup import escape
    from rich.table import Table

    names = list(plan.forecasts)
    title = f"held out: {plan.protocol}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("steps", "peak", "loss", *names):
        table.add_column(name, justify="right", no_wrap=True)
    for held in plan.held_out:
        cells = (
            "-" if math.isnan(held.error(m)) else f"{held.predicted[m]:.4g} ({held.error(m):+.1%})"
            for m in names
        )
        numbers = (f"{held.steps}", f"{held.peak:.3g}", f"{held.measured:.4g}")
        table.add_row(escape(held.name), *numbers, *cells)
    console = terminal.console(stderr=False)
    console.print(table)
    for text in sentences(plan):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def sentences(plan: LrPlan) -> list[str]:
    """The plan in words: first how far off it was, then what it says, then its doubts."""
    said = [f"Largest error on what was held out: {_missed(plan, plan.method)}, {plan.method}."]
    for other in plan.forecasts:
        if other != plan.method:
            said[0] = f"{said[0][:-1]} (taken); {_missed(plan, other)}, {other}."
    if not math.isnan(worse := plan.regret()):
        said.append(
            f"Of the held-out runs, the one it thought best ended {worse:.1%} above the best one."
        )
    best = plan.best
    said.append(
        f"At {plan.steps:,} steps with schedule {plan.schedule}: best peak rate {best.rate:.3g}"
        f"{_between(best.rate_interval)}, predicted loss {best.loss:.4g}"
        f"{_between(best.loss_interval)}."
    )
    if plan.required is not None:
        said.append(f"A loss of {plan.target:g} takes about {plan.required:,} steps.")
    return [*said, *(f"note: {note}" for note in plan.notes)]


def _missed(plan: LrPlan, method: str) -> str:
    error = plan.error(method)
    return "unknown" if math.isnan(error) else f"{error:.1%}"


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3g} to {interval[1]:.3g})"
