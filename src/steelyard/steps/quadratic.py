"""Least squares of a local quadratic model, of several losses along a few directions.

One component under GeN (Bu, Xu, arXiv 2407.02772), Hi-DLR and AdaPEFT; NumPy only, float64.

| symbol | here |
|---|---|
| K, J | number of directions, of losses |
| x | coefficients of the directions [K]; w(x) = w_0 + sum_k x_k D_k |
| c0, b, A | intercept [J], slope [J, K], curvature [J, K, K] |
| sigma | noise of one loss evaluation [J] |
| dof | different points beyond the unknowns |

    y_j(x) = c0_j - b_j.x + x'A_j x / 2
    anchored   lstsq of y - y(0) on the columns  -x_k,  x_k^2 / 2,  x_k x_k' (k < k', full only)
    free       lstsq of y on those and a column of ones

D_k is the displacement that an optimizer would take: descent is positive x, and x = 1 is its step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steelyard.steps.minimum import in_ball, in_box

Array = NDArray[np.float64]
STRUCTURES = ("scalar", "diagonal", "full")


@dataclass(frozen=True)
class Points:
    """Losses at probe points: x [n, K], of which one row or more is 0; y [n, J].

    sigma [J]: the noise's standard deviation of one evaluation. exact_start: y(0) has no noise (the
    others are differences from it).
    """

    x: Array
    y: Array
    sigma: Array
    exact_start: bool = False

    def combined(self, weights: ArrayLike) -> Points:
        """The points of sum_j weights_j y_j: weights [J] or [n, J]. sigma: as if the losses' noises
        were one and the same, the largest that it can be."""
        W = np.atleast_2d(np.asarray(weights, np.float64))
        return Points(self.x, self.y @ W.T, np.abs(W) @ self.sigma, self.exact_start)


@dataclass(frozen=True)
class Quadratic:
    """A fit made by `fit`. A loss with a value that is not finite has nan throughout.

    r2 [J]: 1 - residual / total sum of squares; without degrees of freedom it is 1 and says
    nothing. se_b, se_A: standard errors from `sigma`. cond: of the design, columns normalised.
    """

    structure: str
    c0: Array  # [J]
    b: Array  # [J, K]
    A: Array  # [J, K, K]
    r2: Array  # [J]
    dof: int
    sigma: Array  # [J]
    cond: float
    se_b: Array  # [J, K]
    se_A: Array  # noqa: N815  # [J, K, K]
    points: Points
    options: tuple[str, float]  # intercept, ridge

    @property
    def a(self) -> Array:
        """Curvature along each direction, the diagonal of A [J, K]."""
        return np.diagonal(self.A, axis1=1, axis2=2)

    def predict(self, x: ArrayLike) -> Array:
        """x [K] or [n, K] -> y [J] or [n, J]."""
        x = np.asarray(x, np.float64)
        return self.c0 - x @ self.b.T + 0.5 * np.einsum("...k,jkl,...l->...j", x, self.A, x)

    def multiplier(self) -> Array:
        """b / a [J, K]: each direction's minimiser if it moved alone; nan where a = 0."""
        a = self.a
        return np.divide(self.b, a, out=np.full_like(a, math.nan), where=a != 0)

    def value(self) -> Array:
        """The decrease that the minimiser brings: b^2 / 2a [J, K], one for each direction; of a
        full fit b'A^-1 b / 2 [J]. nan where the curvature is not positive."""
        if self.structure == "full":
            return np.array([_full_value(b, A) for b, A in zip(self.b, self.A, strict=True)])
        a = self.a
        return np.divide(self.b**2, 2 * a, out=np.full_like(a, math.nan), where=a > 0)

    def argmin(
        self,
        weights: ArrayLike | None = None,
        *,
        box: tuple[float, float] | None = None,
        trust: float | None = None,
    ) -> Array:
        """x [K] that minimises sum_j weights_j y_j (None: the sum), within lower <= x_k <= upper or
        ||x|| <= trust where given.

        Exact; with a box and curvature that is not positive definite, a local minimum. Raises
        ValueError for a model that is not finite, for box and trust at once, and where there is no
        minimum.
        """
        w = np.ones(len(self.b)) if weights is None else np.asarray(weights, np.float64)
        b, A = w @ self.b, np.einsum("j,jkl->kl", w, self.A)
        if not (np.isfinite(b).all() and np.isfinite(A).all()):
            raise ValueError("the model is not finite (a probe loss was nan or inf): no minimum")
        if box is not None and trust is not None:
            raise ValueError("give box or trust, not both")
        if box is not None:
            return in_box(b, A, *box)
        if trust is not None:
            return in_ball(b, A, trust)
        if (lowest := float(np.linalg.eigvalsh(A)[0])) <= 0:
            raise ValueError(
                f"the curvature is not positive definite (lowest eigenvalue {lowest:.3g}): no "
                "minimum; give box or trust"
            )
        return np.linalg.solve(A, b)

    def combine(self, weights: ArrayLike) -> Quadratic:
        """The model of sum_j weights_j y_j; weights [J], or [n, J] for n of them. Linear."""
        return fit(self.points.combined(weights), self.structure, *self.options)


def fit(
    points: Points, structure: str = "diagonal", intercept: str = "anchored", ridge: float = 0.0
) -> Quadratic:
    """The quadratic model of the points.

    structure: "scalar" (K = 1), "diagonal" or "full". intercept: "anchored" at the mean of the
    losses at x = 0, or "free". ridge: added to the mean squares of the normalised columns.

    Guarantees: exact for quadratic losses and any design of full rank. Raises ValueError for points
    that do not determine the unknowns, or lack x = 0 when anchored.
    """
    X, Y = np.asarray(points.x, np.float64), np.asarray(points.y, np.float64)
    (n, K), J = X.shape, Y.shape[1]
    if structure not in STRUCTURES or intercept not in ("anchored", "free"):
        raise ValueError(
            f"unknown fit {structure!r}, {intercept!r}: choose one of {', '.join(STRUCTURES)}, and "
            "anchored or free"
        )
    if structure == "scalar" and K != 1:
        raise ValueError(f"a scalar fit has one direction, found {K}: choose diagonal or full")
    start = ~X.any(1)  # [n], the rows x = 0
    pairs = list(combinations(range(K), 2)) if structure == "full" else []
    M = np.stack([*(-X.T), *(0.5 * X.T**2), *(X[:, k] * X[:, other] for k, other in pairs)], 1)
    if intercept == "free":
        M, centre = np.column_stack([M, np.ones(n)]), np.eye(n)
        y0 = np.zeros(J)
    elif start.any():
        with np.errstate(invalid="ignore"):
            y0 = Y[start].mean(0)
        centre = np.eye(n) - (0 if points.exact_start else start / start.sum())
    else:
        raise ValueError("an anchored fit needs a point at x = 0")
    scale = np.sqrt((M**2).mean(0))
    scale[scale == 0] = 1
    S = M / scale
    rank, unknowns = np.linalg.matrix_rank(S), S.shape[1]
    if rank < unknowns and ridge == 0:
        raise ValueError(
            f"{len(np.unique(X, axis=0))} different points determine {rank} of the {unknowns} "
            f"unknowns of a {structure} fit: probe more points, or give ridge"
        )
    lift = np.sqrt(ridge * n) * np.eye(unknowns)
    P = (np.linalg.pinv(np.vstack([S, lift]))[:, :n].T / scale).T  # [unknowns, n]
    finite = np.isfinite(Y).all(0)
    R = np.where(finite, Y - np.where(finite, y0, 0), 0)
    beta = P @ R
    rest = R - M @ beta
    total = ((R - R.mean(0)) ** 2).sum(0)
    r2 = 1 - np.divide((rest**2).sum(0), total, out=np.ones(J), where=total > 0)
    se = np.sqrt(((P @ centre) ** 2).sum(1))[:, None] * points.sigma  # [unknowns, J]
    beta, r2 = np.where(finite, beta, math.nan), np.where(finite, r2, math.nan)
    different = len(np.unique(X if intercept == "free" else X[~start], axis=0))
    return Quadratic(
        structure=structure,
        c0=beta[-1] if intercept == "free" else np.where(finite, y0, math.nan),
        b=beta[:K].T.copy(),
        A=_matrix(beta, K, pairs),
        r2=r2,
        dof=different - unknowns,
        sigma=np.asarray(points.sigma, np.float64),
        cond=float(np.linalg.cond(S)),
        se_b=se[:K].T.copy(),
        se_A=_matrix(se, K, pairs),
        points=points,
        options=(intercept, ridge),
    )


class Verdict(NamedTuple):
    accepted: bool
    reason: str  # "" when accepted


@dataclass(frozen=True)
class Policy:
    """When a fit is believed: a > 0 and b > 0, both `least_snr` standard errors or more, and where
    there are degrees of freedom R^2 >= `least_r2`. clip: how far one fit may change a step size.
    """

    least_r2: float = 0.99
    least_snr: float = 8.0
    clip: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if not 0 < self.clip[0] <= 1 <= self.clip[1] < math.inf:
            raise ValueError(f"clip must be (lower, upper) around 1, found {self.clip}")

    def judge(self, quadratic: Quadratic, j: int = 0) -> list[Verdict]:
        """For each direction [K], whether loss j's parabola along it is to be believed, and if not,
        why not."""
        q, r2 = quadratic, float(quadratic.r2[j])
        return [
            self._judge(*row, r2 if q.dof > 0 else None)
            for row in zip(q.a[j], q.se_A[j].diagonal(), q.b[j], q.se_b[j], strict=True)
        ]

    def _judge(self, a: float, se_a: float, b: float, se_b: float, r2: float | None) -> Verdict:
        if not math.isfinite(a + b):
            return Verdict(False, "a probe loss is not finite")
        for name, value, se in (("curvature", a, se_a), ("slope", b, se_b)):
            if abs(value) < self.least_snr * se:
                return Verdict(
                    False, f"the {name} {value:.3g} is within {self.least_snr:g} x noise {se:.2g}"
                )
            if value <= 0:
                return Verdict(False, f"the {name} is not positive: {value:.3g}")
        if r2 is not None and not r2 >= self.least_r2:
            return Verdict(False, f"no parabola: R2 {r2:.3g} < {self.least_r2:g}")
        return Verdict(True, "")


def _full_value(b: Array, A: Array) -> float:
    if not np.isfinite(A).all() or np.linalg.eigvalsh(A)[0] <= 0:
        return math.nan
    return float(0.5 * b @ np.linalg.solve(A, b))


def _matrix(beta: Array, K: int, pairs: Sequence[tuple[int, int]]) -> Array:
    """Coefficients [unknowns, J] -> symmetric matrices [J, K, K]."""
    A = np.zeros((beta.shape[1], K, K))
    A[:, range(K), range(K)] = beta[K : 2 * K].T
    for (k, n), column in zip(pairs, beta[2 * K :], strict=False):  # an intercept may follow
        A[:, k, n] = A[:, n, k] = column
    return A
