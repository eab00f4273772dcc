"""Several private losses in one step: each row clipped and noised first, weighed afterwards.

    private = PrivateTasks(PerSample(model, ...), NGDiff(), {"retain": PrivateTask(...), ...})
    attach(optimizer, private, private.noise, ledger=ledger)
    private.backward(retain=losses [B_r], forget=losses [B_f]);  optimizer.step()

| symbol | here |
|---|---|
| s_i, sigma_i | L2 sensitivity R_i / B_i of row i's clipped mean; its noise multiplier |
| tau_i | standard deviation of the noise in each coordinate of row i, sigma_i s_i |
| d | numbers in a row |

    row i     ghat_i = (sum of clipped samples) / B_i + tau_i z            charged (sigma_i, q_i)
    Gram      G = <ghat_i, ghat_j>, less d tau_i^2 on the diagonal         the noise's own norm
    step      sum_i w_i(G) ghat_i                                          post-processing

A weighting of several rows has no sensitivity, so it only ever sees rows that are released. All
releases of a step are charged to one ledger, in full: right also where a sample is in two sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.filters.gaussian import Gaussian, checked_multiplier
from steelyard.rows.gram import combine, gram
from steelyard.rows.losses import Losses
from steelyard.rows.per_sample import PerSample
from steelyard.rows.task_record import TaskRecord, record
from steelyard.rows.tasks import Informed
from steelyard.types import Clipped, Noised, Points, RowWeighting, Weighting

KIND = "tasks"


@dataclass(frozen=True, kw_only=True)
class PrivateTask:
    """clip: of its samples. noise_multiplier: sigma_i. expected_batch: B_i. sampling_probability:
    q_i, at which each sample of its data set joins a step; None: that of `attach`."""

    clip: RowWeighting
    noise_multiplier: float
    expected_batch: float
    sampling_probability: float | None = None

    def __post_init__(self) -> None:
        checked_multiplier(self.noise_multiplier)
        q = self.sampling_probability
        if q is not None and not 0 < q <= 1:
            raise ValueError(f"a sampling probability is in (0, 1], found {q}")

    @property
    def sensitivity(self) -> float:
        return self.clip.bound / self.expected_batch


class PrivateTasks:
    """Rows for `attach`, with `noise` as the mechanism (first in a chain: filters may follow).

    rows: the engine, for its model, groups and proof; its own clipping and batch are not used.
    weighting: as of `Tasks`, without those that need losses or the optimizer. seed: tests only.

    Guarantees: each row alone is the Gaussian mechanism; the noise of two rows is independent; the
    rest is post-processing. NGDiff's and BLUR's first-order guarantees hold for the noised rows.

    | case | behaviour |
    |---|---|
    | an empty batch | `backward(forget=empty losses [0], ...)`: released and charged all the same |
    | several `backward` before a step | micro-batches: sums add up; each call names every task |
    | no row distinguishable from its noise | norms are at least that error, see `debiased` |
    | a sample that is not finite | FloatingPointError; nothing was released |

    Raises ValueError for names that do not fit, and for such weightings.
    """

    def __init__(
        self,
        rows: PerSample,
        weighting: Weighting,
        tasks: Mapping[str, PrivateTask],
        *,
        seed: int | None = None,
    ):
        if not tasks:
            raise ValueError("no task: give {name: PrivateTask(...)}")
        if getattr(weighting, "metric", None) or getattr(weighting, "needs_losses", False):
            raise ValueError(
                f"{weighting} looks at losses or the optimizer's own step, and private tasks "
                "release gradients only: use NGDiff, BLUR without a metric, or fixed weights"
            )
        self._rows, self._tasks = rows, dict(tasks)
        self._sums = {
            name: rows.new_sum(expected_batch=task.expected_batch, weighting=task.clip)
            for name, task in self._tasks.items()
        }
        self._armed = False
        self.noise = TaskNoise(weighting, self._tasks, seed)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self._rows.parameters

    @property
    def expected_batch(self) -> float:
        """Of the first task."""
        return float(next(iter(self._tasks.values())).expected_batch)

    @property
    def armed(self) -> bool:
        return self._armed

    @property
    def points(self) -> Points | None:
        """Where a filter wants the gradients evaluated."""
        return self._rows.points

    @points.setter
    def points(self, points: Points | None) -> None:
        self._rows.points = points

    @property
    def record(self) -> TaskRecord | None:
        """Of the last step, from released rows: debiased norms, weights; no losses."""
        return self.noise.record

    def backward(self, /, **losses: Losses) -> None:
        """Losses [B_i] of every task, one per sample, or functions that return them."""
        if set(losses) != set(self._tasks):
            raise ValueError(
                f"the tasks are {', '.join(self._tasks)}, found losses for "
                f"{', '.join(losses) or 'none'}: give each, an empty batch's [0] too"
            )
        try:
            for name, total in self._sums.items():
                self._rows.backward(losses[name], into=total)
        except BaseException:
            self.discard()
            raise
        self._armed = True

    def take(self) -> Clipped:
        """The clipped means of all tasks, one behind the other; disarms."""
        if not self._armed:
            raise RuntimeError("no backward(task=losses, ...) since the last step")
        tensors = [t for total in self._sums.values() for t in total.tensors()]
        wrong = [name for name, total in self._sums.items() if not total.finite]
        self.discard()
        if wrong:
            raise FloatingPointError(
                f"a sample's gradient of {', '.join(wrong)} is not finite (nan or inf): check the "
                "inputs, or lower the learning rate; nothing was released"
            )
        together = math.hypot(*(task.sensitivity for task in self._tasks.values()))
        return Clipped(tensors, together)

    def discard(self) -> None:
        """Forget the sums since the last step."""
        self._armed = False
        for total in self._sums.values():
            total.clear()


class TaskNoise:
    """The mechanism of `PrivateTasks`: one Gaussian for each row, then the weighting."""

    def __init__(
        self, weighting: Weighting, tasks: Mapping[str, PrivateTask], seed: int | None = None
    ):
        self._weighting, self._tasks = weighting, dict(tasks)
        self._noises = {  # two rows with the same noise would cancel it
            name: Gaussian(task.noise_multiplier, seed=None if seed is None else seed + place)
            for place, (name, task) in enumerate(self._tasks.items())
        }
        self.record: TaskRecord | None = None

    @property
    def noise_multiplier(self) -> float:
        """The smallest of the tasks'; what is charged is `charges`."""
        return min(task.noise_multiplier for task in self._tasks.values())

    @property
    def seeded(self) -> bool:
        return any(noise.seeded for noise in self._noises.values())

    def charges(self, q: float) -> list[tuple[float, float]]:
        """(sigma_i, q_i) of every release in one step."""
        return [
            (t.noise_multiplier, q if t.sampling_probability is None else t.sampling_probability)
            for t in self._tasks.values()
        ]

    @torch.no_grad()
    def privatise(self, gradient: Clipped) -> Noised:
        names, count = list(self._tasks), len(gradient.tensors) // len(self._tasks)
        rows, taus = [], []
        for place, (name, task) in enumerate(self._tasks.items()):
            own = gradient.tensors[place * count : (place + 1) * count]
            released = self._noises[name].privatise(Clipped(own, task.sensitivity))
            rows.append(list(released.tensors))
            sigma = task.noise_multiplier
            taus.append(sigma * task.sensitivity if sigma else 0.0)
        tau = torch.tensor(taus, dtype=torch.float64)
        matrix = debiased(gram(rows), tau, sum(t.numel() for t in rows[0]))
        rule: Any = self._weighting
        rule = rule.given(names, tau) if isinstance(rule, Informed) else rule
        weights = torch.as_tensor(rule(matrix.clone())).detach().to("cpu", torch.float64)
        combined = combine(rows, weights.tolist())
        self.record = record(names, None, matrix, weights.tolist())
        std, least = float((weights * tau).norm()), self.noise_multiplier
        sensitivity = std / least if least else math.inf if std else 0.0
        return Noised([t for t in combined if t is not None], sensitivity, least)

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
