"""Per-sample gradients of `nn.MultiheadAttention`.

    q = W_q x_q + b_q, k and v alike;   a = softmax(q k' / sqrt(d)) v per head;   y = W_o a + b_o

| parameter | gradient of a sample |
|---|---|
| in-projection weights | sum over positions of dq (x) x_q, dk (x) x_k, dv (x) x_v |
| in-projection bias | the sums of dq, dk, dv over positions |
| bias_k, bias_v | dk, dv at the position that they are appended as |
| out-projection | sum over positions of dy (x) a, and of dy |

q, k, v and a are computed again (`attend.py`). One local backward pass from a, and from the
attention weights where they were used, gives dq, dk and dv of all samples at once.
"""

from __future__ import annotations

from collections.abc import Set
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rules.attend import attend, project, wishes
from steelyard.rules.calls import Call, Found, device_of, foreign, replayed, unreplayable
from steelyard.rules.calls import working_dtype as dtype_of
from steelyard.rules.factors import Dense, Factor, Outer
from steelyard.rules.layers import _matrix

_KNOWN = {
    *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"),
    *("bias_k", "bias_v", "out_proj.weight", "out_proj.bias"),
}


def attention_draws(module: nn.Module) -> bool:
    """Whether a call draws random numbers in training."""
    assert isinstance(module, nn.MultiheadAttention)
    return module.dropout > 0


def attention_refusal(module: nn.Module, call: Call) -> str | None:
    """None where the rule serves this call, else why not."""
    assert isinstance(module, nn.MultiheadAttention)
    inputs = call.bound(module)
    tensors = [inputs[name] for name in ("query", "key", "value")]
    if any(x.is_nested for x in tensors):
        return "MultiheadAttention on nested tensors has no fast rule"
    if any(x.dim() != 3 for x in tensors):
        return "MultiheadAttention on inputs without a batch dimension has no fast rule"
    unknown = foreign(module, _KNOWN)
    if unknown or not (module.training and attention_draws(module)):
        return unknown
    return unreplayable(module, call)


def attention(module: nn.Module, call: Call, wanted: Set[str]) -> dict[str, list[Factor]]:
    """The rule: see the top of the file, and `CallRule`."""
    assert isinstance(module, nn.MultiheadAttention)
    found, out, inputs = Found(module, wanted), module.out_proj, call.bound(module)
    dtype = dtype_of(out.weight)
    dy, d_weights = call.gradient(0), call.gradient(1)
    if dy is not None:
        dy = dy.to(dtype).transpose(0, 1) if module.batch_first else dy.to(dtype)  # [L, B, E]
        if found.wants(out.bias):
            found.add(out.bias, Dense(dy.sum(0)))
    inside = found.wants(*module.parameters(recurse=False))
    if not inside and not (dy is not None and found.wants(out.weight)):
        return found.factors

    sources = _sources(module, inputs, dtype)
    q, k, v = (x.requires_grad_(inside) for x in project(module, sources, dtype))
    with torch.set_grad_enabled(inside), replayed(call.rng, device_of(module)):
        attended, weights = attend(module, q, k, v, wishes(inputs, dtype))
    ends: list[tuple[Tensor, Tensor]] = []
    if dy is not None:
        ends.append((attended, dy @ out.weight.to(dtype)))
        if found.wants(out.weight):
            right = attended.detach().transpose(0, 1)
            found.add(out.weight, _outer(dy.transpose(0, 1), right, out.weight))
    if d_weights is not None and weights is not None:
        ends.append((weights, d_weights.to(dtype)))
    if inside and ends:
        grads = torch.autograd.grad(
            [end for end, _ in ends],
            [q, k, v],
            [seed for _, seed in ends],
            allow_unused=True,
            materialize_grads=True,
        )
        _inside(module, found, sources, [g.transpose(0, 1) for g in grads])
    return found.factors


def _inside(module: Any, found: Found, sources: list[Tensor], grads: list[Tensor]) -> None:
    """Factors of what lies before the attention; grads: dq, dk, dv [B, L, E]."""
    if module.bias_k is not None:
        for bias, i in ((module.bias_k, 1), (module.bias_v, 2)):
            if found.wants(bias):
                found.add(bias, Dense(grads[i][:, -1, None, None]))
            grads[i] = grads[i][:, :-1]
    if found.wants(module.in_proj_bias):
        found.add(module.in_proj_bias, Dense(torch.cat([g.sum(1) for g in grads], 1)))
    xs = [x.transpose(0, 1) for x in sources]
    if not module._qkv_same_embed_dim:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        for weight, left, x in zip(weights, grads, xs, strict=True):
            if found.wants(weight):
                found.add(weight, _outer(left, x, weight))
    elif found.wants(module.in_proj_weight):
        same = [before is x for before, x in pairwise(sources)]
        found.add(module.in_proj_weight, *_packed(grads, xs, same, module.in_proj_weight))


def _packed(
    grads: list[Tensor], xs: list[Tensor], same: list[bool], weight: Tensor
) -> list[Factor]:
    """The weight [3E, E]. Neighbours with the same input share one block of its rows (self
    attention is one block in all); where there are several, zeros embed each in the whole."""
    blocks = [([grads[0]], xs[0])]
    for left, x, joined in zip(grads[1:], xs[1:], same, strict=True):
        if joined:
            blocks[-1][0].append(left)
        else:
            blocks.append(([left], x))
    lefts = [torch.cat(parts, 2) for parts, _ in blocks]
    factors = [
        _outer(left, x, weight[: left.shape[2]]) for left, (_, x) in zip(lefts, blocks, strict=True)
    ]
    if len(factors) == 1:
        return factors
    dense = [factor.rows for factor in factors if isinstance(factor, Dense)]
    if len(dense) == len(factors):
        return [Dense(torch.cat(dense, 1))]
    uses: list[Factor] = []
    start, end = 0, weight.shape[0]
    for left, (_, x) in zip(lefts, blocks, strict=True):
        start, end = start + left.shape[2], end - left.shape[2]
        uses.append(Outer(F.pad(left, (start - left.shape[2], end)), x, weight.shape))
    return uses


def _outer(left: Tensor, right: Tensor, weight: Tensor) -> Factor:
    return _matrix(left, right, weight, {"weight"})["weight"]


def _sources(
    module: nn.MultiheadAttention, inputs: dict[str, Any], dtype: torch.dtype
) -> list[Tensor]:
    """Query, key and value [L, B, E]; one object where they are the same memory."""
    given: list[Tensor] = [inputs[name] for name in ("query", "key", "value")]
    found: list[Tensor] = []
    for i, x in enumerate(given):
        twins = [found[j] for j in range(i) if _same(x, given[j])]
        found += twins[:1] or [(x.transpose(0, 1) if module.batch_first else x).to(dtype)]
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors, detached one by one, are one."""
    return a.data_ptr() == b.data_ptr() and (a.shape, a.stride(), a.dtype) == (
        (b.shape, b.stride(), b.dtype)
    )
