"""What one step of several tasks has weighed: numbers for logs, and what wants attention."""

from __future__ import annotations

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
    names: Sequence[str], losses: Tensor | None, gram: Tensor, weights: Tensor
) -> TaskRecord:
    """losses: None where they may not be shown."""
    return TaskRecord(
        losses={} if losses is None else dict(zip(names, losses.tolist(), strict=True)),
        norms=dict(zip(names, gram.diagonal().clamp(min=0).sqrt().tolist(), strict=True)),
        weights=dict(zip(names, weights.tolist(), strict=True)),
        gram=gram,
        norm=float((weights @ gram @ weights).clamp(min=0).sqrt()),
    )
