"""Engines of the step benchmarks: the plain step, and steelyard's.

Each engine does one optimizer step in four stages, so that the harness can time, check, profile
and measure all of them alike:

    forward  ->  losses            (vmap: nothing, it does both at once in `backward`)
    backward                       gradients; private engines: norms, weights, clipped sums
    apply    ->  `.grad`, update   private engines: noise first, then torch's SGD
    zero                           what the next step must not find
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

from .workloads import Workload


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Clipping bound R, noise multiplier sigma and learning rate of a step."""

    bound: float = 1.0
    sigma: float = 1.0
    rate: float = 0.01


@dataclass(kw_only=True)
class Engine:
    """One engine on one workload, ready to step. `model` holds the parameters by plain name."""

    model: nn.Module
    forward: Callable[[], Any]
    backward: Callable[[Any], None]
    apply: Callable[[], object]
    zero: Callable[[], object]

    def step(self) -> None:
        self.backward(self.forward())
        self.apply()
        self.zero()

    def gradients(self) -> dict[str, Tensor]:
        """One step; `.grad` as the optimizer saw it (zeros where an engine left none)."""
        self.backward(self.forward())
        self.apply()
        found = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }
        self.zero()
        return found


Make = Callable[[Workload, Settings], Engine]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the tables call an engine, and whom it belongs to.

    family: "plain", "ours", "opacus" or "peer". rows: it holds all per-sample gradients at once.
    """

    label: str
    family: str
    make: Make
    groups: str = "all"
    rows: bool = False
    noisy: bool = True


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def sgd(model: nn.Module, settings: Settings) -> torch.optim.SGD:
    return torch.optim.SGD(trainable(model), lr=settings.rate)


def plain(workload: Workload, settings: Settings) -> Engine:
    model, x, y = workload.build()
    optimizer = sgd(model, settings)
    return Engine(
        model=model,
        forward=lambda: workload.losses(model(x), y),
        backward=lambda losses: losses.mean().backward(),
        apply=optimizer.step,
        zero=optimizer.zero_grad,
    )


def steelyard(groups: str, *, noisy: bool = True) -> Make:
    def make(workload: Workload, settings: Settings) -> Engine:
        model, x, y = workload.build()
        optimizer = sgd(model, settings)
        weighting = FlatClip(settings.bound)
        rows = PerSample(model, weighting, expected_batch=len(y), groups=groups, strict=True)
        attach(optimizer, rows, Gaussian(settings.sigma if noisy else 0.0))
        return Engine(
            model=model,
            forward=lambda: workload.losses(model(x), y),
            backward=rows.backward,
            apply=optimizer.step,
            zero=optimizer.zero_grad,
        )

    return make


OURS = {
    "plain": Kind(label="plain", family="plain", make=plain, groups="-", noisy=False),
    "steelyard": Kind(label="steelyard", family="ours", make=steelyard("all")),
    "steelyard-quiet": Kind(
        label="steelyard without noise",
        family="ours",
        make=steelyard("all", noisy=False),
        noisy=False,
    ),
    "steelyard-layer": Kind(
        label="steelyard", family="ours", make=steelyard("layer"), groups="layer"
    ),
}
