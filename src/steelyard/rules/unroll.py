"""`nn.RNN`, `nn.LSTM` and `nn.GRU` unrolled in time, with the pre-activations in reach.

One layer, step t, both directions at once (the reverse one walks the flipped sequence). For all t
together p_t = W_ih x_t + b_ih; step by step q_t = W_hh h_{t-1} + b_hh, and

| cell | step |
|---|---|
| tanh, relu | h_t = f(p_t + q_t) |
| LSTM | i, f, g, o = p_t + q_t;  c_t = s(f) c_{t-1} + s(i) tanh(g);  m_t = s(o) tanh(c_t) |
| | h_t = m_t, or W_hr m_t with `proj_size` |
| GRU | r, z = s(p_t + q_t);  n = tanh(p_t + r q_t);  h_t = n + z (h_{t-1} - n) |

s is the sigmoid; outside the GRU b_hh is added together with b_ih. Shapes: T steps, B samples, D
directions, H hidden units, k H gates, P = H or `proj_size`.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rules.lstm import walk


@dataclass(slots=True, kw_only=True)
class Layer:
    """What one layer did: all of it in the order in which its directions walked."""

    xs: list[Tensor]  # of each direction: the inputs [T, B, n]
    pre: Tensor  # p [T, D, B, k H]
    start: Tensor  # h_0 [D, B, P]
    hidden: Tensor  # h_1 .. h_T [T, D, B, P]
    cell: Tensor | None = None  # LSTM: c_T [D, B, H]
    reset: Tensor | None = None  # GRU: r_1 .. r_T [T, D, B, H]
    middle: Tensor | None = None  # projected LSTM: m_1 .. m_T [T, D, B, H]
    leaf: Tensor | None = None  # projected LSTM: its gradient is the one at h_1 .. h_T


def unroll(
    module: nn.RNNBase, x: Tensor, states: list[Tensor], tracked: Container[int]
) -> tuple[list[Tensor], list[Layer]]:
    """Outputs (output [T, B, D P], h_n, and c_n of an LSTM) and layers, from x [T, B, n].

    states: h_0 and c_0, [layers * D, B, *]. tracked: the layers whose `pre` needs a gradient.
    Dropout between layers draws as torch does: once per layer, on [T, B, D P].
    """
    D = 2 if module.bidirectional else 1
    layers: list[Layer] = []
    for i in range(module.num_layers):
        if i and module.training and module.dropout > 0:
            x = F.dropout(x, module.dropout)
        layer = _layer(module, i, x, [s[i * D : (i + 1) * D] for s in states], i in tracked)
        layers.append(layer)
        forth = layer.hidden[:, 0]
        x = torch.cat([forth, layer.hidden[:, 1].flip(0)], 2) if D == 2 else forth
    outputs = [x, torch.cat([layer.hidden[-1] for layer in layers])]
    cells = [layer.cell for layer in layers if layer.cell is not None]
    return outputs + ([torch.cat(cells)] if cells else []), layers


def _layer(
    module: nn.RNNBase, number: int, x: Tensor, states: list[Tensor], tracked: bool
) -> Layer:
    gru = module.mode == "GRU"

    def held(kind: str) -> list[Tensor]:  # of each direction
        names = [f"{kind}_l{number}", f"{kind}_l{number}_reverse"][: 1 + module.bidirectional]
        return [module.get_parameter(name).detach().to(x.dtype) for name in names]

    xs = [x, x.flip(0)] if module.bidirectional else [x]
    pre = torch.stack([F.linear(y, w) for y, w in zip(xs, held("weight_ih"), strict=True)], 1)
    bias = None
    if module.bias:
        bias = torch.stack(held("bias_hh"))[:, None]  # [D, 1, k H]
        pre = pre + torch.stack(held("bias_ih"))[:, None] + (0 if gru else bias)
    if tracked and not pre.requires_grad:
        pre.requires_grad_()
    recurrent = torch.stack(held("weight_hh")).transpose(1, 2)  # [D, P, k H]
    start = states[0]
    if gru:
        hidden, reset = _gru(pre, start, recurrent, bias)
        return Layer(xs=xs, pre=pre, start=start, hidden=hidden, reset=reset)
    if module.mode == "LSTM":
        project = None
        if module.proj_size:
            project = torch.stack(held("weight_hr")).transpose(1, 2)
        hidden, cell, middle, leaf = walk(pre, start, states[1], recurrent, project)
        return Layer(
            xs=xs, pre=pre, start=start, hidden=hidden, cell=cell, middle=middle, leaf=leaf
        )
    act = torch.tanh if module.mode == "RNN_TANH" else torch.relu
    h, steps = start, []
    for p in pre.unbind(0):
        h = act(torch.baddbmm(p, h, recurrent))
        steps.append(h)
    return Layer(xs=xs, pre=pre, start=start, hidden=torch.stack(steps))


def _gru(pre: Tensor, h: Tensor, recurrent: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    H, hidden, reset = h.shape[2], [], []
    for p in pre.unbind(0):
        q = torch.bmm(h, recurrent) if bias is None else torch.baddbmm(bias, h, recurrent)
        r, z = (p[..., : 2 * H] + q[..., : 2 * H]).sigmoid().chunk(2, 2)
        n = torch.addcmul(p[..., 2 * H :], r, q[..., 2 * H :]).tanh()
        h = torch.lerp(n, h, z)
        hidden.append(h)
        reset.append(r.detach())
    return torch.stack(hidden), torch.stack(reset)
