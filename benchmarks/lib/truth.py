"""The clipped gradient from every sample alone: what an engine must equal before it is timed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from steelyard.rows.groups import partition

from .engines import Kind, Settings
from .workloads import Workload

TOLERANCE = 1e-4  # relative, float32


class Truth:
    """Per-sample gradients by one forward and backward pass each; sums in float64.

    `bound` is the median of the norms, so that half of the samples are clipped.
    """

    def __init__(self, workload: Workload):
        self._losses = workload.losses
        self.model, self.x, self.y = workload.build()
        self._names = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._squares = torch.stack(
            [torch.stack([g.double().square().sum() for g in self._row(i)]) for i in self._samples]
        )  # [B, parameters]
        self.bound = float(self._squares.sum(1).sqrt().median())
        self._known: dict[str, dict[str, Tensor]] = {}

    def clipped(self, groups: str) -> dict[str, Tensor]:
        """sum_i C_i g_i / B by parameter name."""
        if groups not in self._known:
            self._known[groups] = self._clipped(groups)
        return self._known[groups]

    @property
    def _samples(self) -> range:
        return range(len(self.y))

    def _row(self, i: int) -> tuple[Tensor, ...]:
        loss = self._losses(self.model(self.x[i : i + 1]), self.y[i : i + 1]).sum()
        return torch.autograd.grad(loss, list(self._names.values()))

    def _clipped(self, groups: str) -> dict[str, Tensor]:
        order = list(self._names)
        weights = torch.zeros_like(self._squares)
        parts = partition(self._names, groups)
        for part in parts:
            columns = [order.index(name) for name in part]
            norms = self._squares[:, columns].sum(1, keepdim=True).sqrt()
            weights[:, columns] = (self.bound / math.sqrt(len(parts)) / norms).clamp(max=1.0)
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in self._names.values()]
        for i in self._samples:
            for total, g, weight in zip(sums, self._row(i), weights[i], strict=True):
                total.add_(g, alpha=float(weight) / len(self.y))
        return dict(zip(order, sums, strict=True))


def relative_error(got: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """L2 of the difference of all parameters together over L2 of the truth."""
    error = sum(float((got[n].double() - t).square().sum()) for n, t in truth.items())
    return math.sqrt(error / sum(float(t.square().sum()) for t in truth.values()))


def check(kind: Kind, workload: Workload, truth: Truth) -> float:
    """The relative error of the engine's noise-free gradient; whatever it raises is passed on."""
    if kind.family == "plain":
        return 0.0
    engine = kind.make(workload, Settings(bound=truth.bound, sigma=0.0, rate=0.0))
    return relative_error(engine.gradients(), truth.clipped(kind.groups))
