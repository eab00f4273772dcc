"""The mechanism of `PrivateTasks`: one Gaussian for each private row, and only then the weighting.

| symbol | here |
|---|---|
| ghat_i, tau_i | row i and the standard deviation of the noise in each of its numbers |
| d | numbers in a row |

    row i     ghat_i = g_i + tau_i z_i                                     z_i independent, charged
    Gram      G_ii = max(||ghat_i||^2 - d tau_i^2, sqrt(2 d) tau_i^2),  |G_ij| <= sqrt(G_ii G_jj)
    step      sum_i w_i(G) ghat_i                                          post-processing
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from steelyard.filters.gaussian import Gaussian, checked_multiplier
from steelyard.rows.gram import combine, gram
from steelyard.rows.task_record import TaskRecord, record
from steelyard.rows.tasks import Informed
from steelyard.types import Clipped, Noised, Removable, Rows, RowWeighting, Weighting
from steelyard.weightings.clip import FlatClip

KIND = "tasks"


@dataclass(frozen=True, kw_only=True)
class PrivateTask:
    """clip: of its samples. noise_multiplier: sigma_i. expected_batch: B_i, a constant.
    sampling_probability: q_i, of its own data set: B_i / n_i, or the rate at which one batch is
    drawn from all data before it is parted into tasks. Raises ValueError for values out of range.
    """

    clip: RowWeighting
    noise_multiplier: float
    expected_batch: float
    sampling_probability: float

    def __post_init__(self) -> None:
        checked_multiplier(self.noise_multiplier)
        _checked_batch(self.expected_batch)
        if not 0 < self.sampling_probability <= 1:
            raise ValueError(
                f"a sampling probability is in (0, 1], found {self.sampling_probability}"
            )

    @property
    def sensitivity(self) -> float:
        return self.clip.bound / self.expected_batch


@dataclass(frozen=True, kw_only=True)
class PublicTask:
    """A task of public samples alone: no noise, no charge, and the ledger's report says so.

    expected_batch: what their sum is divided by. clip: of its samples; default: not at all.
    """

    expected_batch: float
    clip: RowWeighting = field(default_factory=lambda: FlatClip(math.inf))
    noise_multiplier: ClassVar[float] = 0.0
    sensitivity: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        _checked_batch(self.expected_batch)


Task = PrivateTask | PublicTask


def _checked_batch(expected: float) -> None:
    if not 0 < expected < math.inf:
        raise ValueError(f"a task's expected batch must be positive, found {expected}")


class TaskNoise:
    """What `attach` gets beside its `PrivateTasks`, alone or first in a chain.

    Each private task is charged (sigma_i, q_i) in every step; a public one has neither noise nor
    charge. Refuses plans that are not for Poisson sampling: `Ledger` counts one fixed order only.
    """

    sampling = "poisson"

    def __init__(
        self,
        rows: Rows,
        weighting: Weighting,
        tasks: Mapping[str, Task],
        seed: int | None = None,
    ):
        self._rows, self._weighting, self._tasks = rows, weighting, dict(tasks)
        self._private = {n: task for n, task in tasks.items() if isinstance(task, PrivateTask)}
        self._noises = {  # two rows with the same noise would cancel it
            name: Gaussian(task.noise_multiplier, seed=None if seed is None else seed + place)
            for place, (name, task) in enumerate(self._private.items())
        }
        self._connections: set[_Connection] = set()
        self.record: TaskRecord | None = None

    @property
    def connected(self) -> bool:
        """Whether an optimizer's steps go through here."""
        return bool(self._connections)

    def connect(self, optimizer: Optimizer, rows: Any) -> Sequence[Removable]:
        """Called by `attach`. Raises ValueError for other rows than its own: their gradient would
        be noised by the tasks' sensitivities."""
        if rows is not self._rows:
            raise ValueError(
                "this noise is that of private tasks, and the attached rows are others: write "
                "attach(optimizer, private, private.noise)"
            )
        return [_Connection(self._connections)]

    @property
    def noise_multiplier(self) -> float:
        """The smallest of the private tasks'; what is charged is `charges`."""
        return min(task.noise_multiplier for task in self._private.values())

    @property
    def seeded(self) -> bool:
        return any(noise.seeded for noise in self._noises.values())

    @property
    def assumption(self) -> str:
        """What the ledger's report says of the batches."""
        parts = [
            f"{name} (noise multiplier {task.noise_multiplier:g}, each of its samples with "
            f"probability {task.sampling_probability:.6g})"
            for name, task in self._private.items()
        ]
        public = [name for name in self._tasks if name not in self._private]
        said = f"Every step releases one gradient for each of: {', '.join(parts)}."
        return f"{said} Assumed public, without noise: {', '.join(public)}." if public else said

    def charges(self, q: float) -> list[tuple[float, float]]:
        """(sigma_i, q_i) of every release in one step; q, the plan's, is none of them."""
        return [
            (task.noise_multiplier, task.sampling_probability) for task in self._private.values()
        ]

    @torch.no_grad()
    def privatise(self, gradient: Clipped) -> Noised:
        names, count = list(self._tasks), len(gradient.tensors) // len(self._tasks)
        rows, taus = [], []
        for place, (name, task) in enumerate(self._tasks.items()):
            row = gradient.tensors[place * count : (place + 1) * count]
            sigma = task.noise_multiplier
            if name in self._noises:
                row = self._noises[name].privatise(Clipped(row, task.sensitivity)).tensors
            rows.append(list(row))
            taus.append(sigma * task.sensitivity if sigma else 0.0)
        tau = torch.tensor(taus, dtype=torch.float64)
        matrix = debiased(gram(rows), tau, sum(t.numel() for t in rows[0]))
        weights = self._weights(names, matrix)
        combined = combine(rows, weights.tolist())
        self.record = record(names, None, matrix, weights.tolist())
        std, least = float((weights * tau).norm()), self.noise_multiplier
        sensitivity = std / least if least else math.inf if std else 0.0
        return Noised([t for t in combined if t is not None], sensitivity, least)

    def _weights(self, names: list[str], matrix: Tensor) -> Tensor:
        rule: Any = self._weighting
        if isinstance(rule, Informed):
            rule = rule.given(names, torch.full((len(names),), math.nan))  # losses are private
        weights = torch.as_tensor(rule(matrix.clone())).detach().to("cpu", torch.float64)
        if weights.shape != (len(names),) or not bool(torch.isfinite(weights).all()):
            raise ValueError(
                f"{type(self._weighting).__name__} gave weights {weights.tolist()} for "
                f"{len(names)} rows: it must give one finite number for each"
            )
        return weights

    def state_dict(self) -> dict[str, Any]:
        """Private, as the states of the noise are."""
        return {"kind": KIND, "noises": {n: g.state_dict() for n, g in self._noises.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved. Raises ValueError for the state of other tasks."""
        if state.get("kind") != KIND or list(state["noises"]) != list(self._noises):
            raise ValueError(
                f"not the noise of the tasks {', '.join(self._noises)}: found "
                f"{', '.join(state.get('noises', state))}"
            )
        for name, saved in state["noises"].items():
            self._noises[name].load_state_dict(saved)


class _Connection:
    """One entry in the set of an `attach`, until it is removed."""

    def __init__(self, known: set[_Connection]):
        self._known = known
        known.add(self)

    def remove(self) -> None:
        self._known.discard(self)


def debiased(matrix: Tensor, tau: Tensor, d: int) -> Tensor:
    """The Gram matrix [k, k] of the rows without their noise: E ||g + tau z||^2 = ||g||^2 + d tau^2.

    The estimate of ||g||^2 is off by sqrt(2 d) tau^2 and more, and may come out negative: it is
    taken to be at least that, so that no weight is larger than what the noise allows to tell. Inner
    products have no bias; they are kept within what the norms allow.
    """  # noqa: E501
    squares = tau.square()
    clean = torch.maximum(matrix.diagonal() - d * squares, math.sqrt(2 * d) * squares)
    most = (clean[:, None] * clean[None, :]).sqrt()
    out = torch.minimum(torch.maximum(matrix, -most), most)
    return out - torch.diag(out.diagonal()) + torch.diag(clean)
