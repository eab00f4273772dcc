"""Negative preference: gradient ascent that slows down as a sample is forgotten.

NPO: Zhang, Lin, Bai, Mei 2024, "Negative preference optimization: from catastrophic collapse to
effective unlearning", arXiv:2404.05868. SimNPO: Fan et al. 2024, "Simplicity prevails: rethinking
negative preference optimization for LLM unlearning", arXiv:2410.07163.

| symbol | variable |
|---|---|
| log p(y) - log p0(y) | `log_ratio` [B], summed over tokens |
| beta | `beta` |
| NLL, len(y) | `nll.sum(1)`, `lengths` |
| delta (gamma / beta in the paper) | `margin` |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from steelyard.objectives.answers import answer_nll, expect_reference, sequence_nll
from steelyard.objectives.reference import Reference
from steelyard.objectives.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class NPO:
    """F = mean over samples of -(2/beta) log sig(-beta (log p(y) - log p0(y))).

    log p(y): SUM over the answer's tokens, so beta acts on long answers sooner than on short ones.
    Bounded below by 0; (2/beta) ln 2 at p = p0; its gradient is a sample's gradient ascent (summed
    over tokens) times 2 sig(beta (log p(y) - log p0(y))), so in (0, 2) and 1 at p = p0.
    Other code differs: MUSE's NPO works on raw logits over the vocabulary; this is TOFU's.
    Raises: ValueError for beta that is not positive.
    """

    beta: float = 0.1

    needs_reference: ClassVar[bool] = True
    needs_pair: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], not negative."""
        nll0 = sequence_nll(expect_reference(reference), tokens)
        log_ratio = nll0 - sequence_nll(model, tokens)  # [B]
        return -2 / self.beta * F.logsigmoid(-self.beta * log_ratio)

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


@dataclass(frozen=True, kw_only=True)
class SimNPO:
    """F = mean over samples of -(2/beta) log sig(beta (NLL/len(y) - margin)); no reference.

    NLL/len(y): MEAN over the answer's tokens. Bounded below by 0. The paper's gamma is
    beta * margin; its defaults go with weights 0.125 (forget) and 1 (retain).
    Raises: ValueError for beta that is not positive.
    """

    beta: float = 4.5
    margin: float = 0.0

    needs_reference: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], not negative."""
        nll, _, lengths = answer_nll(model, tokens)
        return -2 / self.beta * F.logsigmoid(self.beta * (nll.sum(1) / lengths - self.margin))

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


def positive(name: str, value: float) -> None:
    """Raises: ValueError for a value that is not above 0."""
    if not value > 0:
        raise ValueError(f"{name}={value}: use a number above 0")
