"""What finding the learning rate adds to training: GeN, Hi-DLR, side by side in one process.

    python benchmarks/rate_cost.py [--only images,text,mlp] [--seconds S] [--markdown FILE]

The plain loop (a fresh batch, backward, step) is 1. A turn is a block of steps with a whole number
of fits, so that their cost is in it; all arms take turns (`lib/timing.py`). Medians and quartiles
of the ratios within a round, per step. After the bootstrap phase: bootstrap=0. Predicted:
1 + m f part / (every s) for m losses a fit, with the forward pass f of a whole batch and the plain
step s timed in the same rounds.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lib import command, timing
from lib.workloads import WORKLOADS
from torch import Tensor, nn

from steelyard.steps.gen import GeN
from steelyard.steps.hidlr import HiDLR
from steelyard.steps.roles import by_role
from steelyard.trials.tasks import RECIPES, Task

BASE, FORWARD = "plain", "forward"  # the harness' word for the arm that all others are compared to
BLOCK, MOST = 32, 400
FORWARDS = 8  # in a turn of that arm
THREE, FIVE = (-1.0, 1.0), (-2.0, -1.0, 1.0, 2.0)  # besides the loss at the start


@dataclass(frozen=True, kw_only=True)
class Arm:
    """every: None for Hi-DLR, max(8, 4K). part: of a batch is probed; limit: of the ratio."""

    label: str
    every: int | None = None
    probes: tuple[float, ...] = FIVE
    part: float = 1.0
    limit: float | None = None


def gen(every: int, limit: float) -> dict[str, Arm]:
    kinds = {
        "5": ("5 losses", FIVE, 1.0),
        "3": ("3 losses", THREE, 1.0),
        "5h": ("5 losses, half a batch", FIVE, 0.5),
        "5q": ("5 losses, a quarter of a batch", FIVE, 0.25),
        "3h": ("3 losses, half a batch", THREE, 0.5),
    }
    return {
        f"gen-{every}-{key}": Arm(
            label=f"GeN every {every}, {what}", every=every, probes=probes, part=part, limit=limit
        )
        for key, (what, probes, part) in kinds.items()
    }


ARMS = {
    **gen(8, 1.12),
    **gen(32, 1.04),
    "hidlr": Arm(label="Hi-DLR by role"),
    "hidlr-h": Arm(label="Hi-DLR by role, half a batch", part=0.5),
}


class Loop:
    """One model in training: `batch()` draws, `losses` are [B], an optimizer of its kind."""

    def __init__(self, name: str):
        if name in RECIPES:
            task = Task(name, 0)
            self.model: nn.Module = task.model
            batches = task.batches()
            self.batch = lambda: task.problem.batch(next(batches))
            self.losses = lambda x, y: task.problem.losses(task.model, x, y)
        else:
            workload = WORKLOADS[name]
            self.model, x, y = workload.build()
            self.batch = lambda: (x, y)
            self.losses = lambda x, y: workload.losses(self.model(x), y)
        self.model.train()
        self.optimizer: torch.optim.Optimizer
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if name in ("images", "mlp", "cnn"):
            self.optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
        else:
            self.optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.losses(*self.batch()).mean().backward()

    def probe(self, part: float) -> Callable[[], Tensor]:
        x, y = self.batch()
        few = max(1, round(part * len(y)))
        x, y = x[:few], y[:few]
        return lambda: self.losses(x, y)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A block of `steps` steps; fits: one every so many, of `forwards` losses (0: none)."""

    block: Callable[[], None]
    steps: int
    every: int = 1
    forwards: int = 0


def plain(name: str) -> Turn:
    loop = Loop(name)

    def block() -> None:
        for _ in range(BLOCK):
            loop.backward()
            loop.optimizer.step()

    return Turn(block=block, steps=BLOCK)


def forward(name: str) -> Turn:
    """Forward passes of whole batches, as probes make them."""
    loop = Loop(name)
    loop.model.eval()

    def block() -> None:
        x, y = loop.batch()
        with torch.no_grad():
            for _ in range(FORWARDS):
                loop.losses(x, y)

    return Turn(block=block, steps=FORWARDS)


def found(name: str, arm: Arm) -> Turn:
    loop = Loop(name)
    if arm.every is None:
        groups = by_role(loop.model)
        K = len(groups)
        at_once = min(K, 8)
        every, forwards = max(8, 4 * at_once), 4 * at_once + 1 + 2 * (K > 2)
        rate: GeN | HiDLR = HiDLR(loop.optimizer, groups, model=loop.model, bootstrap=0)
    else:
        every, forwards = arm.every, len(arm.probes) + 1
        rate = GeN(loop.optimizer, model=loop.model, every=every, probes=arm.probes, bootstrap=0)
    steps = every * -(-BLOCK // every)

    def block() -> None:
        for _ in range(steps):
            loop.backward()
            rate.step(loop.probe(arm.part) if rate.due else None)

    return Turn(block=block, steps=steps, every=every, forwards=forwards)


def measure(name: str, *, seconds: float) -> Iterator[dict[str, Any]]:
    """One row per arm: measured and predicted ratio to the plain loop."""
    turns = {BASE: plain(name), FORWARD: forward(name)}
    turns |= {key: found(name, arm) for key, arm in ARMS.items()}
    for turn in turns.values():
        turn.block()  # warm, and behind a first fit's own check
    times = timing.take_turns(
        {key: turn.block for key, turn in turns.items()},
        budget=dict.fromkeys(turns, seconds / len(turns)),
        fewest=dict.fromkeys(turns, 5),
        most=MOST,
    )
    each = {key: [t / turns[key].steps for t in took] for key, took in times.items()}
    step, once = timing.spread(each[BASE]).median, timing.spread(each[FORWARD]).median
    for key, arm in ARMS.items():
        turn, ratio = turns[key], timing.spread(timing.ratios(each, key, BASE))
        yield {
            "workload": name,
            "arm": f"{arm.label}, every {turn.every}" if arm.every is None else arm.label,
            "forwards": turn.forwards,
            "ratio": ratio.median,
            "low": ratio.low,
            "high": ratio.high,
            "rounds": ratio.rounds,
            "predicted": 1 + turn.forwards * arm.part * once / (turn.every * step),
            "ms": 1e3 * step,
            "forward_ms": 1e3 * once,
            "limit": arm.limit,
        }


def page(rows: list[dict[str, Any]]) -> str:
    """The committed page."""
    lines = [
        "# What finding the learning rate costs",
        "",
        "`python benchmarks/rate_cost.py --markdown benchmarks/rate_cost.md` on "
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads.",
        "",
        "Ratio to the plain loop per step, after the bootstrap phase: median over rounds in which "
        "all arms take turns, with quartiles. Predicted from the forward pass and the plain step "
        "of the same rounds, by the number of losses alone: without copies of the parameters and "
        "the draw of the probe batch. Limits: 1.12 for a fit every 8 steps, 1.04 for every 32.",
        "",
        "| workload (step, forward) | arm | losses | ratio | quartiles | predicted | within |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = row["limit"]
        kept = "yes" if limit and row["ratio"] <= limit else "**no**"
        within = "" if limit is None else f"{limit:g}: {kept}"
        lines.append(
            f"| {row['workload']} ({row['ms']:.2f}, {row['forward_ms']:.2f} ms) | {row['arm']} | "
            f"{row['forwards']} | {row['ratio']:.3f} | {row['low']:.3f} to {row['high']:.3f} | "
            f"{row['predicted']:.3f} | {within} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    command.run(
        "cost of GeN and Hi-DLR over a plain loop",
        (*RECIPES, *WORKLOADS),
        lambda name, seconds: measure(name, seconds=seconds),
        page,
        only="images,text,mlp",
        seconds=120.0,
    )


if __name__ == "__main__":
    main()
