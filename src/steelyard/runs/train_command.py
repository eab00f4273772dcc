"""`steelyard train`: the verb and its options. As `cli`, it loads no torch and computes nothing."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from steelyard import terminal

_NOT_SETTINGS = {"no_privacy", "out", "resume", "baseline", "dry_run"}


def register(app: typer.Typer) -> None:
    """Make `train` a command of `app`."""
    app.command()(train)


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
    step: Annotated[
        str | None, typer.Option(help="size: fixed, gen (found), hidlr (found for each group)")
    ] = None,
    step_every: Annotated[int | None, typer.Option(help="steps from fit to fit")] = None,
    step_groups: Annotated[
        str | None, typer.Option(help="of hidlr: roles, coarse, or patterns with commas")
    ] = None,
    step_probes: Annotated[
        int | None, typer.Option(help="losses in a fit of gen: 5, or 3, which cannot be checked")
    ] = None,
    step_part: Annotated[float | None, typer.Option(help="probe batch, share of a batch")] = None,
    step_bootstrap: Annotated[
        int | None, typer.Option(help="first fits, at every step; 0: lr is nearly right")
    ] = None,
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


def _resume(folder: Path, others: list[str]) -> None:
    if others:
        found = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ValueError(f"--resume {folder} goes on with the settings of the run: drop {found}")
    from steelyard.runs import recipes

    with terminal.resumable(folder):
        report = recipes.resume(folder, note=terminal.note)
    terminal.summarise(folder, report)
