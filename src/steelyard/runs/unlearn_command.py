"""`steelyard unlearn`: the verb and what it shows. As `cli`, it loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steelyard import terminal


def register(app: typer.Typer) -> None:
    """Make `unlearn` a command of `app`."""
    app.command("unlearn")(unlearn_command)


def unlearn_command(
    model: Annotated[
        str | None, typer.Argument(help="smollm2, a folder or a hub name; default: small benchmark")
    ] = None,
    forget: Annotated[
        str | None, typer.Option(help="JSON lines with input and output, to forget")
    ] = None,
    retain: Annotated[str | None, typer.Option(help="the same, to retain")] = None,
    method: Annotated[
        str | None, typer.Option(help="ngdiff, blur, npo, simnpo, graddiff, kl, rmu, pdu, ...")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="lora or full")] = None,
    rank: Annotated[int | None, typer.Option(help="of the LoRA")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd")] = None,
    lr: Annotated[
        float | None, typer.Option(help="learning rate; default: found on the retain loss (GeN)")
    ] = None,
    lr_start: Annotated[
        float | None, typer.Option(help="where that rate begins; default: 1e-4, full: 1e-5")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over the forget set")] = None,
    batch: Annotated[int | None, typer.Option(help="rows of each set in a step")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="rows in memory at once")] = None,
    length: Annotated[int | None, typer.Option(help="most tokens of prompt and answer")] = None,
    template: Annotated[
        bool | None, typer.Option("--template", help="prompts as chat messages")
    ] = None,
    retain_weight: Annotated[float | None, typer.Option(help="of the retain loss")] = None,
    beta: Annotated[float | None, typer.Option(help="of npo, simnpo, idkdpo, altpo")] = None,
    gamma: Annotated[
        float | None, typer.Option(help="of blur: weight of the forget gradient; of negation")
    ] = None,
    stop_forget: Annotated[float | None, typer.Option(help="stop at this forget loss")] = None,
    reference: Annotated[
        str | None, typer.Option(help="stop at the forget loss of this model (retrained)")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="stop when the retain loss has grown by this share")
    ] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="steps")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="steps")] = None,
    rows: Annotated[int | None, typer.Option(help="rows of each set in an evaluation")] = None,
    seed: Annotated[int | None, typer.Option(help="of order and adapter")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1")] = None,
    out: Annotated[Path | None, typer.Option(help="new folder for the run")] = None,
    resume: Annotated[Path | None, typer.Option(help="folder of a run to go on with")] = None,
) -> None:
    """Make a language model forget some rows and keep others. Without arguments: the small
    benchmark, three methods compared."""
    given = {name: value for name, value in locals().items() if value is not None}
    out, resume = given.pop("out", None), given.pop("resume", None)
    if resume is not None:
        if given:
            flags = [n if n == "model" else f"--{n.replace('_', '-')}" for n in given]
            found = ", ".join(flags)
            raise ValueError(
                f"--resume {resume} goes on with the settings of the run: drop {found}"
            )
        from steelyard.runs.unlearn import resume as go_on

        with terminal.resumable(resume, "unlearn"):
            report = go_on(resume, note=terminal.note)
        terminal.summarise_unlearning(resume, report)
        return
    if model is None:
        from steelyard.runs.unlearn_small import compare

        folder = out or _free("small-benchmark")
        report = compare(folder, given, note=terminal.note)
        terminal.note(f"report: {report}")
        return
    missing = [f"--{name} FILE.jsonl" for name in ("forget", "retain") if name not in given]
    if missing:
        raise ValueError(f"what to forget and what to retain: give {' and '.join(missing)}")
    from steelyard.runs.unlearn import unlearn
    from steelyard.runs.unlearn_config import UnlearnConfig

    config = UnlearnConfig(**given)
    folder = out or _free(f"unlearn-{Path(config.model).name}-{config.method}")
    with terminal.resumable(folder, "unlearn"):
        report = unlearn(config, folder, note=terminal.note)
    terminal.summarise_unlearning(folder, report)


def _free(stem: str) -> Path:
    """runs/<stem>-<k> with the first free k."""
    k = 1
    while (Path("runs") / f"{stem}-{k}").exists():
        k += 1
    return Path("runs") / f"{stem}-{k}"
