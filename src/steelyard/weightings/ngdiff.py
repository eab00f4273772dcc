"""NGDiff: every task's gradient divided by its own norm, then added.

Bu, Jin, Vinzamuri, Ramakrishna, Chang, Cevher, Hong, "Unlearning as multi-task optimization: a
normalized gradient difference approach with an adaptive learning rate", NAACL 2025, arXiv
2410.22086. Its automatic learning rate is `GeN` on the retain loss: docs/tasks.md.

| symbol | here |
|---|---|
| g_R, g_F | rows: gradients of the retain loss, and of the forget OBJECTIVE, both to minimise |
| G | their Gram matrix; norms are sqrt(G_ii), over all parameters |
| rho | weight of the retain row |

    g = rho g_R / ||g_R|| + g_F / ||g_F||            the paper's form has - g_CE with F = -CE: the same

Adding is for rho = 1 all there is, so any number of rows may compete.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RETAIN = "retain"
TINY = (
    1e-8  # of the largest norm: a smaller gradient is rounding noise, which must not be amplified
)


@dataclass(frozen=True)
class NGDiff:
    """w_i = 1 / ||g_i||, and rho times that for the row called "retain" (on a bare Gram matrix: the
    first).

    Guarantees, to first order and for plain SGD, rho = 1, two rows: <g_i, g> = ||g_i|| (1 + cos)
    >= 0, so a small step raises neither loss; ||g|| = sqrt(2 + 2 cos) <= 2; the direction does not
    change when a loss is multiplied by k > 0. Adam rescales coordinates: there it holds no longer.

    | case | behaviour |
    |---|---|
    | ||g_i|| at most `tiny` of the largest norm | weight 0: it would be amplified rounding noise |
    | all gradients zero | all weights 0 |
    | antiparallel rows | g = 0, by addition: nothing is divided; the record of `Tasks` says so |
    | clipping by norm afterwards | rescales g whenever max_norm < 2: leave it out |

    Raises ValueError for a rho or tiny that is not positive, and for rho != 1 without such a row.
    """

    rho: float = 1.0
    tiny: float = TINY

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be positive and finite, found {self.rho}")
        checked_tiny(self.tiny)

    def __call__(self, gram: Tensor) -> Tensor:
        """gram [k, k] -> weights [k]."""
        return self._weights(gram, 0)

    def given(self, names: Sequence[str], losses: Tensor) -> Callable[[Tensor], Tensor]:
        if RETAIN in names or self.rho == 1:
            place = names.index(RETAIN) if RETAIN in names else 0
            return lambda gram: self._weights(gram, place)
        raise ValueError(
            f"rho={self.rho:g} weighs the row {RETAIN!r}, and the rows are "
            f"{', '.join(names)}: name one of them {RETAIN!r}, or leave rho out"
        )

    def _weights(self, gram: Tensor, place: int) -> Tensor:
        norms, counts = standing(gram, self.tiny)
        weights = torch.where(counts, 1 / norms, 0.0)
        weights[place] *= self.rho
        return weights


def standing(gram: Tensor, tiny: float) -> tuple[Tensor, Tensor]:
    """Norms [k], and which of them count [k]: those above `tiny` times the largest."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    return norms, norms > tiny * norms.max()


def checked_tiny(tiny: float) -> float:
    if not 0 <= tiny < 1:
        raise ValueError(
            f"tiny is a fraction of the largest gradient norm, from 0 up to 1; found {tiny}"
        )
    return tiny
