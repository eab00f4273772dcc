"""Membership-inference attacks: one score per document, HIGH FOR NON-MEMBERS.

Label convention: members (the forget documents) 0, non-members (a hold-out) 1. `membership_auc`
takes the two sets of scores: near 1 the model remembers, .5 the attack guesses, near 0 it has
forgotten too hard. All scores of a model fall when it knows a text better.

| name | score | source |
|---|---|---|
| loss | CE = -mean_t log p_t | Yeom et al. 2018, arXiv 1709.01604 |
| zlib | CE / bytes of the text compressed by zlib | Carlini et al. 2021, arXiv 2012.07805 |
| min_k | -mean of the lowest 40 % of log p_t | Shi et al. 2024, arXiv 2310.16789 |
| min_k_plus_plus | the same of (log p_t - mu_t) / sigma_t | Zhang et al. 2025, arXiv 2404.02936 |
| reference | CE - CE of a model that never saw the text | Carlini et al. 2021 |
| gradient_norm | mean over parameters of the L2 norm of dCE | Wang et al. 2024, arXiv 2402.17012 |

mu_t, sigma_t: mean and standard deviation of log p(. | before t) under that distribution. 40 % is
MUSE's choice for PrivLeak; Min-K's own paper takes 20 %.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from steelyard.bench.metrics import membership_auc
from steelyard.bench.scoring import (
    TokenScores,
    context_length,
    document_tokens,
    evaluation,
    token_scores,
)
from steelyard.objectives.tokens import Tokens, logits, prompt_ids, token_nll

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradient_norm")
K = 0.4
LEAST_STD = 1e-3  # OpenUnlearning's floor of sigma: a certain model would divide 0 by 0


def loss(scores: TokenScores) -> float:
    """CE of the document, nats per token. Range [0, inf); high: unfamiliar."""
    return scores.loss


def zlib_ratio(scores: TokenScores, text: str) -> float:
    """CE / compressed bytes: corrects for texts that are easy for everybody. Range [0, inf).

    text: what was scored, no more.
    """
    return scores.loss / len(zlib.compress(text.encode("utf-8")))


def min_k(scores: TokenScores, k: float = K) -> float:
    """-mean of the max(1, floor(k n)) lowest log p_t. Range [0, inf); at k = 1 the loss."""
    return -_lowest(scores.log_p, k)


def min_k_plus_plus(scores: TokenScores, k: float = K) -> float:
    """-mean of the max(1, floor(k n)) lowest (log p_t - mu_t) / sigma_t. Range (-inf, inf).

    sigma is at least 1e-3, as in OpenUnlearning.
    """
    return -_lowest((scores.log_p - scores.mean) / np.maximum(scores.std, LEAST_STD), k)


def reference(scores: TokenScores, of_reference: TokenScores) -> float:
    """CE - CE_reference, the reference with the same tokenizer. Range (-inf, inf)."""
    if len(scores.log_p) != len(of_reference.log_p):
        raise ValueError(
            f"{len(scores.log_p)} tokens beside the reference's {len(of_reference.log_p)}: "
            "both models need the same tokenizer"
        )
    return scores.loss - of_reference.loss


def gradient_norms(model: nn.Module, tokens: Tokens) -> np.ndarray:
    """Mean over the trainable parameters of ||dCE / dparameter||, per row: float64 [B].

    Range [0, inf); high: unfamiliar. One row at a time, in eval mode: extra memory is one gradient.
    Guarantees: `.grad` is left alone. A parameter that a row does not reach counts as 0.
    Raises: ValueError for a model without trainable parameters.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the gradient norm needs trainable parameters: this model has none")
    found = []
    with evaluation(model), torch.enable_grad():
        for row in range(len(tokens)):
            one = tokens.rows(slice(row, row + 1)).trimmed().to(parameters[0].device)
            nll, mask = token_nll(logits(model, one), one.labels)
            ce = nll.sum() / mask.sum()
            gradients = torch.autograd.grad(ce, parameters, allow_unused=True)
            norms = [0.0 if g is None else float(g.float().norm()) for g in gradients]
            found.append(float(np.mean(norms)))
    return np.array(found)


def attack_scores(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    attacks: Sequence[str] = ("loss", "zlib", "min_k", "min_k_plus_plus"),
    reference_model: nn.Module | None = None,
    k: float = K,
    batch: int = 16,
    length: int | None = None,
    what: str = "document",
) -> dict[str, np.ndarray]:
    """Scores float64 [len(texts)] by attack, all from one pass over the texts (high: non-member).

    texts: whole documents, called `what` in errors. length: they are cut there (for zlib too);
    default: the model's context. batch: rows of a forward pass (the gradient norm takes one row at
    a time whatever it is).
    Guarantees: independent of `batch` up to rounding; the models are left as they were found.
    Raises: ValueError for an unknown attack, no texts, a text under two tokens, k outside (0, 1],
    or `reference` without a reference model.
    """
    check_attacks(attacks, reference_model)
    length = length or context_length(model)
    tokens = document_tokens(tokenizer, texts, length=length, what=what)
    found: dict[str, np.ndarray] = {}
    if set(attacks) - {"gradient_norm"}:
        scores = token_scores(model, tokens, batch=batch)
        found["loss"] = np.array([loss(s) for s in scores])
        found["min_k"] = np.array([min_k(s, k) for s in scores])
        found["min_k_plus_plus"] = np.array([min_k_plus_plus(s, k) for s in scores])
        if "zlib" in attacks:
            seen = _scored(tokenizer, texts, tokens, length)
            found["zlib"] = np.array([zlib_ratio(s, t) for s, t in zip(scores, seen, strict=True)])
        if "reference" in attacks and reference_model is not None:
            others = token_scores(reference_model, tokens, batch=batch)
            pairs = zip(scores, others, strict=True)
            found["reference"] = np.array([reference(s, other) for s, other in pairs])
    if "gradient_norm" in attacks:
        found["gradient_norm"] = gradient_norms(model, tokens)
    return {name: found[name] for name in attacks}


def membership(
    model: nn.Module,
    tokenizer: Any,
    members: Sequence[str],
    non_members: Sequence[str],
    *,
    attack: str = "loss",
    reference_model: nn.Module | None = None,
    batch: int = 16,
    length: int | None = None,
) -> dict[str, Any]:
    """The AUC of one attack, see `metrics.membership_auc`, with what it was made from.

    Returns attack; auc; members and non_members, how many; cut, how many of both were cut.
    length, Raises: as `attack_scores`; ValueError also for a document that is in both sets.
    """
    check_attacks([attack], reference_model)
    both = set(members) & set(non_members)
    if both:
        raise ValueError(
            f"{len(both)} documents are members and non-members, as {min(both)[:30]!r}...: "
            "leave them out of one"
        )
    options: dict[str, Any] = {"attacks": [attack], "reference_model": reference_model}
    options |= {"batch": batch, "length": length}
    low, high = (
        attack_scores(model, tokenizer, texts, what=what, **options)[attack]
        for what, texts in (("member", members), ("non-member", non_members))
    )
    limit = length or context_length(model)
    return {
        "attack": attack,
        "auc": membership_auc(low, high),
        "members": len(members),
        "non_members": len(non_members),
        "cut": sum(_is_cut(tokenizer, text, limit) for text in [*members, *non_members]),
    }


def check_attacks(attacks: Sequence[str], reference_model: nn.Module | None) -> None:
    """Raises: ValueError for none, an unknown one, or `reference` without its model."""
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown or not attacks:
        raise ValueError(f"unknown attack {unknown or 'none'}: choose of {', '.join(ATTACKS)}")
    if "reference" in attacks and reference_model is None:
        raise ValueError("the attack 'reference' needs reference_model, which never saw the texts")


def _scored(tokenizer: Any, texts: Sequence[str], tokens: Tokens, length: int | None) -> list[str]:
    """The texts, those that were cut only as far as their tokens go."""
    sizes = tokens.attention_mask.sum(1).tolist()
    return [
        tokenizer.decode(
            ids[:size].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if size == length and _is_cut(tokenizer, text, length)
        else text
        for text, ids, size in zip(texts, tokens.input_ids, sizes, strict=True)
    ]


def _is_cut(tokenizer: Any, text: str, length: int | None) -> bool:
    return length is not None and len(prompt_ids(tokenizer, text)) > length


def _lowest(values: np.ndarray, k: float) -> float:
    if not 0.0 < k <= 1.0:
        raise ValueError(f"k is {k}: the share of tokens to look at is above 0 and at most 1")
    count = max(1, int(k * len(values)))
    return float(np.sort(values)[:count].mean())
