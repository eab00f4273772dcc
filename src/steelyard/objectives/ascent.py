"""Cross-entropy up or down: the retain loss CE, and gradient ascent F = -CE.

Jang et al. 2023, "Knowledge unlearning for mitigating privacy risks in language models" (ACL),
arXiv:2210.01504; with a retain row (GradDiff): Maini et al. 2024, "TOFU: a task of fictitious
unlearning for LLMs", arXiv:2401.06121.

| symbol | variable |
|---|---|
| NLL_t, len(y) | `nll`, `lengths` |
| CE = (1/len(y)) sum_t NLL_t | `CE(over="mean")` |
| NLL = sum_t NLL_t = -log p(y) | `CE(over="sum")` |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from steelyard.objectives.answers import answer_nll
from steelyard.objectives.reference import Reference
from steelyard.objectives.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class CE:
    """R = mean over samples of CE, the token-mean negative log-likelihood of the answer.

    over: "mean" or "sum" over the tokens of a sample. Bounded below by 0.
    Public code differs: the loss inside transformers' models divides by the tokens of the whole
    batch, so long answers weigh more and a batch split in two has another loss. Here every sample
    weighs the same, and a split into equal parts changes nothing.
    """

    over: Literal["mean", "sum"] = "mean"

    needs_reference: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _expect(self.over)

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], in nats per token ("mean") or per answer ("sum")."""
        nll, _, lengths = answer_nll(model, tokens)
        return nll.sum(1) / lengths if self.over == "mean" else nll.sum(1)

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


@dataclass(frozen=True, kw_only=True)
class GA:
    """F = -mean over samples of CE: gradient ascent on what is to be forgotten.

    over: "mean" or "sum" over the tokens of a sample.
    UNBOUNDED below: it destroys the model unless something stops it (a retain row that is weighed
    against it, a stop rule). The limit of NPO as beta -> 0 is GA(over="sum"), up to a constant.
    """

    over: Literal["mean", "sum"] = "mean"

    needs_reference: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _expect(self.over)

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], minus nats per token ("mean") or per answer ("sum")."""
        return -CE(over=self.over).per_sample(model, tokens)

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


def _expect(over: str) -> None:
    if over not in ("mean", "sum"):
        raise ValueError(f"over={over!r}: use 'mean' or 'sum' over the tokens of a sample")
