"""One training whose learning rate is somebody's business: a schedule, GeN, or a rate-free method.

| method | rate of step t of T | what `rate`, r, is |
|---|---|---|
| constant | r | the rate |
| linear, cosine | r f(t), f from 1 down to 0 behind the warm-up | the peak |
| gen | GeN's, without a decay factor | GeN's first rate |
| gen-linear, gen-cosine | GeN's times f(t): `GeN(decay=f)` | GeN's first rate |
| schedulefree | r; Defazio et al. 2024, arXiv 2405.15682 | the rate |
| prodigy, prodigy-cosine | d_t, d_t f(t); Mishchenko, Defazio 2023, arXiv 2306.06101 | d_0 |

Prodigy multiplies its estimate d_t by a rate that is 1 as recommended: what it starts from is d_0.
It is an Adam, also where the others are SGD.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch.optim import SGD, AdamW, Optimizer

from steelyard.plans.schedule_shapes import Shape
from steelyard.steps.gen import GeN
from steelyard.steps.hidlr import HiDLR
from steelyard.trials.tasks import Task

RESULTS = 1  # raise it when a change alters what a training computes
METHODS = (
    "constant", "linear", "cosine", "gen", "gen-linear", "gen-cosine", "schedulefree",
    "prodigy", "prodigy-cosine",
)  # fmt: skip
OPTIMIZERS = ("sgd", "adamw")
MOMENTUM = 0.9
WARMUP = 0.1  # of the steps
HOPELESS = 1e3  # a training loss beyond it is a divergence


def train(
    *, task: str, method: str, optimizer: str, rate: float, seed: int, steps: int,
    warmup: float = WARMUP, every: int = 8, bootstrap: int = 20, smoothing: float = 0.9,
    peak: float = 1.0, rewind: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train a small task for so many steps and test it.

    optimizer: "sgd" (momentum 0.9) or "adamw" (betas 0.9, 0.999, no weight decay). warmup: share of
    the steps, of all methods with an f; of schedulefree its own. Of GeN: every, bootstrap,
    smoothing; peak: f is peak times as large, the share of the parabola's minimiser that is walked;
    rewind: the bootstrap only looks for the rate, and its steps are undone when it ends.

    Returns loss, accuracy (None where the task has none), diverged, seconds (of the training
    alone), and of GeN: rates, (step, rate without decay) of every fit; fits, rejected, forwards of
    its probes. Guarantees: all methods see the same gradient batches but GeN, whose probe batches
    come from the same stream between them, so that the two are disjoint within an epoch.
    Raises ValueError for an unknown name, ImportError for a package that is not installed.
    """
    if method not in METHODS or optimizer not in OPTIMIZERS:
        raise ValueError(
            f"unknown method {method!r} or optimizer {optimizer!r}: there are {', '.join(METHODS)}"
            f"; {', '.join(OPTIMIZERS)}"
        )
    torch.manual_seed(seed)
    job = Task(task, seed)
    kind, _, shape = method.partition("-")
    trained = [p for p in job.model.parameters() if p.requires_grad]
    if kind == "schedulefree":
        stepper = schedule_free(optimizer, trained, rate, round(warmup * steps))
    elif kind == "prodigy":
        stepper = _package("prodigyopt").Prodigy(trained, lr=1.0, d0=rate, weight_decay=0.0)
    else:
        stepper = plain(optimizer, trained, rate)
    factor = decay(shape or kind, steps, warmup)
    gen, origin = None, [p.detach().clone() for p in trained]
    if kind == "gen":
        walked = None if factor is None else lambda t: peak * factor(t)
        gen = GeN(
            stepper, model=job.model, every=every, bootstrap=bootstrap, smoothing=smoothing,
            decay=walked, seed=seed,
        )  # fmt: skip

    def undo_the_bootstrap(t: int) -> None:
        if gen is not None and rewind and t + 1 == bootstrap:
            stepper.state.clear()  # it was empty at the start
            with torch.no_grad():
                for p, first in zip(trained, origin, strict=True):
                    p.copy_(first)

    seconds, finite = descend(job, stepper, factor, gen, steps, undo_the_bootstrap)
    if kind == "schedulefree":
        stepper.eval()  # pyright: ignore[reportAttributeAccessIssue]  # to the average
    job.model.eval()
    found = {"seconds": seconds} | scores_of(job, finite)
    if gen is not None:
        found |= {
            "rates": [[one.step, one.lr] for one in gen.log],
            "fits": len(gen.log),
            "rejected": sum(not one.accepted for one in gen.log),
            "forwards": gen.forwards,
        }
    return found


def descend(
    job: Task,
    stepper: Optimizer,
    factor: Callable[[int], float] | None,
    finder: GeN | HiDLR | None,
    steps: int,
    after: Callable[[int], None],
) -> tuple[float, bool]:
    """The training loop: its seconds, and whether all losses were finite and below `HOPELESS`.

    factor: of the rates the stepper came with; a finder has it as its decay factor. after: called
    with t = 0, 1, ... behind every step. Probe batches come from the gradient's stream.
    """
    base = [group["lr"] for group in stepper.param_groups]
    batches = job.batches()
    job.model.train()
    began = time.perf_counter()
    for t in range(steps):
        if finder is None and factor is not None:
            for group, lr in zip(stepper.param_groups, base, strict=True):
                group["lr"] = lr * factor(t)
        loss = job.losses(next(batches)).mean()
        stepper.zero_grad()
        loss.backward()
        if not bool(loss.detach() < HOPELESS):  # nan too
            return time.perf_counter() - began, False
        if finder is None:
            stepper.step()
        elif finder.due:
            fresh = next(batches)
            finder.step(lambda fresh=fresh: job.losses(fresh))
        else:
            finder.step()
        after(t)
    return time.perf_counter() - began, True


def decay(shape: str, steps: int, warmup: float = WARMUP) -> Callable[[int], float] | None:
    """f(t) for t = 0 .. steps; None: no decay, no warm-up."""
    if shape not in ("linear", "cosine"):
        return None
    factors = [*Shape(kind=shape, warmup=warmup)(steps).tolist(), 0.0]  # the step after the last
    return factors.__getitem__


def scores_of(job: Task, finite: bool) -> dict[str, Any]:
    """The test loss and accuracy as plain values; None for a run that diverged."""
    scores = job.test() if finite else {}
    loss = float(scores.get("loss", math.nan))
    diverged = not math.isfinite(loss) or loss > HOPELESS
    accuracy = scores.get("accuracy")
    return {
        "loss": None if diverged else loss,
        "accuracy": None if diverged or accuracy is None else float(accuracy),
        "diverged": diverged,
    }


def plain(optimizer: str, parameters: Sequence[Any], rate: float) -> Optimizer:
    """The optimizer that all methods but the rate-free ones share."""
    if optimizer == "sgd":
        return SGD(parameters, lr=rate, momentum=MOMENTUM)
    return AdamW(parameters, lr=rate, weight_decay=0.0)


def schedule_free(
    optimizer: str, parameters: Sequence[Any], rate: float, warmup_steps: int
) -> Optimizer:
    """The schedule-free form of the same optimizer, in its training mode."""
    package = _package("schedulefree")
    if optimizer == "sgd":
        made = package.SGDScheduleFree(
            parameters, lr=rate, momentum=MOMENTUM, warmup_steps=warmup_steps
        )
    else:
        made = package.AdamWScheduleFree(
            parameters, lr=rate, weight_decay=0.0, warmup_steps=warmup_steps
        )
    made.train()
    return made


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: pip install steelyard[baselines]") from error
