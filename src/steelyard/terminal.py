"""What the command line shows: tables, notes, and every error in one line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from steelyard.data import Entry
    from steelyard.plans.privacy import PrivacyPlan
    from steelyard.runs.preview import Preview

# the parser's own errors, wherever this typer keeps them
_UsageError = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "UsageError")


def console(*, stderr: bool = True) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def line(text: str) -> None:
    """One line on standard error."""
    typer.echo(text, err=True)


def note(text: str) -> None:
    """A line on standard error that does not disturb a progress bar."""
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """For `warnings.showwarning`: one line, without the place in the source."""
    line(f"note: {_first_line(str(message))}")


def explain(error: Exception, arguments: Sequence[str]) -> str | None:
    """An error in one line; "" if it has shown itself; None if it is no fault of the user."""
    if isinstance(error, _UsageError):
        return _explain_usage(error, arguments)
    if isinstance(error, MemoryError) or _out_of_memory(error):
        return "there is not enough memory: lower --micro-batch (the result stays the same)"
    if isinstance(error, OSError):
        place = f"{error.filename!r}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    from steelyard.runs.ledger import BudgetExceeded

    if isinstance(error, ValueError | FloatingPointError | BudgetExceeded):
        return _first_line(str(error)) or type(error).__name__
    return None


def _explain_usage(error: Any, arguments: Sequence[str]) -> str:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return ""
    message = error.format_message().rstrip(".")
    parameter = getattr(error, "param", None)  # of a value that does not parse
    for option in parameter.opts if parameter is not None else ():
        for given, following in zip(arguments, [*arguments[1:], ""], strict=True):
            if given == option or given.startswith(f"{option}="):
                value = following if given == option else given.partition("=")[2]
                message = f"{option} {value!r} does not parse: {error.message.rstrip('.')}"
    verb = [word for word in arguments[:1] if not word.startswith("-")]
    command = error.ctx.command_path if error.ctx else " ".join(["steelyard", *verb])
    return f"{_first_line(message)}; see {command} --help"


def _out_of_memory(error: Exception) -> bool:
    allocation = "DefaultCPUAllocator" in str(error)  # the CPU's has no type of its own
    return type(error).__name__ == "OutOfMemoryError" or allocation


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@contextmanager
def resumable(folder: Path, verb: str = "train") -> Iterator[None]:
    """Ctrl-C: say what is saved and how to go on; exit code 130."""
    try:
        yield
    except KeyboardInterrupt as error:
        how = f"go on with: steelyard {verb} --resume {shlex.quote(str(folder))}"
        step = getattr(error, "step", None)
        if step is not None:
            line(f"interrupted; saved at step {step}; {how}")
        elif (folder / "config.json").exists():
            line(f"interrupted; steps since the last checkpoint are lost; {how}")
        else:
            line("interrupted before the first step; nothing was written")
        raise SystemExit(130) from None


def show_preview(preview: Preview, config: dict[str, Any]) -> None:
    """The plan of a run that was not trained."""
    table = _table("the plan (nothing was trained)", show_header=False)
    plan = preview.plan
    rows = {
        "model": f"{config['model']}: {preview.parameters:,} parameters, {preview.trainable:,} "
        "trained",
        "data": f"{config['data']}: {preview.n:,} training samples, {preview.n_test:,} test",
        "steps": f"{preview.steps:,} of expected batch {config['batch']} ({preview.engine})",
    }
    if preview.n_public:
        first = f", the first {preview.public_steps:,} steps on them alone"
        rows["public"] = f"{preview.n_public:,} samples" + (first if preview.public_steps else "")
    if preview.rates:
        rows["step size"] = preview.rates
    if config["filters"]:
        rows["filters"] = ", then ".join(config["filters"])
    if plan is None:
        rows["privacy"] = "none: nothing is protected"
    else:
        curve = ", ".join(f"{step}: {epsilon:.2f}" for step, epsilon in plan.curve(6))
        rows |= {
            "budget": f"epsilon {plan.epsilon:.4f} at delta {plan.delta:.2g} ({plan.accountant})",
            "noise": f"sigma {plan.noise_multiplier:.4f}, q {plan.sampling_probability:.5g}",
            "epsilon by step": curve,
        }
    rows["memory"] = f"about {sum(preview.memory.values()):.0f} MiB: " + ", ".join(
        f"{name} {size:.1f}" for name, size in preview.memory.items() if size
    )
    for name, value in [*rows.items(), *(("note", text) for text in preview.notes)]:
        _add(table, name, value)
    console(stderr=False).print(table)


def show_plans(plans: Sequence[PrivacyPlan]) -> None:
    """Privacy plans for one data set and batch, one a row."""
    first = plans[0]
    batch = f"expected batch {first.expected_batch:g}"
    table = _table(f"n = {first.n:,}, {batch}, {first.sampling} sampling")
    for name in ("steps", "q", "sigma", "epsilon", "delta", "accountant"):
        table.add_column(name, justify="right")
    for plan in plans:
        _add(
            table,
            f"{plan.steps}",
            f"{plan.sampling_probability:.5g}",
            f"{plan.noise_multiplier:.4f}",
            f"{plan.epsilon:.4f}",
            f"{plan.delta:.2g}",
            plan.accountant,
        )
    console(stderr=False).print(table)


def show_entries(entries: Sequence[Entry]) -> None:
    """Data sets and models, each with where it comes from."""
    table = _table("Data sets and models; `steelyard data get NAME` brings one", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("what, size, licence, where from", overflow="fold")
    table.add_column("status", max_width=10)
    for entry in entries:
        kind = "model: " if entry.what == "model" else ""
        where = "; ".join(entry.sources)
        text = f"{kind}{entry.task}\n{entry.size}\n{entry.licence}\nfrom {where}"
        _add(table, entry.name, text, entry.status)
    console(stderr=False).print(table)


def summarise(folder: Path, report: Path) -> None:
    """Results of a run and of its twin without privacy, and where the report is."""
    places = [place for place in (folder, folder / "baseline") if (place / "result.json").exists()]
    results = [json.loads((p / "result.json").read_text(encoding="utf-8")) for p in places]
    score = "perplexity" if "test_perplexity" in results[0] else "accuracy"
    table = _table("results on the test set")
    for name in ("", score, "loss", "epsilon", "delta", "steps", "seconds"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for result in results:
        value = result[f"test_{score}"]
        private = result["private"]
        _add(
            table,
            "private" if private else "not private",
            f"{value:.2%}" if score == "accuracy" else f"{value:.2f}",
            f"{result['test_loss']:.4f}",
            f"{result['epsilon']:.3f}" if private else "-",
            f"{result['delta']:.1g}" if private else "-",
            f"{result['steps']}",
            f"{result['seconds']:.1f}",
        )
    console(stderr=False).print(table)
    note(f"report: {report}")


def summarise_unlearning(folder: Path, report: Path) -> None:
    """Losses and scores before and after, and where the report and the model are."""
    result, samples = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("result", "samples")
    )
    table = _table(f"{result['method']}, {result['steps']} of {result['planned_steps']} steps")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, said in (("forget_loss", "forget loss"), ("retain_loss", "retain loss")):
        _add(table, said, f"{result['before'][name]:.3g}", f"{result['after'][name]:.3g}")
    before, after = samples["before"], samples["after"]
    if before["twelve"] is None:
        for which, what in (("forget", "still written"), ("retain", "kept")):
            for name, value in before["scores"][which].items():
                _add(
                    table, f"{which}: {what}, {name}", f"{value:.3f}",
                    f"{after['scores'][which][name]:.3f}",
                )  # fmt: skip
    else:
        _add(
            table, "aggregate of twelve", f"{before['aggregate']:.3f}", f"{after['aggregate']:.3f}"
        )
    console(stderr=False).print(table)
    note(f"model: {folder / 'model'}")
    note(f"report: {report}")


def _table(title: str, **options: Any) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", **options)


def _add(table: Table, *cells: str) -> None:
    from rich.markup import escape

    table.add_row(*(escape(cell) for cell in cells))
