"""Per-sample gradients of `nn.RNN`, `nn.LSTM` and `nn.GRU`.

The layers are unrolled again (`unroll.py`, symbols there). One local backward pass through time,
from output, h_n and c_n, gives dp_t of all samples, layers and directions at once. q_t is the part
of the pre-activation that comes from h_{t-1}: dq_t = dp_t, but for the third gate of a GRU, where
dq_t = r_t dp_t.

| parameter | gradient of a sample |
|---|---|
| weight_ih | sum over t of dp_t (x) x_t |
| weight_hh | sum over t of dq_t (x) h_{t-1} |
| bias_ih, bias_hh | sums of dp_t and dq_t |
| weight_hr | sum over t of dh_t (x) m_t |
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from steelyard.rules.calls import (
    Call,
    Found,
    device_of,
    foreign,
    replayed,
    unreplayable,
    working_dtype,
)
from steelyard.rules.factors import Dense, Factor
from steelyard.rules.layers import _matrix
from steelyard.rules.unroll import Layer, unroll


def recurrent_draws(module: nn.Module) -> bool:
    """Whether a call draws random numbers in training."""
    assert isinstance(module, nn.RNNBase)
    return module.dropout > 0 and module.num_layers > 1


def recurrent_refusal(module: nn.Module, call: Call) -> str | None:
    """None where the rule serves this call, else why not."""
    assert isinstance(module, nn.RNNBase)
    x, of = call.bound(module)["input"], type(module).__name__
    if isinstance(x, PackedSequence):
        return f"{of} on a PackedSequence has no fast rule: pad the sequences instead"
    if x.dim() != 3:
        return f"{of} on inputs without a batch dimension has no fast rule"
    unknown = foreign(module, {name for group in module._all_weights for name in group})
    if unknown or not (module.training and recurrent_draws(module)):
        return unknown
    if device_of(module).type != "cpu":
        return f"the dropout of {of} cannot be replayed on a GPU: cuDNN keeps its own state"
    return unreplayable(module, call)


def recurrent(module: nn.Module, call: Call, wanted: Set[str]) -> dict[str, list[Factor]]:
    """The rule: see the top of the file, and `CallRule`."""
    assert isinstance(module, nn.RNNBase)
    found, inputs = Found(module, wanted), call.bound(module)
    seeds = [g for g in call.gradients if g is not None]
    numbers = [i for i in range(module.num_layers) if found.wants(*_parameters(module, i).values())]
    if not seeds or not numbers:
        return found.factors

    dtype = working_dtype(module.get_parameter("weight_ih_l0"))
    x = _time_first(module, inputs["input"]).to(dtype)
    with torch.enable_grad(), replayed(call.rng, device_of(module)):
        outputs, layers = unroll(module, x, _states(module, x, inputs["hx"]), numbers)
    reached = [(o, g) for o, g in zip(outputs, call.gradients, strict=True) if g is not None]
    mine = [layers[i] for i in numbers]
    leaves = [layer.leaf for layer in mine if layer.leaf is not None]  # of all or of none
    grads = torch.autograd.grad(
        [o for o, _ in reached],
        [*(layer.pre for layer in mine), *leaves],
        [(_time_first(module, g) if o is outputs[0] else g).to(dtype) for o, g in reached],
        allow_unused=True,
        materialize_grads=True,
    )
    for k, (i, layer) in enumerate(zip(numbers, mine, strict=True)):
        dh = grads[len(mine) + k] if leaves else None
        _factors(module, i, layer, grads[k], dh, found)
    return found.factors


def _factors(
    module: nn.RNNBase, number: int, layer: Layer, dp: Tensor, dh: Tensor | None, found: Found
) -> None:
    """Of one layer; dp [T, D, B, k H], dh [T, D, B, P] where there is a projection."""
    dq = dp
    if layer.reset is not None:
        H = module.hidden_size
        dq = torch.cat([dp[..., : 2 * H], dp[..., 2 * H :] * layer.reset], 3)
    before = torch.cat([layer.start[None], layer.hidden[:-1].detach()])  # h_{t-1}: [T, D, B, P]
    pairs = {
        "weight_ih": (dp, layer.xs),
        "weight_hh": (dq, before.unbind(1)),
        "bias_ih": (dp, None),
        "bias_hh": (dq, None),
    }
    if dh is not None and layer.middle is not None:
        pairs["weight_hr"] = (dh, layer.middle.unbind(1))
    for name, parameter in _parameters(module, number).items():
        if not found.wants(parameter):
            continue
        left, rights = pairs[name[: name.index("_l")]]
        side = int(name.endswith("_reverse"))
        left = left[:, side].transpose(0, 1)  # [B, T, k H]
        if rights is None:
            found.add(parameter, Dense(left.sum(1)))
        else:
            right = rights[side].detach().transpose(0, 1)
            found.add(parameter, _matrix(left, right, parameter, {"weight"})["weight"])


def _parameters(module: nn.RNNBase, number: int) -> dict[str, nn.Parameter]:
    """Of one layer, by name."""
    D = 2 if module.bidirectional else 1
    groups = module._all_weights[number * D : (number + 1) * D]
    return {name: module.get_parameter(name) for group in groups for name in group}


def _time_first(module: nn.RNNBase, x: Tensor) -> Tensor:
    return x.transpose(0, 1) if module.batch_first else x


def _states(module: nn.RNNBase, x: Tensor, given: Any) -> list[Tensor]:
    """h_0, and c_0 of an LSTM: [layers * D, B, *]; zeros where none were given."""
    if given is not None:
        return [state.to(x.dtype) for state in (given if module.mode == "LSTM" else [given])]
    rows = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or module.hidden_size]
    if module.mode == "LSTM":
        sizes.append(module.hidden_size)
    return [x.new_zeros(rows, x.shape[1], size) for size in sizes]
