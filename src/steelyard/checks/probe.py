"""Rows that tell what they see: a weighting that writes norms down, beside autograd's gradients.

The clipped sum is sum_i C(||g_i||) g_i. A weighting that is shown every norm and answers with
weights chosen before gives both parts of it by the engine's own code: the norms ||g_i^(p)|| of each
parameter p, and sum_i w_i g_i for any w. Autograd gives the same numbers slowly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steelyard.checks.trial import Refused, Trial
from steelyard.rows.per_sample import PerSample

WARM_UP = 4  # batches in which an engine finds the rules that serve the model
_HUGE = 1e30  # a bound that no row passes, finite so that every group has a share of its own


@dataclass
class _Sight:
    weights: Tensor  # [B], what every group is answered with
    norms: dict[int, Tensor] = field(default_factory=dict)  # number of the parameter -> [B]


@dataclass(frozen=True)
class _Probe:
    """A row weighting; with one group per parameter and the shares 1, 2, 3, ... the bound of a
    group tells which one it is: share_m = sum(shares) (R_m / R)^2."""

    sight: _Sight
    total: float  # of the shares
    bound: float = _HUGE

    def __call__(self, norms: Tensor) -> Tensor:
        share = self.total * (self.bound / _HUGE) ** 2
        self.sight.norms[round(share) - 1] = norms.detach().double().cpu()
        return self.sight.weights.to(norms)

    def with_bound(self, bound: float) -> _Probe:
        return _Probe(self.sight, self.total, bound)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What one backward of the rows gave, next to autograd's on the same graph."""

    sums: Sequence[Tensor]  # by the engine, one per parameter
    truth: Sequence[Tensor | None]  # by autograd; None where no gradient arrives
    norms: Tensor  # [parameters, B], by the engine
    alone: Tensor  # [parameters, samples], by autograd, of the samples asked for
    outside: Sequence[Tensor]  # trainable tensors that the losses reach and the rows do not hold
    notice: str | None  # why the reference engine had to take over, if it did

    @property
    def errors(self) -> list[float]:
        """Relative errors of the sums, by parameter; small gradients next to the largest."""
        sizes = [0.0 if g is None else norm([g]) for g in self.truth]
        floor = max(1e-2 * max(sizes), 1e-30)
        return [
            norm([total if g is None else total - g]) / max(size, floor)
            for total, g, size in zip(self.sums, self.truth, sizes, strict=True)
        ]


class Probing:
    """Rows of their own on the trial's model, one group per parameter, with the probe to weigh."""

    def __init__(self, trial: Trial):
        self._trial = trial
        self._parameters = list(trial.rows.parameters)
        shares = [1.0 + k for k in range(len(self._parameters))]
        self._sight = _Sight(torch.ones(trial.size))
        engine = "reference" if trial.rows.engine == "reference" else "auto"
        options: dict[str, Any] = {"groups": "parameter", "shares": shares, "engine": engine}
        self._before, self._warm = trial.rows.engine, 0
        self._said: list[str] = []
        with warnings.catch_warnings(record=True):  # the rows under test have said the same
            warnings.simplefilter("always")
            probe = _Probe(self._sight, sum(shares))
            self._rows = PerSample(trial.model, probe, expected_batch=1, **options)

    def __enter__(self) -> Probing:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def measure(self, weights: Tensor, samples: Sequence[int] = ()) -> Probed:
        """One forward, one backward of the rows, weights [B] > 0; autograd on the same graph.

        Raises Refused where the rows refuse the step.
        """
        while self._warm < WARM_UP:
            self._step(self._trial.losses())
            self._warm += 1
        self._sight.weights, self._sight.norms = weights, {}
        losses = self._trial.losses()
        truth = gradients(losses, self._parameters, weights)
        alone = torch.zeros(len(truth), len(samples), dtype=torch.float64)
        for k, i in enumerate(samples):
            this = gradients(losses, self._parameters, self._trial.everyone == i)
            alone[:, k] = alone.new_tensor([0.0 if g is None else norm([g]) for g in this])
        outside = other_leaves(losses, self._parameters)
        sums = self._step(losses)
        norms = torch.zeros(len(truth), len(weights), dtype=torch.float64)
        for number, found in self._sight.norms.items():
            norms[number] = found
        changed = self._rows.engine != self._before
        return Probed(
            sums=sums,
            truth=truth,
            norms=norms,
            alone=alone,
            outside=outside,
            notice=(self._said or [""])[-1] if changed else None,
        )

    def _step(self, losses: Tensor) -> Sequence[Tensor]:
        with warnings.catch_warnings(record=True) as said, Refused.instead():
            warnings.simplefilter("always")
            self._rows.backward(losses)
            sums = self._rows.take().tensors
        self._said += [str(w.message) for w in said if "takes over" in str(w.message)]
        return sums


def gradients(
    losses: Tensor, parameters: Sequence[Tensor], weights: Tensor
) -> tuple[Tensor | None, ...]:
    """Autograd's gradient of sum_i weights_i losses_i; the graph is kept."""
    return torch.autograd.grad(
        losses, parameters, weights.to(losses), retain_graph=True, allow_unused=True
    )


def other_leaves(losses: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Leaves to which the losses have a gradient, and that are none of the parameters."""
    known = {id(p) for p in parameters}
    found: list[Tensor] = []
    seen: set[Any] = set()
    stack: list[Any] = [losses.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of AccumulateGrad nodes
        if isinstance(leaf, Tensor) and id(leaf) not in known:
            found.append(leaf)
        stack += [child for child, _ in node.next_functions]
    if not found:
        return []
    arriving = gradients(losses, found, torch.ones_like(losses))  # none at the engine's own leaves
    return [leaf for leaf, g in zip(found, arriving, strict=True) if g is not None]


def norm(values: Sequence[Tensor]) -> float:
    """L2 norm of all together, in float64."""
    return math.sqrt(sum(float(v.detach().to_dense().double().square().sum()) for v in values))
