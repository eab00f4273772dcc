"""What weighing two losses adds to a step that just adds them, side by side in one process.

    python benchmarks/task_cost.py [--only mlp,gpt-128] [--seconds S] [--markdown FILE]

On an accelerator: `python benchmarks/accelerator.py`.

The step of GradDiff (one backward pass of the sum of two losses, SGD) is 1: each arm sees the same
two halves of the workload's batch, retain and forget. Every arm takes turns with it, step by step
(`lib/timing.py`); medians and quartiles of the ratios within a round. Memory: the live peak of a
step (`lib/memory.py`) above GradDiff's, in gradient-sized tensors.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lib import command, memory, timing
from lib.engines import trainable
from lib.workloads import WORKLOADS, Workload
from torch import Tensor

from steelyard.rows.tasks import Tasks
from steelyard.weightings.blur import Blur
from steelyard.weightings.ngdiff import NGDiff

BASE = "plain"  # the harness' word for the arm that all others are compared with
WARM, MOST, LIMIT = 4, 2000, 1.05


@dataclass(frozen=True, kw_only=True)
class Arm:
    """weighting: of Tasks; None: backward passes of torch alone. split: one for each loss, and so
    one graph alive at a time. limit: of the ratio to two passes, where one was set."""

    label: str
    weighting: Callable[[], Any] | None = None
    split: bool = True
    adam: bool = False
    limit: float | None = None


ARMS = {
    BASE: Arm(label="GradDiff, one backward pass of the sum", split=False),
    "two": Arm(label="GradDiff, two backward passes"),
    "ngdiff": Arm(label="NGDiff", weighting=NGDiff, limit=LIMIT),
    "blur": Arm(label="BLUR", weighting=Blur, limit=LIMIT),
    "adam": Arm(label="GradDiff, one backward pass, AdamW", split=False, adam=True),
    "blur-adam": Arm(
        label='BLUR, metric="optimizer", AdamW',
        weighting=lambda: Blur(metric="optimizer"),
        adam=True,
    ),
}


def make(arm: Arm, workload: Workload, device: str = "cpu") -> Callable[[], None]:
    """A step of the arm on the workload's model: F = -CE on the first half of the batch."""
    model, x, y = workload.build(device)
    half = len(y) // 2
    parameters = trainable(model)
    kind = torch.optim.AdamW if arm.adam else torch.optim.SGD
    optimizer = kind(parameters, lr=1e-5)
    tasks = arm.weighting and Tasks(parameters, arm.weighting(), optimizer=optimizer)

    def forget() -> Tensor:
        return -workload.losses(model(x[:half]), y[:half]).mean()

    def retain() -> Tensor:
        return workload.losses(model(x[half:]), y[half:]).mean()

    def step() -> None:
        optimizer.zero_grad()
        if tasks is not None:
            tasks.backward(retain=retain, forget=forget)
        elif arm.split:
            retain().backward()
            forget().backward()
        else:
            (retain() + forget()).backward()
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def measure(workload: Workload, *, seconds: float) -> list[dict[str, Any]]:
    """One row per arm: ratio with quartiles, milliseconds, memory above GradDiff in gradients."""
    made: dict[str, Callable[[], None]] = {}
    live: dict[str, float] = {}
    for name, arm in ARMS.items():

        def before(arm: Arm = arm, name: str = name) -> Callable[[], None]:
            step = made[name] = make(arm, workload)
            for _ in range(WARM):
                step()
            return step

        live[name] = memory.live_peak(before)
    return compared(workload, made, live, seconds=seconds)


def compared(
    workload: Workload,
    steps: Mapping[str, Callable[[], None]],
    peaks: Mapping[str, float],
    *,
    seconds: float,
) -> list[dict[str, Any]]:
    """The arms' steps take turns; peaks: their memory in bytes, NaN where it is not known."""
    times = timing.take_turns(
        steps,
        budget=dict.fromkeys(ARMS, seconds / len(ARMS)),
        fewest=dict.fromkeys(ARMS, 5),
        most=MOST,
    )
    size = 4 * sum(p.numel() for p in trainable(workload.build()[0]))
    found = []
    for name, arm in ARMS.items():
        base = "adam" if arm.adam else BASE  # of the same optimizer
        ratio = timing.spread(timing.ratios(times, name, base))
        beside = timing.spread(timing.ratios(times, name, "two"))
        found.append(
            {
                "workload": workload.name,
                "arm": arm.label,
                "ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "two": beside.median,
                "rounds": ratio.rounds,
                "ms": 1e3 * timing.spread(times[name]).median,
                "memory": (peaks[name] - peaks[base]) / size,
                "limit": arm.limit,
            }
        )
    return found


def page(rows: list[dict[str, Any]]) -> str:
    """The committed page."""
    lines = [
        "# What weighing two losses costs",
        "",
        "`python benchmarks/task_cost.py --markdown benchmarks/task_cost.md` on "
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads.",
        "",
        "Ratio to GradDiff with the same optimizer, one backward pass of the sum of the two losses "
        "(half a batch each), median over rounds in which all arms take turns, with quartiles; "
        "beside it the ratio to two separate backward passes of SGD. Memory: live peak of a step "
        "above that GradDiff's, in gradient-sized tensors; it is negative where one graph at a "
        f"time is smaller than two. Limit: {LIMIT} to two passes for NGDiff and BLUR.",
        "",
        *table(rows),
    ]
    return "\n".join(lines) + "\n"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines in Markdown."""
    lines = [
        "| workload | arm | ratio | quartiles | to two passes | ms | memory | within limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = row["limit"]
        kept = "" if limit is None else "yes" if row["two"] <= limit else "**no**"
        lines.append(
            f"| {row['workload']} | {row['arm']} | {row['ratio']:.3f} | {row['low']:.3f} to "
            f"{row['high']:.3f} | {row['two']:.3f} | {row['ms']:.1f} | {row['memory']:+.2f} "
            f"| {kept} |"
        )
    return lines


def main() -> None:
    command.run(
        "cost of weighing two losses over adding them",
        WORKLOADS,
        lambda name, seconds: measure(WORKLOADS[name], seconds=seconds),
        page,
        only="mlp,cnn,gpt-128,lora",
        seconds=90.0,
    )


if __name__ == "__main__":
    main()
