"""Per-sample gradients of `nn.EmbeddingBag`: a bag is a sample.

The gradient of the weight is one row of size d per token of the bag, dy [B, d] times

| mode | of token p of bag i |
|---|---|
| sum | 1, or its per-sample weight |
| mean | 1 / number of tokens that are not padding |
| max | per feature: 1 for the first token that has the largest value, 0 for all others |

Bags of different lengths are laid out as [B, L] with L the longest; what is past a bag's end and
what is padding has gradient zero. In max mode torch itself is asked which token won.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.rules.calls import Call, Found, foreign, working_dtype
from steelyard.rules.factors import Factor, OneHot


def bag_error(module: nn.Module) -> str | None:
    """Why no per-sample rule at all can serve this module, or None."""
    assert isinstance(module, nn.EmbeddingBag)
    for option in ("max_norm", "scale_grad_by_freq"):
        if getattr(module, option):
            return f"EmbeddingBag with {option} couples the samples of a batch: turn it off"
    return None


def bag_refusal(module: nn.Module, call: Call) -> str | None:
    """None where the rule serves this call, else why not."""
    inputs = call.bound(module)
    tokens, offsets = inputs["input"], inputs["offsets"]
    if tokens.is_nested:
        return "EmbeddingBag on nested tensors has no fast rule"
    if offsets is not None:
        ends = _ends(module, tokens, offsets)
        # torch's backward counts tokens past the last offset, its forward does not
        if bool((ends < offsets[: len(ends)]).any()) or int(ends[-1]) != len(tokens):
            return "EmbeddingBag whose offsets fall, or leave tokens out, has no fast rule"
    return foreign(module, {"weight"})


def bag(module: nn.Module, call: Call, wanted: Set[str]) -> dict[str, list[Factor]]:
    """The rule: see the top of the file, and `CallRule`."""
    assert isinstance(module, nn.EmbeddingBag)
    found, dy, inputs = Found(module, wanted), call.gradient(0), call.bound(module)
    if dy is None or not found.wants(module.weight):
        return found.factors
    dy = dy.to(working_dtype(module.weight))
    index, counted, weights = _laid_out(module, inputs)  # [B, L] each
    if module.padding_idx is not None:
        counted = counted & (index != module.padding_idx)
    if module.mode == "max":
        rows = torch.where(_won(module, inputs, index, counted), dy[:, None], dy.new_zeros(()))
    else:
        share = counted.to(dy.dtype)
        if module.mode == "mean":
            share = share / share.sum(1, keepdim=True).clamp(min=1)
        if weights is not None:
            share = share * weights.to(dy.dtype)
        rows = share[:, :, None] * dy[:, None]
    found.add(module.weight, OneHot(index, rows, module.num_embeddings))
    return found.factors


def _ends(module: nn.Module, tokens: Tensor, offsets: Tensor) -> Tensor:
    """Where each bag of a one-dimensional input ends."""
    if module.include_last_offset:
        return offsets[1:]
    return torch.cat([offsets[1:], offsets.new_tensor([len(tokens)])])


def _laid_out(module: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, whether there is one, and their weights: [B, L] each."""
    tokens, weights = inputs["input"].long(), inputs["per_sample_weights"]
    if inputs["offsets"] is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool), weights
    ends = _ends(module, tokens, inputs["offsets"])
    lengths = ends - inputs["offsets"][: len(ends)]
    longest = max(1, int(lengths.max()))
    there = torch.arange(longest, device=tokens.device) < lengths[:, None]
    index = tokens.new_zeros(there.shape).masked_scatter(there, tokens)
    if weights is not None:
        weights = weights.new_zeros(there.shape).masked_scatter(there, weights)
    return index, there, weights


def _won(module: Any, inputs: dict[str, Any], index: Tensor, counted: Tensor) -> Tensor:
    """Whether a token gave the maximum: [B, L, d], at most one per bag and feature."""
    tokens, offsets = inputs["input"], inputs["offsets"]
    if offsets is None:
        offsets = torch.arange(0, tokens.numel(), tokens.shape[1], device=tokens.device)
        tokens, offsets = tokens.reshape(-1), offsets.to(tokens.dtype)
    last = module.include_last_offset and inputs["offsets"] is not None
    *_, winner = torch.embedding_bag(
        module.weight, tokens, offsets, False, 2, False, None, last, module.padding_idx
    )  # tokens [B, d]
    inorder, places = index.masked_fill(~counted, -1).sort(dim=1)
    first = torch.ones_like(counted)  # a token that is there twice counts once
    first[:, 1:] = inorder[:, 1:] != inorder[:, :-1]
    counted = counted & torch.empty_like(first).scatter(1, places, first)
    return (index[:, :, None] == winner[:, None, :]) & counted[:, :, None]
