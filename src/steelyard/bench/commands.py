"""`steelyard bench ...`: measurements of the library itself. Verbs only, as in `cli`."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steelyard import terminal

if TYPE_CHECKING:
    from steelyard.bench.lower_bound import Bound
    from steelyard.bench.records import AuditConfig, AuditResult

bench_app = typer.Typer(no_args_is_help=True, help="Does it keep its promise? Measure it.")


@bench_app.callback()
def bench() -> None:
    """Does it keep its promise? Measure it."""


@bench_app.command("audit")
def audit_command(
    epsilon: Annotated[float, typer.Option(help="the claim")] = 3.0,
    delta: Annotated[float, typer.Option(help="of the claim, well below 1/n")] = 1e-5,
    canaries: Annotated[int | None, typer.Option(help="default 4000; 1000 by input")] = None,
    seeds: Annotated[int, typer.Option(help="trainings, each with a seed of its own")] = 5,
    mode: Annotated[str, typer.Option(help="gradient (sees every step) or input")] = "gradient",
    model: Annotated[str, typer.Option(help="cnn, mlp, vit, gpt, or as for train")] = "cnn",
    data: Annotated[str, typer.Option(help="as for train")] = "fashion-mnist-small",
    label: Annotated[str | None, typer.Option(help="label column of a table")] = None,
    ordinary: Annotated[int | None, typer.Option(help="how many other samples")] = None,
    steps: Annotated[int, typer.Option(help="optimizer steps")] = 120,
    batch: Annotated[int, typer.Option(help="expected batch, canaries included")] = 512,
    lr: Annotated[float, typer.Option(help="learning rate of SGD, momentum 0.9")] = 0.25,
    clip: Annotated[str, typer.Option(help="as for train")] = "auto-s",
    groups: Annotated[str, typer.Option(help="as for train")] = "all",
    accountant: Annotated[str, typer.Option(help="pld or rdp")] = "pld",
    confidence: Annotated[float, typer.Option(help="of the bound")] = 0.95,
    seed: Annotated[int, typer.Option(help="the first seed")] = 0,
    break_noise: Annotated[
        float, typer.Option(help="TEST OF THE AUDIT: add only this part of the claimed noise")
    ] = 1.0,
    out: Annotated[Path | None, typer.Option("--json", help="new file for all numbers")] = None,
) -> None:
    """Train with planted canaries; bound epsilon from below. Exit code 1: the claim is refuted."""
    given = {k: v for k, v in locals().items() if k not in ("seeds", "seed", "out")}
    from steelyard.bench.records import AuditConfig, together
    from steelyard.plans.checks import whole

    whole("seeds", seeds, least=1, fix="use 1 to 5")
    if out is not None and (out.exists() or not out.parent.is_dir()):
        raise ValueError(f"{out} exists, or its folder does not: give a new file to --json")
    configs = [AuditConfig(seed=s, **given) for s in range(seed, seed + seeds)]
    results = _run(configs)
    bound = together(results)
    refuted = bound.epsilon > results[0].claimed_epsilon
    if out is not None:
        found = {
            "together": dataclasses.asdict(bound),
            "refuted": refuted,
            "runs": [result.to_dict() for result in results],
        }
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _show(results, bound, refuted)
    if refuted:
        raise typer.Exit(1)


def _run(configs: list[AuditConfig]) -> list[AuditResult]:
    from steelyard.bench.audit import audit
    from steelyard.runs.progress import RunProgress

    results: list[AuditResult] = []
    began = time.perf_counter()
    steps = configs[0].steps
    with RunProgress(steps * len(configs), True, terminal.console(), "audit") as progress:

        def on_step(done: int) -> None:
            total = steps * len(results) + done
            progress.update(total, total * configs[0].batch / (time.perf_counter() - began))

        for config in configs:
            results.append(audit(config, on_step=on_step))
    return results


def _show(results: list[AuditResult], bound: Bound, refuted: bool) -> None:
    from rich.table import Table

    first = results[0]
    config = first.config
    sure = f"{config.confidence:.4g}"
    table = Table(
        title=f"epsilon at delta {config.delta:.2g}; bounds at confidence {sure}",
        title_justify="left",
    )
    for name in ("seed", "claimed", "at least", "right / guesses", "ceiling", "test"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        accuracy = result.test.get("accuracy")
        table.add_row(
            f"{result.config.seed}",
            f"{result.claimed_epsilon:.3f}",
            f"{result.bound.epsilon:.3f}",
            f"{result.bound.count.right} / {result.bound.count.guesses}",
            f"{result.ceiling:.2f}",
            f"loss {result.test['loss']:.2f}" if accuracy is None else f"{accuracy:.1%}",
        )
    if len(results) > 1:
        count = f"{bound.count.right} / {bound.count.guesses}"
        claimed, least = f"{first.claimed_epsilon:.3f}", f"{bound.epsilon:.3f}"
        table.add_row("all", claimed, least, count, "", "", style="bold")
    console = terminal.console(stderr=False)
    console.print(table)
    for text in _sentences(first, bound, refuted):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _sentences(first: AuditResult, bound: Bound, refuted: bool) -> list[str]:
    """What the number means, and what it does not mean."""
    config, claimed = first.config, first.claimed_epsilon
    found = (
        f"at confidence {config.confidence:.4g} this training spends epsilon {bound.epsilon:.2f} "
        f"or more at delta {config.delta:.2g}; the claim is {claimed:.2f}"
    )
    said = [f"REFUTED: {found}." if refuted else f"Not refuted: {found}."]
    if config.break_noise != 1.0:
        broken = f"only {config.break_noise:g} of the claimed noise was added (--break-noise)"
        said.insert(0, f"DELIBERATELY BROKEN, a test of the audit: {broken}.")
    right = (
        ""
        if first.expected is None
        else f"a right implementation shows about {first.expected:.2f} in one training; "
    )
    said.append(
        "A lower bound is no proof of privacy: it is what this one attack could show. Here "
        f"{right}perfect guesses would show {first.ceiling:.2f}."
    )
    if first.ceiling <= claimed:
        said.append(
            f"{config.m} canaries cannot show epsilon {claimed:.2f} in one training, however bad "
            "the leak: use more."
        )
    return said
