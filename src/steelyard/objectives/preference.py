"""Preference pairs: prefer another answer over the one to forget.

DPO: Rafailov et al. 2023, "Direct preference optimization", arXiv:2305.18290. With refusals
(IdkDPO): Maini et al. 2024, "TOFU: a task of fictitious unlearning for LLMs", arXiv:2401.06121.
With plausible alternates (AltPO): Mekala et al. 2025, "Alternate preference optimization for
unlearning factual knowledge in large language models" (COLING), arXiv:2409.13474.

| symbol | variable |
|---|---|
| y_idk, the preferred answer | `pair.chosen` |
| y_f, the answer to forget | `pair.rejected` |
| log(p/p0)(y) | `_log_ratio` [B], summed over the tokens of y |
| beta | `beta` |

The three differ in where the preferred answer comes from (`steelyard.objectives.alternatives`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from steelyard.objectives.answers import expect_pair, expect_reference, sequence_nll
from steelyard.objectives.npo import positive
from steelyard.objectives.reference import Reference
from steelyard.objectives.tokens import Pair, Tokens


def preference(model: nn.Module, pair: Pair, reference: Reference | None, beta: float) -> Tensor:
    """-(2/beta) log sig(beta [log(p/p0)(chosen) - log(p/p0)(rejected)]) [B]; sums over tokens.

    Bounded below by 0; (2/beta) ln 2 at p = p0. The factor 2 / beta, of NPO and open-unlearning,
    is not in the DPO paper: it makes step sizes comparable with those of gradient ascent.
    The model runs twice and the reference twice.
    Raises: ValueError without a reference, for tokens that are no `Pair`, rows without an answer.
    """
    expect_pair(pair)
    p0 = expect_reference(reference)
    margin = _log_ratio(model, p0, pair.chosen) - _log_ratio(model, p0, pair.rejected)  # [B]
    return -2 / beta * F.logsigmoid(beta * margin)


def _log_ratio(model: nn.Module, reference: Reference, tokens: Tokens) -> Tensor:
    return sequence_nll(reference, tokens) - sequence_nll(model, tokens)


@dataclass(frozen=True, kw_only=True)
class DPO:
    """F = mean over samples of `preference`, for pairs of any origin."""

    beta: float = 0.1

    needs_reference: ClassVar[bool] = True
    needs_pair: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def per_sample(
        self, model: nn.Module, tokens: Pair, reference: Reference | None = None
    ) -> Tensor:
        """[B], not negative."""
        return preference(model, tokens, reference, self.beta)

    def __call__(
        self, model: nn.Module, tokens: Pair, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


class IdkDPO(DPO):
    """DPO whose chosen answers say "I don't know": `alternatives.idk_rows` writes such answers."""


class AltPO(DPO):
    """DPO whose chosen answers are plausible but other facts.

    The paper lets the model itself write several alternates per prompt (repeat the prompt, one row
    for each); `alternatives.swapped_rows` is a stand-in without a language model.
    Published settings: beta 0.05 to 0.5 with a retain weight of 1 to 5.
    """
