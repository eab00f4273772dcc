"""A case of the exactness table: a small model, one batch, and the right answer.

The right answer is sum_i C_i g_i with each g_i from a forward and backward pass of sample i alone,
in float64, and C_i = min(1, R / ||g_i||) with R the median norm, so that about half are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.models import seeded

Row = dict[str, Tensor]
B = 6


class Net(nn.Module):
    """A module from its parts and its forward."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def squares(outputs: Tensor) -> Tensor:
    """A loss per sample, of its own outputs only; samples differ in scale."""
    scale = torch.arange(1, len(outputs) + 1, dtype=outputs.dtype, device=outputs.device)
    return scale * (outputs.flatten(1) - 0.5).square().mean(1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """model(), input() -> x [B, ...]; call(model, x) -> outputs; losses(outputs) -> [B].

    refusal: no right answer exists, because samples mix: an engine must refuse. may_refuse: it
    looks as if they did, so that a refusal is no error. micro: number of parts in which the batch
    arrives. tolerance: relative error that counts as exact.
    """

    name: str
    model: Callable[[], nn.Module]
    input: Callable[[], Tensor]
    call: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x)
    losses: Callable[[Tensor], Tensor] = lambda outputs: squares(outputs)
    micro: int = 1
    refusal: bool = False
    may_refuse: bool = False
    tolerance: float = 1e-4
    note: str = ""
    quick: bool = True  # needs nothing but torch

    def build(self) -> tuple[nn.Module, Tensor]:
        """The same model and input at every call."""
        with seeded(0):
            return self.model(), self.input()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The right clipped sum and the bound that it belongs to."""

    clipped: Row
    bound: float

    def error(self, got: Mapping[str, Tensor]) -> float:
        """L2 of the difference over L2 of the right sum; the difference itself if that is 0."""
        difference = norm({n: got[n].double() - g for n, g in self.clipped.items()})
        return difference / (norm(self.clipped) or 1.0)


def right(case: Case) -> Answer:
    """Every sample alone, in float64."""
    model, x = case.build()
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    scales = torch.arange(1, len(x) + 1, dtype=torch.float64)
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rows: list[Row] = []
    for i in range(len(x)):
        # alone, a sample is the first of its batch: `squares` gives it the scale 1
        loss = scales[i] * case.losses(case.call(model, x[i : i + 1]))[0]
        found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        rows.append(
            {
                n: torch.zeros_like(p) if g is None else g.to_dense()
                for (n, p), g in zip(names.items(), found, strict=True)
            }
        )
    norms = [norm(row) for row in rows]
    bound = sorted(norms)[len(norms) // 2] if norms else 1.0
    clipped = {n: torch.zeros_like(p) for n, p in names.items()}
    for row, size in zip(rows, norms, strict=True):
        for n, g in row.items():
            clipped[n] += min(1.0, bound / size if size else 1.0) * g
    return Answer(clipped=clipped, bound=bound)


def norm(row: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in row.values()))
