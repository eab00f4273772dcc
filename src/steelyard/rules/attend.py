"""What `F.multi_head_attention_forward` computes, with q, k and v in reach.

The same torch functions in the same order, so that dropout draws the same masks from the same
state of the generator. Layout [L, B, E], as torch has it; S keys, `bias_k` and the zero attention
among them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Wishes(NamedTuple):
    """The masks and flags of one call."""

    mask: Tensor | None  # [L, S] or [B * heads, L, S], to be added to the scores
    padding: Tensor | None  # [B, S], to be added
    causal: bool
    weights: bool  # the attention weights are an output too
    average: bool  # ... averaged over heads


def wishes(inputs: dict[str, Any], dtype: torch.dtype) -> Wishes:
    """From the arguments of `nn.MultiheadAttention.forward` by name."""
    padding, weights = _additive(inputs["key_padding_mask"], dtype), inputs["need_weights"]
    # torch drops the mask for the hint where nothing else needs it
    causal = inputs["is_causal"] and padding is None and not weights
    mask = None if causal else _additive(inputs["attn_mask"], dtype)
    return Wishes(mask, padding, causal, weights, inputs["average_attn_weights"])


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None:
        return None
    if mask.is_floating_point():
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def project(module: Any, sources: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v [L, B, E] from query, key and value; bias_k and bias_v are appended."""
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    bias = module.in_proj_bias
    biases = (None, None, None) if bias is None else bias.to(dtype).chunk(3)
    found = [F.linear(x, w.to(dtype), b) for x, w, b in zip(sources, weights, biases, strict=True)]
    if module.bias_k is not None:
        for i, extra in ((1, module.bias_k), (2, module.bias_v)):
            found[i] = torch.cat([found[i], extra.to(dtype).repeat(1, found[i].shape[1], 1)])
    return found


def attend(
    module: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, wishes: Wishes
) -> tuple[Tensor, Tensor | None]:
    """What the out-projection gets [L, B, E], and the attention weights if they were asked for."""
    L, B, E = q.shape
    heads, d = module.num_heads, E // module.num_heads
    q, k, v = (x.contiguous().view(-1, B * heads, d).transpose(0, 1) for x in (q, k, v))
    if module.add_zero_attn:
        zeros = q.new_zeros(B * heads, 1, d)
        k, v = torch.cat([k, zeros], 1), torch.cat([v, zeros], 1)
    S = k.shape[1]
    mask = _merged(wishes, B, heads, S)
    dropout = module.dropout if module.training else 0.0
    if wishes.weights:
        scaled, keys = q * math.sqrt(1.0 / d), k.transpose(1, 2)
        scores = torch.bmm(scaled, keys) if mask is None else torch.baddbmm(mask, scaled, keys)
        weights = F.softmax(scores, dim=-1)
        if dropout > 0:
            weights = F.dropout(weights, dropout)
        attended = torch.bmm(weights, v).transpose(0, 1).reshape(L, B, E)
        weights = weights.view(B, heads, L, S)
        return attended, weights.mean(1) if wishes.average else weights
    if mask is not None:
        mask = mask[None] if mask.shape[0] == 1 else mask.view(B, heads, -1, S)
    attended = F.scaled_dot_product_attention(
        q.view(B, heads, L, d),
        k.view(B, heads, S, d),
        v.view(B, heads, S, d),
        mask,
        dropout,
        wishes.causal,
    )
    return attended.permute(2, 0, 1, 3).reshape(L, B, E), None


def _merged(wishes: Wishes, B: int, heads: int, S: int) -> Tensor | None:
    """Both masks as one [1 or B * heads, 1 or L, S]; appended keys are never masked."""
    mask, padding = wishes.mask, wishes.padding
    if mask is not None:
        mask = F.pad(mask if mask.dim() == 3 else mask[None], (0, S - mask.shape[-1]))
    if padding is not None:
        padding = F.pad(padding, (0, S - padding.shape[1])).view(B, 1, 1, S)
        padding = padding.expand(-1, heads, -1, -1).reshape(B * heads, 1, S)
        return padding if mask is None else mask + padding
    return mask
