"""One run of a fixed length and schedule, with its loss along the way: what laws of loss are
fitted to (`steelyard.plans.laws`).

Bu, Xu, Mao 2026, arXiv 2602.07145: the law is of E L(w_tau), the loss on data that have not been
trained on, and of a peak eta_ref / sqrt(T). A minibatch's own loss is that plus much noise, so a
probe is measured: the same training samples in every run, which no run trains on.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from steelyard.models import seeded
from steelyard.plans.schedule_shapes import parse_shape
from steelyard.steps.schedules import WARMUP, schedule
from steelyard.trials.tasks import TEST_BATCH, Task

RESULTS = 1
LAST = 0.05  # share of the steps whose minibatch losses are the "last minibatches"
OPTIMIZERS = {"images": "SGD, momentum 0.9", "text": "AdamW, weight decay 0.01"}


def horizon(
    *,
    task: str,
    shape: str,
    reference: float,
    steps: int,
    seed: int,
    batch: int,
    probe: int = 1000,
    logs: int = 80,
) -> dict[str, Any]:
    """Train `steps` steps at peak reference / sqrt(steps), once through the data at most.

    shape: as `parse_shape`, with a warm-up of 2 %. probe: so many samples; logs: so many times.

    | key | what |
    |---|---|
    | loss, test_loss | at the end: of the probe, of the test set |
    | minibatches | mean of the minibatches' losses in the last 5 % of the steps |
    | at, curve, train | [logs] steps taken, the probe's loss then, the minibatches' mean since |
    | seconds | of the training alone |

    A run whose loss is not finite ends there: diverged, and its losses are None.
    Raises ValueError for more steps than the data have batches.
    """
    made = Task(task, seed, batch=batch)
    held, order = _split(made, probe)
    if steps * batch > len(order):
        raise ValueError(
            f"{steps:,} steps of {batch} are more than the {len(order):,} samples of {task}, "
            "which are seen once: take fewer"
        )
    optimizer = _optimizer(made, reference / math.sqrt(steps))
    scheduler = schedule(optimizer, parse_shape(shape, WARMUP), steps)
    marks = {max(1, round(steps * (i + 1) / logs)) for i in range(logs)}
    at: list[int] = []
    curve: list[float] = []
    losses = torch.empty(steps)
    aside = 0.0
    start = time.perf_counter()
    with seeded(seed):
        for t, indices in enumerate(order[: steps * batch].split(batch)):
            loss = made.losses(indices).mean()
            if not torch.isfinite(loss):
                break
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses[t] = loss.detach()
            if t + 1 in marks:
                began = time.perf_counter()
                at.append(t + 1)
                curve.append(_mean_loss(made, held))
                aside += time.perf_counter() - began
    seconds = time.perf_counter() - start - aside
    if at[-1:] != [steps] or not math.isfinite(curve[-1]):
        return {"loss": None, "test_loss": None, "diverged": True, "seconds": seconds}
    parts = losses.tensor_split(torch.tensor(at[:-1], dtype=torch.long))
    return {
        "loss": curve[-1],
        "test_loss": made.test()["loss"],
        "minibatches": float(losses[-max(1, round(LAST * steps)) :].mean()),
        "at": at,
        "curve": curve,
        "train": [float(part.mean()) for part in parts],
        "diverged": False,
        "seconds": seconds,
    }


def _split(task: Task, probe: int) -> tuple[Tensor, Tensor]:
    """The probe, evenly spread and the same for every seed, and an order of all the others."""
    n = task.problem.n
    held = torch.arange(0, n, max(1, n // probe))[:probe]
    others = torch.ones(n, dtype=torch.bool)
    others[held] = False
    rest = others.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(1_000_003 + task.seed)
    return held, rest[torch.randperm(len(rest), generator=generator)]


def _optimizer(task: Task, peak: float) -> Optimizer:
    if task.name == "images":
        return SGD(task.model.parameters(), lr=peak, momentum=0.9)
    return AdamW(task.model.parameters(), lr=peak, weight_decay=0.01)


@torch.no_grad()
def _mean_loss(task: Task, indices: Tensor) -> float:
    task.model.eval()
    total = sum(float(task.losses(part).sum()) for part in indices.split(TEST_BATCH))
    task.model.train()
    return total / len(indices)
