"""The cost of a private step, as a ratio to the plain step, side by side in one process.

    python benchmarks/step_cost.py [--quick] [--only mlp,gpt-128] [--json FILE] [--markdown FILE]

Engines take turns step by step (interleaved), so a slow moment of the machine hits all alike. A
row's ratio is the median over rounds of (private step / the same round's plain step); its spread
is the quartiles of the same ratios. Peak memory is the growth of the resident set over the model
and data, measured in a process of its own for each engine. "opacus" rows do the same work: flat
clipping, noise, SGD.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import models
from steelyard.filters.attach import attach
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

SIGMA, BOUND, RATE = 1.0, 1, 0.01


@dataclass(frozen=True)
class Workload:
    """A model, one batch, and the per-sample losses [B] of the model on it."""

    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    tokens: bool = False
    hooks: bool = True  # Opacus' per-sample gradients fit into memory and time


def image(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(*shape), torch.randint(0, 10, (shape[0],)))


def text(B: int, T: int, vocabulary: int = 8192) -> Callable[[], tuple[Tensor, Tensor]]:
    def make() -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, vocabulary, (B, T + 1))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return make


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def own(name: str, kind: Any, shape: tuple[int, ...], vocabulary: int = 0) -> nn.Module:
    task = models.Task(kind=kind, classes=10, shape=shape, vocabulary=vocabulary)
    return models.build(name, task, seed=0)


WORKLOADS = {
    "mlp": Workload(mlp, image(256, 784)),
    "cnn": Workload(lambda: own("cnn", "image", (28, 28, 1)), image(128, 1, 28, 28)),
    "vit": Workload(lambda: own("vit", "image", (32, 32, 3)), image(64, 3, 32, 32)),
    "gpt-128": Workload(
        lambda: own("gpt", "language", (128,), 8192), text(16, 128), tokens=True, hooks=False
    ),
    "gpt-512": Workload(
        lambda: own("gpt", "language", (512,), 8192), text(4, 512), tokens=True, hooks=False
    ),
}


def per_sample_loss(workload: Workload, logits: Tensor, y: Tensor) -> Tensor:  # [B]
    if workload.tokens:
        return F.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)
    return F.cross_entropy(logits, y, reduction="none")


def plain(workload: Workload) -> Callable[[], None]:
    torch.manual_seed(0)
    model, (x, y) = workload.model(), workload.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> None:
        per_sample_loss(workload, model(x), y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steelyard(groups: str, sigma: float = SIGMA) -> Callable[[Workload], Callable[[], None]]:
    def make(workload: Workload) -> Callable[[], None]:
        torch.manual_seed(0)
        model, (x, y) = workload.model(), workload.batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        rows = PerSample(model, FlatClip(BOUND), expected_batch=len(x), groups=groups, strict=True)
        attach(optimizer, rows, Gaussian(sigma))

        def step() -> None:
            rows.backward(per_sample_loss(workload, model(x), y))
            optimizer.step()
            optimizer.zero_grad()

        return step

    return make


def opacus(mode: str) -> Callable[[Workload], Callable[[], None]]:
    def make(workload: Workload) -> Callable[[], None]:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer
        from opacus.optimizers.optimizer_fast_gradient_clipping import (
            DPOptimizerFastGradientClipping,
        )
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        torch.manual_seed(0)
        model, (x, y) = workload.model(), workload.batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        options: dict[str, Any] = {
            "noise_multiplier": SIGMA,
            "max_grad_norm": BOUND,
            "expected_batch_size": len(x),
        }
        if mode == "hooks":
            wrapped = GradSampleModule(model, loss_reduction="mean")
            private = DPOptimizer(optimizer, **options)

            def step() -> None:
                per_sample_loss(workload, wrapped(x), y).mean().backward()
                private.step()
                private.zero_grad()

            return step

        wrapped = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=BOUND, use_ghost_clipping=True, loss_reduction="mean"
        )
        private = DPOptimizerFastGradientClipping(optimizer, **options)

        class Criterion(nn.Module):
            reduction = "mean"

            def forward(self, logits: Tensor, y: Tensor) -> Tensor:
                return per_sample_loss(workload, logits, y)

        criterion = DPLossFastGradientClipping(wrapped, private, Criterion(), "mean")

        def ghost() -> None:
            criterion(wrapped(x), y).backward()
            private.step()
            private.zero_grad()

        return ghost

    return make


ENGINES: dict[str, tuple[str, str, Callable[[Workload], Callable[[], None]]]] = {
    "plain": ("plain", "-", plain),
    "steelyard": ("steelyard", "all", steelyard("all")),
    "steelyard-quiet": ("steelyard without noise", "all", steelyard("all", sigma=0.0)),
    "steelyard-layer": ("steelyard", "layer", steelyard("layer")),
    "opacus-ghost": ("opacus ghost", "all", opacus("ghost")),
    "opacus-hooks": ("opacus hooks", "all", opacus("hooks")),
}


def measure(name: str, engines: list[str], rounds: int, seconds: float) -> list[dict[str, object]]:
    workload = WORKLOADS[name]
    steps = {engine: ENGINES[engine][2](workload) for engine in engines}
    for step in steps.values():
        for _ in range(4):  # the first batches also prove coverage
            step()
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    began = time.perf_counter()
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for engine, step in steps.items():
            start = time.perf_counter()
            step()
            times[engine].append(time.perf_counter() - start)
        if time.perf_counter() - began > seconds and len(times["plain"]) >= 5:
            break
    gc.enable()
    rows = []
    for engine in engines:
        ratios = [t / p for t, p in zip(times[engine], times["plain"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "workload": name,
                "engine": ENGINES[engine][0],
                "groups": ENGINES[engine][1],
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(low, 3),
                "ratio_max": round(high, 3),
                "milliseconds": round(1e3 * statistics.median(times[engine]), 2),
                "rounds": len(ratios),
                "peak_mb": peak(name, engine),
            }
        )
    return rows


def peak(name: str, engine: str) -> float:
    """Growth of the peak resident set over five steps, in a process of its own, MiB."""
    command = [sys.executable, __file__, "--child", name, engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def child(name: str, engine: str) -> None:
    warnings.simplefilter("ignore")
    step = ENGINES[engine][2](WORKLOADS[name])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    for _ in range(5):
        step()
    print(round(resident("VmHWM") - before, 1))


def resident(field: str) -> float:
    """A field of this process's memory status, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status: peak memory is measured on Linux")


def machine() -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown(rows: list[dict[str, object]]) -> str:
    columns = ("workload", "engine", "groups", "ratio", "quartiles", "ms", "peak MiB")
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    lines = [
        f"| {r['workload']} | {r['engine']} | {r['groups']} | **{r['ratio']}** | {r['ratio_min']}-"
        f"{r['ratio_max']} | {r['milliseconds']} | {r['peak_mb']} |"
        for r in rows
    ]
    about = ", ".join(f"{k} {v}" for k, v in machine().items())
    return (
        f"# Cost of a private step over the plain step\n\nMachine: {about}.\n\n{head}"
        + "\n".join(lines)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of a private step over the plain step")
    parser.add_argument("--quick", action="store_true", help="few rounds, no slow peers")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, comma-separated")
    parser.add_argument("--engines", default=",".join(ENGINES), help="engines, comma-separated")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    warnings.simplefilter("ignore")
    rounds, seconds = (8, 10.0) if args.quick else (60, 60.0)
    rows: list[dict[str, object]] = []
    for name in args.only.split(","):
        engines = args.engines.split(",")
        if args.quick or not WORKLOADS[name].hooks:
            engines = [e for e in engines if e != "opacus-hooks"]
        rows += measure(name, engines, rounds, seconds)
        for row in rows[-len(engines) :]:
            print(
                f"{row['workload']:9} {row['engine']:24} {row['groups']:6} {row['ratio']:7} "
                f"[{row['ratio_min']}, {row['ratio_max']}] {row['milliseconds']:9} ms "
                f"{row['peak_mb']:8} MiB"
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
