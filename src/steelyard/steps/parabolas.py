"""One parabola for each group of parameters, from one batch: what Hi-DLR and AdaPEFT measure.

Xu, Bu, Zhang, Barnett, "A Hessian-informed hyperparameter optimization for differential learning
rate" (Hi-DLR), arXiv 2501.06954, eqs 3.1-3.3.

| symbol | here |
|---|---|
| delta_k | displacement of one real optimizer step in group k, zero elsewhere |
| c | `LEVELS`: probe positions in units of delta_k |
| h_k | `radius` of group k, kept between fits |
| b_k, a_k | `slope`, `curvature` along delta_k |
| A_kj | `coupling`, where pairs are probed |

    y_kc = L(w + c h_k delta_k) - L0        for every group k and level c, all on one batch
    b_k, a_k = anchored least squares of y_kc = -b_k c h_k + a_k (c h_k)^2 / 2
    A_kj from L(w + h_k delta_k + h_j delta_j), for every pair

h_k is kept from fit to fit (`Reach`): larger where the curvature was lost in rounding noise, as
that of biases is, which move a loss by very little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from steelyard.steps.displacements import Displacements
from steelyard.steps.minimum import in_box
from steelyard.steps.probing import Evaluator, probe
from steelyard.steps.quadratic import Points, Policy, Quadratic, fit
from steelyard.steps.reach import Reach

LEVELS = (-2.0, -1.0, 1.0, 2.0)
Look = Callable[[Displacements, Evaluator, NDArray[np.float64]], Points]


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """L(w + x delta_k) = L0 - slope x + curvature x^2 / 2; x = 1 is the optimizer's step.

    reason: why it is not to be believed; "" if it is.
    """

    slope: float
    curvature: float
    r2: float
    radius: float
    reason: str
    fitted: Quadratic = field(repr=False, compare=False)

    @property
    def accepted(self) -> bool:
        return not self.reason

    @property
    def multiplier(self) -> float:
        """b / a: the best multiple of the step. nan unless accepted."""
        return self.slope / self.curvature if self.accepted else math.nan

    @property
    def value(self) -> float:
        """b^2 / 2a: how far the loss falls there. nan unless accepted."""
        return 0.5 * self.slope * self.multiplier


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one batch said of some groups. start: L0, nan if private. coupling: a full fit over
    `names`, or None."""

    parabolas: Mapping[str, Parabola]
    start: float
    coupling: Quadratic | None

    @property
    def names(self) -> list[str]:
        return list(self.parabolas)


class Parabolas:
    """Fits along the axes of groups, with a reach for each that is kept between them.

    policy: when a fit is believed. shrink_after: see `Reach`.
    """

    def __init__(self, names: Sequence[str], policy: Policy, *, shrink_after: int = 3):
        self.policy = policy
        self.reaches = {name: Reach(shrink_after, policy.least_snr) for name in names}

    def measure(
        self,
        displacements: Displacements,
        evaluator: Evaluator,
        names: Sequence[str] | None = None,
        *,
        pairs: bool = False,
        unit: float = 1.0,
        look: Look = probe,
    ) -> Measured:
        """Fit the groups `names` (None: all), those that do not move left out.

        unit: eta in steps, where the step that was taken is shorter than eta: points and parabolas
        are in units of eta. look: `probe`, or a `PrivateProbe`'s.

        Evaluates 4 points per moving group, one for each pair of them with `pairs`, and
        L0; nothing if none moves. The parameters are left as they were on entry.
        """
        order = displacements.names
        moving = dict(zip(order, displacements.moving, strict=True))
        names = [name for name in (order if names is None else names) if moving[name]]
        if not names:
            return Measured(parabolas={}, start=math.nan, coupling=None)
        columns = [order.index(name) for name in names]
        h = np.array([self.reaches[name].radius for name in names])
        e = np.eye(len(names)) * h  # rows h_k e_k
        rows = [c * row for row in e for c in LEVELS]
        if pairs:
            rows += [a + b for a, b in itertools.combinations(e, 2)]
        x = np.array(rows).reshape(-1, len(names))  # [m, groups]
        everywhere = np.zeros((len(x), displacements.size))
        everywhere[:, columns] = x * unit
        found = look(displacements, evaluator, everywhere)
        points = Points(
            found.x[:, columns] / unit, found.y[:, :1], found.sigma[:1], found.exact_start
        )
        parabolas = {name: self._along(points, k, name) for k, name in enumerate(names)}
        coupling = fit(points, "full") if pairs else None
        start = math.nan if found.exact_start else float(found.y[0, 0])
        return Measured(parabolas=parabolas, start=start, coupling=coupling)

    def _along(self, points: Points, k: int, name: str) -> Parabola:
        axis = ~np.delete(points.x, k, 1).any(1)  # x = 0 and the points on axis k
        x, y = points.x[axis][:, [k]], points.y[axis]
        return _parabola(
            Points(x, y, points.sigma, points.exact_start), self.policy, self.reaches[name].radius
        )


def along(
    displacements: Displacements,
    evaluator: Evaluator,
    x: NDArray[np.float64],
    policy: Policy,
    *,
    start: float,
    look: Look = probe,
) -> Parabola:
    """The parabola along the combined displacement sum_k x_k delta_k, through L0 = start.

    Two evaluations, at -1 and 1: exact for a quadratic; without a degree of freedom, so that R^2
    says nothing.
    """
    points = np.stack([-x, x])
    if look is probe:
        found = probe(displacements, evaluator, points, start=start)
    else:
        found = look(displacements, evaluator, points)
    line = np.array([[0.0], [-1.0], [1.0]])
    return _parabola(Points(line, found.y[:, :1], found.sigma[:1], found.exact_start), policy)


def multipliers(
    measured: Measured, names: Sequence[str], clip: tuple[float, float], ridge: float = 0.0
) -> NDArray[np.float64]:
    """s [names]: b_k / a_k within the clip where a parabola is believed, else 1; where a coupling
    was measured, the minimum of the full model within the clip, the other groups at 1.

    ridge: added to A's diagonal, in units of its mean. A that is not positive definite counts as
    not measured.
    """
    s = np.ones(len(names))
    believed = [name for name, one in measured.parabolas.items() if one.accepted]
    at = [names.index(name) for name in believed]
    s[at] = [np.clip(measured.parabolas[name].multiplier, *clip) for name in believed]
    if measured.coupling is None or not believed:
        return s
    inside = np.array([measured.parabolas[name].accepted for name in measured.names])
    b, A = measured.coupling.b[0], measured.coupling.A[0]
    A = A + ridge * np.diag(A).mean() * np.eye(len(A))
    b = b[inside] - A[np.ix_(inside, ~inside)].sum(1)
    A = A[np.ix_(inside, inside)]
    if np.isfinite(b).all() and np.isfinite(A).all() and np.linalg.eigvalsh(A)[0] > 0:
        s[at] = in_box(b, A, *clip)
    return s


def _parabola(points: Points, policy: Policy, radius: float = 1.0) -> Parabola:
    q = fit(points, "scalar")
    (verdict,) = policy.judge(q)
    return Parabola(
        slope=float(q.b[0, 0]), curvature=float(q.a[0, 0]), r2=float(q.r2[0]), radius=radius,
        reason=verdict.reason, fitted=q,
    )  # fmt: skip


def refuse_drawing(evaluator: Evaluator) -> None:
    """Raises ValueError where the same parameters have two losses: a batch drawn at each call."""
    with evaluator.kept():
        one, again = float(evaluator()[0]), float(evaluator()[0])
    if abs(one - again) > 1e-4 * abs(one):
        raise ValueError(
            f"two probes at the same parameters gave {one:.6g} and {again:.6g}: draw the batch "
            "outside of the losses function, so that all probes see the same one"
        )
