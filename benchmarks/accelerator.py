"""What only a GPU can show: exact sums, noise and weighings there, and what weighing costs.

    python benchmarks/accelerator.py [--seconds S] [--markdown FILE] [--device cuda]

| check | how |
|---|---|
| clipped sums | the cases of exactness.md in float32 there, against float64 samples on the CPU |
| noise | mean, standard deviation and 4th moment of 4 million numbers; two draws differ |
| weighing | Gram matrix of NGDiff's two rows and its gradient, against the same on the CPU |
| cost | the arms of task_cost.md take turns; memory: torch's peak above GradDiff's, in gradients |
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from exactness import ALL, parts
from lib.case import Case, right
from lib.engines import trainable
from lib.workloads import WORKLOADS, Workload
from task_cost import ARMS, LIMIT, WARM, compared, make, table

from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.rows.tasks import Tasks
from steelyard.types import Clipped
from steelyard.weightings.clip import FlatClip
from steelyard.weightings.ngdiff import NGDiff

COST = ("cnn", "gpt-128", "gpt-512", "lora")


def clipped_sums(device: str, cases: list[Case]) -> list[str]:
    """Lines for the cases with a right answer: how many are exact, the worst, and what fails."""
    errors: dict[str, float] = {}
    failed: list[str] = []
    for case in cases:
        if case.refusal:
            continue
        try:
            answer = right(case)
            model, x = case.build()
            model, x = model.to(device), x.to(device)
            with PerSample(model, FlatClip(answer.bound), expected_batch=1.0) as rows:
                for losses in parts(case, model, x):
                    rows.backward(losses)
                found = dict(zip(rows.names, rows.take().tensors, strict=True))
            errors[case.name] = answer.error({n: t.cpu() for n, t in found.items()})
            if errors[case.name] > case.tolerance:
                failed.append(f"{case.name}: error {errors[case.name]:.1e}")
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            failed.append(
                f"{case.name}: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
            )
    worst = max(errors, key=lambda name: errors[name])
    lines = [
        f"{len(errors)} cases ran, {len(failed)} are not exact or fail; the worst of those that "
        f"ran is {worst}, {errors[worst]:.1e}."
    ]
    return [*lines, *(f"- {line}" for line in failed)]


def noise(device: str) -> str:
    mechanism = Gaussian(2.0)
    first, second = (
        mechanism.privatise(_clipped(torch.zeros(1 << 22, device=device))).tensors[0].double()
        for _ in range(2)
    )
    fourth = float((first / 2.0).pow(4).mean())
    return (
        f"sigma 2: mean {float(first.mean()):+.4f}, standard deviation {float(first.std()):.4f}, "
        f"4th moment {fourth:.3f} (3), correlation of two draws "
        f"{float((first * second).mean()) / 4:+.5f}."
    )


def _clipped(tensor: torch.Tensor) -> Clipped:
    return Clipped([tensor], 1.0)


def weighing(device: str, workload: Workload) -> str:
    found = []
    for place in ("cpu", device):
        model, x, y = workload.build(place)
        half = len(y) // 2
        tasks = Tasks(trainable(model), NGDiff())
        record = tasks.backward(
            retain=workload.losses(model(x[half:]), y[half:]),
            forget=-workload.losses(model(x[:half]), y[:half]),
        )
        whole = torch.cat(
            [p.grad.flatten().cpu().double() for p in tasks.parameters if p.grad is not None]
        )
        found.append((whole, record))
    (a, before), (b, after) = found
    weights = max(abs(after.weights[n] / before.weights[n] - 1) for n in before.weights)
    return (
        f"{workload.name}: gradient {float((a - b).norm() / a.norm()):.1e}, weights {weights:.1e} "
        "(relative differences to the CPU)."
    )


def cost(device: str, workload: Workload, seconds: float) -> list[dict[str, Any]]:
    """`task_cost.compared` there; no memory on the CPU."""
    steps: dict[str, Callable[[], None]] = {}
    peaks = dict.fromkeys(ARMS, math.nan)
    for name, arm in ARMS.items():
        before = torch.cuda.memory_allocated() if device != "cpu" else 0
        steps[name] = make(arm, workload, device)
        for _ in range(WARM):
            steps[name]()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            steps[name]()
            peaks[name] = torch.cuda.max_memory_allocated() - before
    return compared(workload, steps, peaks, seconds=seconds)


def page(device: str, seconds: float, costs: tuple[str, ...] = COST) -> str:
    name = torch.cuda.get_device_name() if device != "cpu" else "the CPU"
    lines = [
        "# On an accelerator",
        "",
        f"`python benchmarks/accelerator.py --markdown benchmarks/accelerator.md` on {name}, torch "
        f"{torch.__version__}, float32 products in float32 (no TF32).",
        "",
        "## Clipped sums",
        "",
        *clipped_sums(device, ALL),
        "",
        "## Noise",
        "",
        noise(device),
        "",
        "## Weighing two losses",
        "",
        weighing(device, WORKLOADS["gpt-128"]),
        "",
        f"Ratio to GradDiff of the same optimizer, one backward pass of the sum. "
        f"Limit: {LIMIT} to two passes.",
        "",
        *table([row for name in costs for row in cost(device, WORKLOADS[name], seconds)]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="the checks that need a GPU")
    parser.add_argument("--seconds", type=float, default=8.0, help="timed per workload, about")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    text = page(args.device, args.seconds)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
