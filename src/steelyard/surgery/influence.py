"""How far the loss falls if one group of parameters alone moves at its best rate: AdaPEFT, part I.

Xu and Bu, "Adaptive parameter-efficient fine-tuning via Hessian-informed subset selection",
arXiv 2505.12579, section 2; Hi-DLR, arXiv 2501.06954, eq. 5.1 (PPI).

| symbol | here |
|---|---|
| n_k | `sizes`: trainable parameters of group k |
| b_k, a_k | slope, curvature along group k's part of the optimizer's step |
| v_k = b_k^2 / 2a_k | `values`, one for each fit that is believed |
| PPI_k = v_k / n_k | `density`, of the median v_k |

    every `every` steps (training all groups), or at the start again and again (probe only):
        the optimizer's step of one batch, its displacement delta_k in every group
        one parabola along every delta_k, on one fresh batch

v_k depends on the optimizer: Adam's step makes small gradients count. Measure with the one that
will train.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard.filters.attach import is_private
from steelyard.steps.displacements import Displacements
from steelyard.steps.parabolas import Measured, Parabolas, refuse_drawing
from steelyard.steps.partition import Members, partition
from steelyard.steps.probing import Evaluator, micro_batches
from steelyard.steps.quadratic import Policy

LEAST_FITS = 3
Batch = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """One full fit over the groups that were believed: slopes b [K], curvature A [K, K]."""

    names: tuple[str, ...]
    b: NDArray[np.float64]
    A: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What `fits` fits said of every group.

    shapes: group -> name of each of its parameters -> shape. values: v_k of the fits that were
    believed, in units of the loss per step. reasons: why the others were not. total: parameters of
    the whole model, frozen ones included. couplings: full fits, where asked for.
    """

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    values: Mapping[str, tuple[float, ...]]
    reasons: Mapping[str, tuple[str, ...]]
    fits: int
    total: int
    couplings: tuple[Coupling, ...] = ()

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    @property
    def sizes(self) -> dict[str, int]:
        """n_k."""
        return {
            name: sum(math.prod(shape) for shape in shapes.values())
            for name, shapes in self.shapes.items()
        }

    @property
    def acceptance(self) -> dict[str, float]:
        """Share of the fits that were believed."""
        return {name: len(self.values[name]) / self.fits for name in self.names}

    @property
    def gains(self) -> dict[str, float]:
        """Median of v_k; nan with fewer than three believed fits, so that it is never chosen."""
        return {
            name: statistics.median(found) if len(found) >= LEAST_FITS else math.nan
            for name, found in ((name, self.values[name]) for name in self.names)
        }

    @property
    def density(self) -> dict[str, float]:
        """PPI_k, the gain per parameter."""
        sizes = self.sizes
        return {name: gain / sizes[name] for name, gain in self.gains.items()}

    def __str__(self) -> str:
        """A table, densest first."""
        rows = ["group, parameters, gain per step, gain per parameter, fits believed"]
        gains, sizes, density = self.gains, self.sizes, self.density
        for name in sorted(self.names, key=lambda n: (math.isnan(density[n]), -density[n], n)):
            believed = f"{len(self.values[name])} of {self.fits}"
            rows.append(
                f"{name}, {sizes[name]:,}, {gains[name]:.3g}, {density[name]:.3g}, {believed}"
            )
        return "\n".join(rows)


def influence(
    model: nn.Module,
    losses_of_batches: Iterable[Batch],
    optimizer: Optimizer,
    groups: Members,
    *,
    fits: int = 10,
    every: int | None = None,
    full: bool = False,
    policy: Policy | None = None,
    training: str = "eval",
    keep: bool = False,
    seed: int = 0,
) -> Influence:
    """Measure the influence of every group: b_k^2 / 2a_k along the optimizer's own step.

    losses_of_batches: functions without arguments that compute the losses [B] of one batch each, by
    the model as it is then; drawn one after the other, for gradients and for probes in turn.
    groups: name -> (name, parameter) pairs, as `by_role` and `by_pattern` return them; they must
    hold what the optimizer trains. every: None: all fits at the model's own parameters (probe
    only), 2 x fits batches; else a training run of fits x every steps with a fit every `every`
    steps, (every + 1) x fits batches. full: A_kj too, from K(K-1)/2 more forwards. keep: leave the
    model and optimizer where the run ended. training, seed: as of `Evaluator`.

    Guarantees: without keep, parameters, buffers, modes and the optimizer's state are as before,
    bit for bit, errors included; gradients are None. Cost of a fit: a training step, and
    4 K + 1 forwards for K groups that move.

    | case | behaviour |
    |---|---|
    | no curvature, uphill, noise, no parabola | the fit does not count; `reasons` |
    | a group that does not move (LoRA's A while B = 0) | no fit; group A and B together |
    | two halves of one group | densities as of the whole, if they are alike and not coupled |

    Raises ValueError for too few batches, a private optimizer, groups that do not fit.
    """
    if is_private(optimizer):
        raise ValueError(
            "the optimizer is private, and probes see losses without noise: measure on public data "
            "with an optimizer of its own, and train privately afterwards"
        )
    if fits < 1 or (every is not None and every < 1):
        raise ValueError(f"fits and every are at least 1, found {fits} and {every}")
    parts = partition(optimizer, groups)
    batches = _Batches(losses_of_batches, fits * (2 if every is None else every + 1))
    parabolas = Parabolas(list(parts), Policy() if policy is None else policy)
    found: list[Measured] = []
    with _as_before(model, optimizer, keep):
        for fit in range(fits):
            for _ in range((every or 1) - 1):
                _backward(optimizer, batches.next())
                optimizer.step()
            _backward(optimizer, batches.next())
            moved = Displacements.from_step(optimizer, parts)
            evaluator = Evaluator(
                model, micro_batches(batches.next()), training=training, seed=seed + fit,
                per_sample=True,
            )  # fmt: skip
            if fit == 0:
                refuse_drawing(evaluator)
            found.append(parabolas.measure(moved, evaluator, pairs=full))
            if every is None:
                moved.commit([0.0] * moved.size)
            for name, one in found[-1].parabolas.items():
                if not one.accepted:  # the next probes of this group reach farther, or less far
                    parabolas.reaches[name].rejected(one.fitted.points, one.fitted, booting=False)
    return _collect(model, parts, found)


def transfer(influence: Influence, groups: Members, total: int | None = None) -> Influence:
    """The same gains with the sizes of a larger model's groups, to choose among those.

    groups: of the larger model, name -> (name, parameter) pairs; those that were not measured are
    refused, those that it lacks are dropped. total: its number of parameters; None: of the groups.
    The claim of the paper is that the ranking holds, not the gains. Raises ValueError.
    """
    shapes = {
        name: {n: tuple(p.shape) for n, p in members}
        for name, members in groups.items()
        if len(members)
    }
    if unknown := [name for name in shapes if name not in influence.shapes]:
        raise ValueError(
            f"group {unknown[0]!r} was not measured: measured are {', '.join(influence.names)}"
        )
    moved = replace(
        influence,
        shapes=shapes,
        values={name: influence.values[name] for name in shapes},
        reasons={name: influence.reasons[name] for name in shapes},
    )
    return replace(moved, total=sum(moved.sizes.values()) if total is None else total)


def _collect(
    model: nn.Module, parts: Mapping[str, list[Tensor]], found: list[Measured]
) -> Influence:
    known = {id(p): name for name, p in model.named_parameters()}
    values: dict[str, list[float]] = {name: [] for name in parts}
    reasons: dict[str, list[str]] = {name: [] for name in parts}
    for measured in found:
        for name in parts:
            one = measured.parabolas.get(name)
            if one is not None and one.accepted:
                values[name].append(one.value)
            else:
                reasons[name].append("it did not move" if one is None else one.reason)
    couplings = []
    for measured in found:
        kept = [k for k, name in enumerate(measured.names) if measured.parabolas[name].accepted]
        if measured.coupling is not None and kept:
            b, A = measured.coupling.b[0][kept], measured.coupling.A[0][np.ix_(kept, kept)]
            couplings.append(Coupling(names=tuple(measured.names[k] for k in kept), b=b, A=A))
    return Influence(
        shapes={k: {known[id(p)]: tuple(p.shape) for p in ps} for k, ps in parts.items()},
        values={name: tuple(v) for name, v in values.items()},
        reasons={name: tuple(r) for name, r in reasons.items()},
        fits=len(found),
        total=sum(p.numel() for p in model.parameters()),
        couplings=tuple(couplings),
    )


class _Batches:
    def __init__(self, source: Iterable[Batch], needed: int):
        self._iterator, self._needed, self._used = iter(source), needed, 0

    def next(self) -> Batch:
        for losses in self._iterator:
            self._used += 1
            return losses
        raise ValueError(
            f"losses_of_batches ended after {self._used} batches, {self._needed} are needed: give "
            "more, or fewer fits"
        )


def _backward(optimizer: Optimizer, losses: Batch) -> None:
    optimizer.zero_grad()
    losses().mean().backward()


@contextmanager
def _as_before(model: nn.Module, optimizer: Optimizer, keep: bool) -> Iterator[None]:
    tensors = [*model.parameters(), *model.buffers()]
    copies = [] if keep else [t.detach().clone() for t in tensors]
    state = None if keep else copy.deepcopy(optimizer.state_dict())
    try:
        yield
    finally:
        optimizer.zero_grad()
        if state is not None:
            with torch.no_grad():
                for tensor, saved in zip(tensors, copies, strict=True):
                    tensor.copy_(saved)
            optimizer.load_state_dict(state)
