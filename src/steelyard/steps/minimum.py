"""Minimisers of -b.x + x'Ax / 2 within a box or a ball; NumPy only.

ball    (A + mu I) x = b with the smallest mu >= 0 for which A + mu I >= 0 and ||x|| <= trust
        (More, Sorensen 1983), by bisection in A's eigenvectors
box     one coordinate at a time, each exactly, until nothing moves
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROUNDS = 10_000


def in_ball(b: Array, A: Array, trust: float) -> Array:
    """The global minimiser with ||x|| <= trust, whatever the signs of A's eigenvalues."""
    if not trust > 0:
        raise ValueError(f"trust must be positive, found {trust}")
    values, V = np.linalg.eigh(A)
    g = V.T @ b

    def at(mu: float) -> Array:
        shifted = values + mu
        return np.divide(g, shifted, out=np.zeros_like(g), where=shifted > 0)

    low = max(0.0, -float(values[0]))
    tiny = 1e-14 * max(1.0, float(np.abs(values).max()))
    if values[0] > 0 and np.linalg.norm(at(0.0)) <= trust:
        return V @ at(0.0)
    flat = values + low <= tiny  # the lowest eigenvectors, on which mu = low does nothing
    if not np.abs(g[flat]).max(initial=0) > tiny * np.linalg.norm(
        g
    ):  # More and Sorensen's hard case
        z = np.where(flat, 0.0, at(low))
        if (rest := trust**2 - float(z @ z)) >= 0:
            if low > 0:  # downhill either way: go to the rim
                z[int(flat.argmax())] = np.sqrt(rest)
            return V @ z
    high = low + float(np.linalg.norm(g)) / trust + tiny
    for _ in range(200):
        middle = 0.5 * (low + high)
        if np.linalg.norm(at(middle)) > trust:
            low = middle
        else:
            high = middle
    return V @ at(high)


def in_box(b: Array, A: Array, lower: float, upper: float) -> Array:
    """The minimiser with lower <= x_k <= upper: global where A is positive definite, else local."""
    if not lower < upper:
        raise ValueError(f"the box must be (lower, upper), found ({lower}, {upper})")
    x = np.clip(np.zeros(len(b)), lower, upper)
    for _ in range(ROUNDS):
        before = x.copy()
        for k in range(len(b)):
            slope = b[k] - A[k] @ x + A[k, k] * x[k]  # of -slope x_k + A_kk x_k^2 / 2
            if A[k, k] > 0:
                x[k] = min(max(slope / A[k, k], lower), upper)
            else:  # the lower of the two ends
                x[k] = min(lower, upper, key=lambda e: -slope * e + 0.5 * A[k, k] * e * e)
        if np.abs(x - before).max() <= 1e-14 * max(1.0, np.abs(x).max()):
            break
    return x
