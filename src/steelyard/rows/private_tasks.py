"""Several private losses in one step: each row clipped and noised first, weighed afterwards.

    private = PrivateTasks(PerSample(model, ...), NGDiff(), {"forget": PrivateTask(...), ...})
    attach(optimizer, private, private.noise, ledger=ledger)
    private.backward(retain=losses [B_r], forget=losses [B_f]);  optimizer.step()

| symbol | here |
|---|---|
| s_i, sigma_i | L2 sensitivity R_i / B_i of row i's clipped mean; its noise multiplier |
| tau_i | standard deviation of the noise in each number of row i, sigma_i s_i |
| q_i | probability at which each sample of task i's own data set joins a step |

    row i     ghat_i = (sum of clipped samples) / B_i + tau_i z            charged (sigma_i, q_i)
    Gram      G = <ghat_i, ghat_j>, less the noise on the diagonal         see `task_noise`
    step      sum_i w_i(G) ghat_i                                          post-processing

A weighting of several rows has no sensitivity, so it only ever sees rows that are released. All
releases of a step are charged to one ledger, in full: right also where a sample is in two sets, and
more than is spent where the sets are disjoint. The batches of a task are Poisson samples of its own
set, which nothing here can check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from steelyard.rows.losses import Losses
from steelyard.rows.per_sample import PerSample
from steelyard.rows.task_noise import PrivateTask, Task, TaskNoise
from steelyard.rows.task_record import TaskRecord
from steelyard.rows.tasks import Informed
from steelyard.types import Clipped, Points, Stateful, Weighting
from steelyard.weightings.from_torchjd import refuse_misread


class PrivateTasks:
    """Rows for `attach`, with `noise` as the mechanism (first in a chain: filters may follow).

    rows: the engine, for its model, groups and proof; its own clipping and batch are not used.
    weighting: as of `Tasks`, without those that need losses or the optimizer. tasks: one of them
    private at least. seed: tests only. A ledger's plan must expect the tasks' batches together;
    what it is charged are their own sigma_i and q_i.

    Guarantees: each row alone is the Gaussian mechanism; the noise of two rows is independent; the
    rest is post-processing. NGDiff's and BLUR's first-order guarantees hold for the noised rows.

    | case | behaviour |
    |---|---|
    | an empty batch | `backward(forget=empty losses [0], ...)`: released and charged all the same |
    | several `backward` before a step | micro-batches: sums add up; each call names every task |
    | a task whose samples are all public | `PublicTask`; one private sample makes it private |
    | a fixed order of batches ("unamplified") | refused: two orders have no accounting here |
    | no row distinguishable from its noise | norms are at least that error, see `debiased` |
    | a sample that is not finite | FloatingPointError; nothing was released |

    Raises ValueError for names that do not fit, and for such weightings; RuntimeError where another
    mechanism than `noise` is attached.
    """

    def __init__(
        self,
        rows: PerSample,
        weighting: Weighting,
        tasks: Mapping[str, Task],
        *,
        seed: int | None = None,
    ):
        if not any(isinstance(task, PrivateTask) for task in tasks.values()):
            raise ValueError(
                "no private task: give {name: PrivateTask(...)}, or Tasks for public data"
            )
        remembers = isinstance(weighting, Informed) and isinstance(weighting, Stateful)
        needs_losses = remembers or getattr(weighting, "needs_losses", False)
        if needs_losses or getattr(weighting, "metric", None):
            raise ValueError(
                f"{type(weighting).__name__} looks at losses or the optimizer's own step, and "
                "private tasks release gradients only: use NGDiff, BLUR without a metric, or fixed "
                "weights"
            )
        refuse_misread(weighting)
        self._rows, self._tasks = rows, dict(tasks)
        self._sums = {
            name: rows.new_sum(expected_batch=task.expected_batch, weighting=task.clip)
            for name, task in self._tasks.items()
        }
        self._armed = False
        self.noise = TaskNoise(self, weighting, self._tasks, seed)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self._rows.parameters

    @property
    def expected_batch(self) -> float:
        """Of all tasks together."""
        return math.fsum(task.expected_batch for task in self._tasks.values())

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
        if not self.noise.connected:
            self.discard()
            raise RuntimeError(
                "private tasks are noised one by one, by nothing else than their own mechanism: "
                "write attach(optimizer, private, private.noise)"
            )
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
