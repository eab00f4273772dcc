"""Fixed and loss-normalised sums of losses: what NGDiff and BLUR are compared with.

| method | gradient | here |
|---|---|---|
| GA, gradient ascent | g_F | `Fixed({"retain": 0, "forget": 1})`, or a plain backward |
| GradDiff (GDiff), "Pen" | g_F + lambda g_R, or c g_R + (1 - c) g_F | `GradDiff(retain, forget)` |
| LossNorm | g_R / |R| + g_F / |F| | `LossNormalised()` |

Rows are losses to minimise: the forget row is a forget objective, for gradient ascent -CE.
GradDiff: Liu, Liu, Stone, 2022; Maini et al., "TOFU", arXiv 2401.06121.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steelyard.weightings.ngdiff import checked_tiny


@dataclass(frozen=True)
class Fixed:
    """w_i from a table {name: weight}: one scalar loss, whatever the gradients are.

    On a bare Gram matrix the table's order is the rows'. Raises ValueError for an empty table or a
    weight that is not finite, and for rows that are not those of the table.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.weights or not all(math.isfinite(w) for w in self.weights.values()):
            raise ValueError(
                f"weights must be {{name: finite number}}, found {dict(self.weights)!r}"
            )

    def __call__(self, gram: Tensor) -> Tensor:
        return self._weights(gram, list(self.weights))

    def given(self, names: Sequence[str], losses: Tensor) -> Callable[[Tensor], Tensor]:
        if set(names) != set(self.weights):
            raise ValueError(
                f"the rows are {', '.join(names)}, the weights are for {', '.join(self.weights)}: "
                "give one weight for each row"
            )
        return lambda gram: self._weights(gram, names)

    def _weights(self, gram: Tensor, names: Sequence[str]) -> Tensor:
        if len(gram) != len(names):
            raise ValueError(f"{len(gram)} rows and {len(names)} weights: give one for each row")
        return gram.new_tensor([float(self.weights[name]) for name in names])


def GradDiff(retain: float = 1.0, forget: float = 1.0) -> Fixed:  # noqa: N802 - a method's name
    """retain g_R + forget g_F: the gradient difference of the literature with F = -CE."""
    return Fixed({"retain": retain, "forget": forget})


@dataclass(frozen=True)
class LossNormalised:
    """w_i = 1 / |L_i|, of the losses of this step: sum_i g_i / |L_i|.

    It is the gradient of sum_i sign(L_i) log |L_i|. A loss at most `tiny` of the largest one gets
    weight 0. It needs the losses, which `Tasks` gives: ValueError on a bare Gram matrix.
    """

    tiny: float = 1e-8
    needs_losses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked_tiny(self.tiny)

    def __call__(self, gram: Tensor) -> Tensor:
        raise ValueError(
            "LossNormalised weighs by the losses, which are not in the Gram matrix: use it in "
            "Tasks(parameters, LossNormalised())"
        )

    def given(self, names: Sequence[str], losses: Tensor) -> Callable[[Tensor], Tensor]:
        size = losses.abs()
        weights = torch.where(size > self.tiny * size.max(), 1 / size, 0.0)
        return lambda gram: weights
