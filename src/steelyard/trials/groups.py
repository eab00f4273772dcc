"""One training whose groups of parameters have rates of their own, one of them started wrongly.

| method | rate of group k at step t |
|---|---|
| fixed | r scale_k f(t) |
| gen | GeN's one multiple of these starts, f(t): the ratios stay |
| hidlr | Hi-DLR's, from these starts, f(t) |

f is a cosine behind a warm-up; scale_k is 1 but for one group.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from steelyard.steps.gen import GeN
from steelyard.steps.hidlr import HiDLR
from steelyard.steps.roles import Groups, by_role
from steelyard.trials.rates import WARMUP, decay, descend, plain, scores_of
from steelyard.trials.tasks import Task

RESULTS = 1  # raise it when a change alters what a training computes
METHODS = ("fixed", "gen", "hidlr")
BACKWARD = 2  # forward passes that one backward pass costs as much as


def groups_of(model: nn.Module) -> Groups:
    """By role: embedding, head, attention, mlp; "other" are layers of no role; "small" are biases
    and norms."""
    found = Groups()
    for role, members in by_role(model, fine=False).items():
        name = "small" if role in ("bias", "norm") else role
        found.setdefault(name, []).extend(members)
    return found


def train(
    *, task: str, method: str, optimizer: str, rate: float, seed: int, steps: int,
    group: str | None = None, scale: float = 1.0, shape: str = "cosine", warmup: float = WARMUP,
) -> dict[str, Any]:  # fmt: skip
    """Train with the rate of `group` times `scale`, and test.

    Returns loss, accuracy, diverged, seconds as `rates.train`; passes: forward passes of the whole
    training, a backward counted as two; rates: group -> geometric mean of its rate, without
    f, over the last quarter of the steps. Raises ValueError for an unknown method or group.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: there are {', '.join(METHODS)}")
    torch.manual_seed(seed)
    job = Task(task, seed)
    groups = groups_of(job.model)
    if group is not None and group not in groups:
        raise ValueError(f"unknown group {group!r}: {task} has {', '.join(groups)}")
    stepper = plain(
        optimizer,
        [
            {"params": [p for _, p in members], "lr": rate * (scale if name == group else 1.0)}
            for name, members in groups.items()
        ],
        rate,
    )
    factor = decay(shape, steps, warmup)
    starts = [float(one["lr"]) for one in stepper.param_groups]
    finder = None
    if method == "gen":
        finder = GeN(stepper, model=job.model, decay=factor, seed=seed)
    elif method == "hidlr":
        finder = HiDLR(stepper, groups, model=job.model, decay=factor, seed=seed)
    history: list[list[float]] = []  # [steps][groups]

    def note(t: int) -> None:
        found = starts if finder is None else finder.rates
        history.append(list(found.values()) if isinstance(found, dict) else list(found))

    seconds, finite = descend(job, stepper, factor, finder, steps, note)
    job.model.eval()
    probes = 0 if finder is None else finder.forwards
    return {
        "seconds": seconds,
        "passes": (1 + BACKWARD) * steps + probes,
        "rates": _late(list(groups), history),
    } | scores_of(job, finite)


def _late(names: Sequence[str], history: Sequence[Sequence[float]]) -> dict[str, float]:
    """Geometric means over the last quarter."""
    last = history[-max(1, len(history) // 4) :]
    return {
        name: math.exp(statistics.mean(math.log(max(one[k], 1e-30)) for one in last))
        for k, name in enumerate(names)
        if last
    }
