"""An LSTM layer's walk through time, and its backward walk written out: symbols of `unroll.py`.

    i, f, g, o = p_t + W_hh h_{t-1};   c_t = s(f) c_{t-1} + s(i) tanh(g);   m_t = s(o) tanh(c_t)

torch's own LSTM is one fused kernel on most machines, so a walk that records every small step would
cost several times as much. What the backward walk multiplies by is formed for all steps at once:

| gradient at | is |
|---|---|
| h_t | dh_t, from the output and from step t + 1; dm_t through W_hr where there is one |
| c_t | dc_t = dc_{t+1} f_{t+1} + dm_t o (1 - tanh(c_t)^2) |
| i, f, g | dc_t times g i (1 - i), c_{t-1} f (1 - f), i (1 - g^2) |
| o | dm_t tanh(c_t) o (1 - o) |

In this table i, f, g, o stand for the gates after sigmoid and tanh.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def walk(
    pre: Tensor, h: Tensor, c: Tensor, recurrent: Tensor, project: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """h_1 .. h_T [T, D, B, P] and c_T [D, B, H]; with a projection also m_1 .. m_T, and a leaf
    whose gradient is the whole gradient at h_1 .. h_T.

    pre [T, D, B, 4 H]; h, c: the states to begin with; recurrent [D, P, 4 H]; project [D, H, P].
    """
    if project is None:
        hidden, cell, _ = _Walk.apply(pre, None, h, c, recurrent, None)
        return hidden, cell, None, None
    leaf = pre.new_zeros(()).expand(*pre.shape[:3], h.shape[2]).requires_grad_(pre.requires_grad)
    return *_Walk.apply(pre, leaf, h, c, recurrent, project), leaf


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pre: Tensor,
        leaf: Tensor | None,
        h: Tensor,
        c: Tensor,
        recurrent: Tensor,
        project: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        T, D, B, H = *pre.shape[:3], c.shape[2]
        gates, cells = torch.empty_like(pre), pre.new_empty(T + 1, D, B, H)
        squashed, middle = pre.new_empty(T, D, B, H), pre.new_empty(T, D, B, H)
        hidden = middle if project is None else pre.new_empty(T, D, B, project.shape[2])
        cells[0] = c
        for t in range(T):
            now = torch.baddbmm(pre[t], h, recurrent, out=gates[t])
            now[..., : 2 * H].sigmoid_()
            now[..., 2 * H : 3 * H].tanh_()
            now[..., 3 * H :].sigmoid_()
            i, f, g, o = now.chunk(4, 2)
            torch.addcmul(f * cells[t], i, g, out=cells[t + 1])
            torch.tanh(cells[t + 1], out=squashed[t])
            h = torch.mul(o, squashed[t], out=middle[t])
            if project is not None:
                h = torch.bmm(h, project, out=hidden[t])
        ctx.save_for_backward(gates, cells, squashed, recurrent, project)
        if project is None:
            return hidden, cells[T].clone(), None
        ctx.mark_non_differentiable(middle)
        return hidden, cells[T].clone(), middle

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_hidden: Tensor, dc: Tensor, _: Tensor | None
    ) -> tuple[Any, ...]:
        gates, cells, squashed, recurrent, project = ctx.saved_tensors
        T, D, B, H = squashed.shape
        i, f, g, o = gates.chunk(4, 3)
        by_dm = o * (1 - squashed.square())
        before = cells[:-1]
        parts = [g * i * (1 - i), before * f * (1 - f), i * (1 - g.square())]
        d_pre = torch.cat([*parts, squashed * o * (1 - o)], 3)  # becomes the gradient, in place
        del parts
        whole = None if project is None else torch.empty_like(d_hidden)
        back = recurrent.transpose(1, 2)
        dh = d_hidden[T - 1]
        for t in reversed(range(T)):
            dm = dh
            if project is not None and whole is not None:
                whole[t] = dh
                dm = torch.bmm(dh, project.transpose(1, 2))
            dc = torch.addcmul(dc, dm, by_dm[t])
            of_gate = d_pre[t].view(D, B, 4, H)
            of_gate[:, :, :3].mul_(dc[:, :, None])
            of_gate[:, :, 3].mul_(dm)
            if t:
                dh = torch.baddbmm(d_hidden[t - 1], d_pre[t], back)
                dc = dc * f[t]
        return d_pre, whole, None, None, None, None
