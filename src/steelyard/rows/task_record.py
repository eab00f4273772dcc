"""What one step of several tasks has weighed: numbers for logs, and what wants attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from steelyard.rows.gram import cosines
from steelyard.weightings.ngdiff import TINY, standing

OPPOSITE = -1 + 1e-6  # a smaller cosine than this is no other than -1 in float32


@dataclass(frozen=True)
class TaskRecord:
    """What one `backward` weighed. losses, norms, weights: by task; weights are those of the mean
    gradients g_i. gram [k, k] float64, of the g_i. norm: of the combined gradient."""

    losses: dict[str, float]
    norms: dict[str, float]
    weights: dict[str, float]
    gram: Tensor
    norm: float

    @property
    def cosines(self) -> dict[tuple[str, str], float]:
        """Of every pair of tasks; nan where a gradient is zero."""
        names, found = list(self.norms), cosines(self.gram)
        return {
            (a, names[j]): float(found[i, j])
            for i, a in enumerate(names)
            for j in range(i + 1, len(names))
        }

    @property
    def antiparallel(self) -> list[tuple[str, str]]:
        """Pairs of tasks without a common descent direction: no weights can serve both."""
        return [pair for pair, cosine in self.cosines.items() if cosine <= OPPOSITE]

    @property
    def vanished(self) -> list[str]:
        """Tasks whose gradient is zero, or nothing beside the largest."""
        _, counts = standing(self.gram, TINY)
        return [name for name, one in zip(self.norms, counts, strict=True) if not one]


def record(
    names: Sequence[str], losses: Sequence[float] | None, gram: Tensor, weights: Sequence[float]
) -> TaskRecord:
    """losses: None where they may not be shown."""
    G, k = gram.tolist(), len(names)
    square = sum(weights[i] * weights[j] * G[i][j] for i in range(k) for j in range(k))
    return TaskRecord(
        losses={} if losses is None else dict(zip(names, losses, strict=True)),
        norms={name: math.sqrt(max(0.0, G[i][i])) for i, name in enumerate(names)},
        weights=dict(zip(names, weights, strict=True)),
        gram=gram,
        norm=math.sqrt(max(0.0, square)),
    )
