"""What filters, error feedback and public rows add to a private step, side by side in one process.

    python benchmarks/filter_cost.py [--only mlp,cnn] [--seconds S] [--markdown FILE]

The step of DP-SGD (all-layer clipping, noise included) is 1. Every arm takes turns with it, step by
step (`lib/timing.py`); medians and quartiles of the ratios within a round. Memory: the live peak of
a step (`lib/memory.py`) in gradient-sized tensors above DP-SGD's, and what the method's card asks.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lib import command, memory, timing
from lib.engines import Settings, sgd, trainable
from lib.workloads import WORKLOADS, Workload

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.dice import Dice
from steelyard.filters.disk import Disk
from steelyard.filters.doppler import Doppler
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.rows.sources import PublicRows
from steelyard.weightings.clip import FlatClip
from steelyard.weightings.coupling import ConstantWeight

BASE = "plain"  # the harness' word for the arm that all others are compared with
WARM, MOST = 4, 2000
BOUND, SIGMA = 1.0, 1.0


@dataclass(frozen=True, kw_only=True)
class Arm:
    """filters behind the noise; memory: gradient-sized tensors that the method needs above DP-SGD;
    limit: of the ratio, where one was set."""

    label: str
    memory: str
    filters: Callable[[], list[Any]] = list
    dice: bool = False
    public: bool = False
    limit: float | None = None


ARMS = {
    BASE: Arm(label="DP-SGD", memory="0"),
    "doppler": Arm(
        label="DOPPLER, first order",
        memory="1",
        filters=lambda: [Doppler.first_order(0.9)],
        limit=1.05,
    ),
    "doppler-2": Arm(
        label="DOPPLER, two in a row",
        memory="2",
        filters=lambda: [Doppler.cascade(0.8, 2)],
        limit=1.05,
    ),
    "disk": Arm(label="DiSK, one evaluation", memory="2", filters=lambda: [Disk(0.7)], limit=1.05),
    "disk-2": Arm(
        label="DiSK, two evaluations",
        memory="2, and twice the book-keeping",
        filters=lambda: [Disk(0.7, 0.5)],
    ),
    "dice": Arm(label="DiceSGD", memory="1, and a second sum", dice=True),
    "public": Arm(label="coupling, B/4 public rows", memory="1", public=True),
}


def make(arm: Arm, workload: Workload) -> Callable[[], None]:
    """A step of the arm on the workload's model and batch."""
    model, x, y = workload.build()
    optimizer = sgd(model, Settings(bound=BOUND, sigma=SIGMA, rate=1e-4))
    rows = PerSample(model, FlatClip(BOUND), expected_batch=len(y), strict=True)
    filters, few = arm.filters(), max(2, len(y) // 4)
    noise: Any = Dice(SIGMA, bound=BOUND) if arm.dice else Gaussian(SIGMA)
    public = PublicRows(rows, ConstantWeight(0.3)) if arm.public else None
    attach(optimizer, rows, chain(noise, *([public] if public else []), *filters))

    def step() -> None:
        if public is not None:
            public.backward(lambda: workload.losses(model(x[:few]), y[:few]))
        rows.backward(lambda: workload.losses(model(x), y))
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(workload: Workload, *, seconds: float) -> list[dict[str, Any]]:
    """One row per arm: ratio with quartiles, milliseconds, memory above DP-SGD in gradients."""
    made, live = {}, {}
    for name, arm in ARMS.items():

        def before(arm: Arm = arm, name: str = name) -> Callable[[], None]:
            step = made[name] = make(arm, workload)
            for _ in range(WARM):
                step()
            return step

        live[name] = memory.live_peak(before)
    times = timing.take_turns(
        made,
        budget=dict.fromkeys(ARMS, seconds / len(ARMS)),
        fewest=dict.fromkeys(ARMS, 5),
        most=MOST,
    )
    size = 4 * sum(p.numel() for p in trainable(workload.build()[0]))
    found = []
    for name, arm in ARMS.items():
        ratio = timing.spread(timing.ratios(times, name, BASE))
        found.append(
            {
                "workload": workload.name,
                "arm": arm.label,
                "ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "rounds": ratio.rounds,
                "ms": 1e3 * timing.spread(times[name]).median,
                "memory": (live[name] - live[BASE]) / size,
                "asked": arm.memory,
                "limit": arm.limit,
            }
        )
    return found


def page(rows: list[dict[str, Any]]) -> str:
    """The committed page."""
    lines = [
        "# What a filter costs",
        "",
        "`python benchmarks/filter_cost.py --markdown benchmarks/filter_cost.md` on "
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads.",
        "",
        "Ratio to the step of DP-SGD (all-layer clipping, noise included), median over rounds in "
        "which all arms take turns, with quartiles. Memory: live peak of a step above DP-SGD's, in "
        "gradient-sized tensors, beside what the method needs by its description. Limit: 1.05 for "
        "DOPPLER and DiSK with one evaluation.",
        "",
        "| workload | arm | ratio | quartiles | ms | memory | needs | within 1.05 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = row["limit"]
        kept = "" if limit is None else "yes" if row["ratio"] <= limit else "**no**"
        lines.append(
            f"| {row['workload']} | {row['arm']} | {row['ratio']:.3f} | {row['low']:.3f} to "
            f"{row['high']:.3f} | {row['ms']:.1f} | {row['memory']:+.2f} | {row['asked']} "
            f"| {kept} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    command.run(
        "cost of filters over a step of DP-SGD",
        WORKLOADS,
        lambda name, seconds: measure(WORKLOADS[name], seconds=seconds),
        page,
        only="mlp,cnn,gpt-128,lora",
        seconds=90.0,
    )


if __name__ == "__main__":
    main()
