"""What all objectives share: which positions count, means per sample, and what they refuse.

| symbol | variable |
|---|---|
| NLL_t = -log p_t | `answer_nll`'s first part |
| len(y) | the number of True places of a sample's mask |
| mean over tokens | `mean_over` |
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from steelyard.objectives.reference import Reference
from steelyard.objectives.tokens import (
    IGNORED,
    Pair,
    Tokens,
    answer_lengths,
    logits,
    token_nll,
)

Positions = Literal["answer", "all"]


def answer_nll(model: nn.Module | Reference, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """(NLL_t [B, T-1] with 0 off the answer, mask [B, T-1], len(y) [B])."""
    expect_tokens(tokens)
    z = model.logits(tokens) if isinstance(model, Reference) else logits(model, tokens)
    nll, mask = token_nll(_checked(z, tokens), tokens.labels)
    return nll, mask, answer_lengths(mask)


def sequence_nll(model: nn.Module | Reference, tokens: Tokens) -> Tensor:
    """NLL = -log p(y) [B]: summed over the answer's tokens."""
    return answer_nll(model, tokens)[0].sum(1)


def places(tokens: Tokens, positions: Positions) -> Tensor:
    """Mask [B, T] of the positions whose logits count.

    "answer": those that predict an answer token (so one to its left); "all": every token but
    padding, prompts included.
    Raises: ValueError for another word, or rows without any answer token.
    """
    expect_tokens(tokens)
    if positions == "all":
        return tokens.attention_mask == 1
    if positions != "answer":
        raise ValueError(f"unknown positions {positions!r}: use 'answer' or 'all'")
    mask = tokens.labels.roll(-1, 1) != IGNORED
    mask[:, -1] = False  # rolled in from column 0
    answer_lengths(mask)
    return mask


def logits_at(model: nn.Module | Reference, tokens: Tokens, mask: Tensor) -> Tensor:
    """z [N, V] at the N True places of the mask [B, T], row by row."""
    z = model.logits(tokens) if isinstance(model, Reference) else logits(model, tokens)
    return _checked(z, tokens)[mask]


def labels_at(tokens: Tokens, mask: Tensor) -> Tensor:
    """The token [N] that each of the mask's positions predicts."""
    return tokens.input_ids.roll(-1, 1)[mask]


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [B] of each sample's own values [N], which stand at the True places of mask [B, T]."""
    rows = values.new_zeros(mask.shape).masked_scatter(mask, values)
    return rows.sum(1) / mask.sum(1)


def expect_tokens(tokens: Any) -> Tokens:
    """Raises: ValueError for anything but `Tokens`."""
    if not isinstance(tokens, Tokens):
        name = type(tokens).__name__
        raise ValueError(f"this objective takes Tokens, found {name}: use encode(tokenizer, rows)")
    return tokens


def expect_pair(tokens: Any) -> Pair:
    """Raises: ValueError for anything but a `Pair`."""
    if not isinstance(tokens, Pair):
        name = type(tokens).__name__
        raise ValueError(
            f"this objective takes Pair(chosen, rejected), found {name}: it needs another answer "
            "to every prompt"
        )
    return tokens


def expect_reference(reference: Any) -> Reference:
    """Raises: ValueError for anything but a `Reference`."""
    if not isinstance(reference, Reference):
        found = "none was given" if reference is None else f"found {type(reference).__name__}"
        raise ValueError(
            f"this objective compares with a reference and {found}: pass Reference.of(model), "
            "made before the first step"
        )
    return reference


def expect_same_vocabulary(z: Tensor, z0: Tensor) -> None:
    """Raises: ValueError where model and reference count different tokens."""
    if z.shape != z0.shape:
        raise ValueError(
            f"the model predicts {z.shape[-1]} tokens and the reference {z0.shape[-1]}: they need "
            "one vocabulary"
        )


def _checked(z: Tensor, tokens: Tokens) -> Tensor:
    if z.shape[:2] != tokens.input_ids.shape:
        raise ValueError(
            f"the model returns logits {list(z.shape)} for tokens {list(tokens.input_ids.shape)}: "
            "it must return [B, T, V]"
        )
    return z
