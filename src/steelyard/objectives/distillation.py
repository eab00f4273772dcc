"""Towards a distribution over the vocabulary: the reference's (KL), or one without the answer.

KL retain row: Maini et al. 2024, "TOFU: a task of fictitious unlearning for LLMs",
arXiv:2401.06121. UNDIAL: Dong et al. 2024, "UNDIAL: self-distillation with adjusted logits for
robust unlearning in large language models", arXiv:2402.10052. CE-U: Yang 2025, "CE-U: cross entropy
unlearning", arXiv:2503.01224.

| symbol | variable |
|---|---|
| z, z0 | `z`, `z0` [N, V]: logits at the N positions that count |
| y_t | `y` [N]: the answer's token that each position predicts |
| KL(p0, p) = sum_v p0 log(p0/p) | `KL` |
| CE(p, q) = -sum_v q log p | `_soft_ce(z, q)` [N] |
| kappa | `kappa` |
| sg | `.detach()` |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from steelyard.objectives.answers import (
    Positions,
    expect_reference,
    expect_same_vocabulary,
    labels_at,
    logits_at,
    mean_over,
    places,
)
from steelyard.objectives.reference import Reference
from steelyard.objectives.tokens import IGNORED, Tokens


@dataclass(frozen=True, kw_only=True)
class KL:
    """R = mean over samples of the token mean of KL(p0_t, p_t) = sum_v p0 (log p0 - log p).

    The direction is "p must cover what p0 says"; bounded below by 0, which it is at p = p0, with
    gradient 0. positions: "answer" (those that predict an answer token) or "all" but padding.
    Public code differs: open-unlearning averages over all B * T positions, padding and prompts
    included ('batchmean' of flattened logits), so the value shrinks with the padding.
    """

    positions: Positions = "answer"

    needs_reference: ClassVar[bool] = True
    needs_pair: ClassVar[bool] = False

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], in nats per token, not negative."""
        mask = places(tokens, self.positions)
        z0 = logits_at(expect_reference(reference), tokens, mask)
        z = logits_at(model, tokens, mask)
        expect_same_vocabulary(z, z0)
        log_p, log_p0 = F.log_softmax(z, -1), F.log_softmax(z0, -1)
        return mean_over(F.kl_div(log_p, log_p0, reduction="none", log_target=True).sum(-1), mask)

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


@dataclass(frozen=True, kw_only=True)
class UNDIAL:
    """F = mean over samples of the token mean of CE(p_t, softmax(z0_t - kappa onehot(y_t))).

    The target is the reference with the answer's logit lowered. Bounded below by the target's
    entropy (token mean); with kappa = 0 the gradient at p = p0 is 0. Used without a retain row.
    Public code differs: open-unlearning masks nothing, so prompts and padding count too, and there
    the label -100 lowers the token V - 100 of the vocabulary. Here only the answer counts.
    """

    kappa: float = 10.0

    needs_reference: ClassVar[bool] = True
    needs_pair: ClassVar[bool] = False

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], in nats per token, not negative."""
        mask = places(tokens, "answer")
        y = labels_at(tokens, mask)
        z0 = logits_at(expect_reference(reference), tokens, mask)
        z = logits_at(model, tokens, mask)
        expect_same_vocabulary(z, z0)
        lower = z0.new_full((len(y), 1), -self.kappa)
        adjusted = z0.scatter_add(-1, y[:, None], lower)
        return mean_over(_soft_ce(z, adjusted.softmax(-1)), mask)

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


@dataclass(frozen=True, kw_only=True)
class CEU:
    """F = mean over samples of the token mean of CE(p_t, softmax(sg z_t with z_{t,y_t} = -inf)).

    The target is the model's own distribution without the answer's token: it has p_y = 0 exactly,
    and moves along. Bounded below by 0; the gradient is that of -log(1 - p_y) ("unlikelihood"),
    because CE(p, target) = H(target) - log(1 - p_y) with the target held. Used without retain row.
    skip: so many first answer tokens are left out, as in the paper (1).
    Public code differs: the mean is over the tokens of the batch, not per sample first.
    Raises: ValueError for a negative skip, or answers of no more than `skip` tokens.
    """

    skip: int = 1

    needs_reference: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise ValueError(f"skip={self.skip}: use 0 or more answer tokens")

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], in nats per token, not negative."""
        mask = self._behind_the_first(tokens)
        y = labels_at(tokens, mask)
        z = logits_at(model, tokens, mask)
        target = z.detach().scatter(-1, y[:, None], float("-inf")).softmax(-1)
        return mean_over(_soft_ce(z, target), mask)

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()

    def _behind_the_first(self, tokens: Tokens) -> Tensor:
        mask = places(tokens, "answer")
        # counted on the labels: one in column 0 is a token of the answer that nothing predicts
        counts = (tokens.labels != IGNORED).cumsum(1).roll(-1, 1)
        kept = mask & (counts > self.skip)
        short = (~kept.any(1)).nonzero().flatten().tolist()
        if short:
            raise ValueError(f"rows {short} have no answer token behind the first {self.skip}")
        return kept


def _soft_ce(z: Tensor, target: Tensor) -> Tensor:
    """CE(p, target) [N] of logits z [N, V] against a distribution [N, V]."""
    return F.cross_entropy(z, target, reduction="none")
