"""Canaries: samples planted so that their traces show, each included by a fair coin of its own.

| mode | a canary is | its score, positive for "in" | its attacker sees |
|---|---|---|---|
| gradient | a sample whose gradient is one coordinate | log-likelihood ratio | every step |
| input | a training sample with a wrong label | fall of its loss, less the median | the end |

Both pass through the same forward and backward as ordinary samples. Input canaries are below, after
Steinke, Nasr, Jagielski 2023, arXiv 2305.08846; the others in `gradient`.

Samples 0 .. ordinary - 1 are ordinary, `ordinary` .. n - 1 are the m canaries, in or out. All n
count in q = B / n and B: constants that say nothing about the coins. A Poisson batch of all n
without the excluded ones is a Poisson batch of those included, so the plan for n holds for all.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from steelyard.generators import fresh_root, generator
from steelyard.runs.problem import Problem

PART = 512  # samples whose losses are computed at once


class Canaries(Protocol):
    """What the audit asks of a mode. included: bool [m], on the CPU, like all indices."""

    ordinary: int
    included: Tensor

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    def losses(self, indices: Tensor) -> Tensor:
        """One loss for each of these samples (no excluded canary among them): [B]."""
        ...

    def observe(self) -> None:
        """A step was taken; its released gradients are still in `.grad`."""
        ...

    def scores(self, *, unit: float, q: float) -> np.ndarray:
        """After training: float64 [m], positive for "in". unit: R / B, what one sample may move."""
        ...


class InputCanaries:
    """Mode "input": m samples of the training set get a wrong label; others are ordinary."""

    def __init__(self, problem: Problem, canaries: int, ordinary: int | None, seed: int):
        classes = problem.task.classes
        if problem.train_y is None or classes < 2:
            raise ValueError(
                "input canaries are wrong labels, and these data have none: use mode 'gradient'"
            )
        self.problem, self.included = problem, coins(canaries, seed)
        self.ordinary = canaries if ordinary is None else ordinary
        self._order = shuffled(problem.n, self.ordinary + canaries, seed)
        self._y = problem.train_y[self._order].clone()
        shift = torch.randint(1, classes, (canaries,), generator=_generator("labels", seed))
        self._y[self.ordinary :] = (self._y[self.ordinary :] + shift) % classes
        self._before = self._canary_losses()

    @property
    def model(self) -> nn.Module:
        return self.problem.model

    def losses(self, indices: Tensor) -> Tensor:
        x, y = self.problem.batch(self._order[indices])
        return self.problem.losses(self.model, x, self._y[indices].to(y.device))

    def observe(self) -> None:
        """Nothing: this auditor sees the final model only."""

    def scores(self, *, unit: float, q: float) -> np.ndarray:
        fell = self._before - self._canary_losses()
        return fell - np.median(fell)

    @torch.no_grad()
    def _canary_losses(self) -> np.ndarray:
        self.model.eval()
        indices = torch.arange(self.ordinary, len(self._order))
        parts = [self.losses(part).double().cpu() for part in indices.split(PART)]
        self.model.train()
        return torch.cat(parts).numpy()


def coins(canaries: int, seed: int) -> Tensor:
    """Which canaries are included, each with probability 1/2: bool [m]."""
    return torch.rand(canaries, generator=_generator("coins", seed), dtype=torch.float64) < 0.5


def shuffled(n: int, count: int, seed: int) -> Tensor:
    """`count` of the n training samples in random order: int64 [count]."""
    if count > n:
        raise ValueError(
            f"the audit needs {count} training samples and finds {n}: ask for fewer canaries or "
            "ordinary samples"
        )
    return torch.randperm(n, generator=_generator("order", seed))[:count]


def _generator(purpose: str, seed: int) -> torch.Generator:
    return generator(fresh_root(seed), f"audit: {purpose}")
