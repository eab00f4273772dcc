"""Per layer type: the factors of its parameters' per-sample gradients.

A rule is a function `(module, x, dy, wanted) -> {parameter name: Factor}` where x [B, ...] is the
layer's first input, dy [B, ...] the gradient of sum_i loss_i at its output (not averaged), and
`wanted` the names of its trainable parameters. A rule serves a subclass only if that inherits
`forward`.

Add a layer: write the rule, add a row to `RULES` (or to `BY_NAME` for a class we must not import),
add a row to the table in tests/rows/test_layers.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rows.factors import Dense, Factor, OneHot, Outer

Rule = Callable[[nn.Module, Tensor, Tensor, Set[str]], dict[str, Factor]]

# Instantiating a weight's rows and re-using them for the sum costs no extra product but moves
# 3 * B * m * n numbers through memory; the ghost norm costs 2 B L^2 (m + n) more operations.
# Measured on CPUs (benchmarks/step_cost.py): about this many operations per number moved.
OPERATIONS_PER_NUMBER = 48


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a layer, or None where there is none. Raises ValueError for a layer that no
    per-sample rule can serve: one that mixes samples (BatchNorm), or breaks the sensitivity."""
    if isinstance(module, nn.modules.batchnorm._NormBase) and not isinstance(
        module, nn.modules.instancenorm._InstanceNorm
    ):
        raise ValueError(
            f"{type(module).__name__} mixes the samples of a batch, so none has a gradient of its "
            "own: use GroupNorm (steelyard.models.replace_batchnorm, or --replace-batchnorm)"
        )
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
        raise ValueError(
            "InstanceNorm with track_running_stats keeps statistics of the private inputs, without "
            "noise: turn that off"
        )
    if isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq):
        option = "max_norm" if module.max_norm else "scale_grad_by_freq"
        raise ValueError(f"Embedding with {option} couples the samples of a batch: turn it off")
    for kind, rule in RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return rule
    for suffix, rule in BY_NAME.items():
        if type(module).__name__.endswith(suffix) and _weight_only(module, suffix):
            return rule
    return None


def _linear(module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    x, dy = _positions(x), _positions(dy)
    return _matrix(dy, x, module.weight, wanted) | _bias(dy, wanted)


def _conv1d_of_transformers(
    module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]
) -> dict[str, Factor]:
    x, dy = _positions(x), _positions(dy)  # weight [d_in, d_out]
    return _matrix(x, dy, module.weight, wanted) | _bias(dy, wanted)


def _embedding(module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    assert isinstance(module, nn.Embedding)
    index, dy = x.reshape(x.shape[0], -1), _positions(dy)
    if module.padding_idx is not None:
        dy = dy * (index != module.padding_idx)[:, :, None]
    return {"weight": OneHot(index, dy, module.num_embeddings)}


def _conv(module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    dy = dy.flatten(2)  # [B, c_out, L]
    factors: dict[str, Factor] = {}
    if "weight" in wanted:
        patches = _patches(module, x)  # [B, c_in * k, L]
        if module.groups == 1:
            factors = _matrix(
                dy.transpose(1, 2), patches.transpose(1, 2), module.weight, {"weight"}
            )
        else:
            B, G = dy.shape[0], module.groups
            rows = torch.matmul(
                dy.reshape(B, G, -1, dy.shape[2]),
                patches.reshape(B, G, -1, dy.shape[2]).transpose(2, 3),
            )  # [B, G, c_out / G, c_in / G * k]
            factors = {"weight": Dense(rows.reshape(B, *module.weight.shape))}
    if "bias" in wanted:
        factors["bias"] = Dense(dy.sum(2))
    return factors


def _patches(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """What each output position sees: [B, c_in * kernel, L]; one strided copy, F.unfold is

    slower.
    """
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if module.padding == "valid":
        sides = [(0, 0)] * len(kernel)
    elif module.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    if any(side != (0, 0) for side in sides):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, [p for side in reversed(sides) for p in side], mode=mode)
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    x = x.contiguous()  # of channels-last images too: rows of the copy below are then contiguous
    steps = x.stride()[2:]
    view = x.as_strided(
        (*x.shape[:2], *kernel, *sizes),
        (
            *x.stride()[:2],
            *(step * d for step, d in zip(steps, dilation, strict=True)),
            *(step * s for step, s in zip(steps, stride, strict=True)),
        ),
        x.storage_offset(),
    )
    return view.reshape(x.shape[0], -1, math.prod(sizes))


def _layer_norm(module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    assert isinstance(module, nn.LayerNorm)
    shape = module.normalized_shape
    normalised = F.layer_norm(x, shape, eps=module.eps) if "weight" in wanted else x
    return _scale_and_shift(dy, normalised, len(shape), wanted)


def _rms_norm(module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    # torch's `eps`, or transformers' `variance_epsilon`; None means the input's machine epsilon
    eps = module.eps if "eps" in module.__dict__ else module.variance_epsilon
    weight = module.weight
    assert isinstance(weight, Tensor)
    normalised = F.rms_norm(x, weight.shape, eps=eps)  # pyright: ignore[reportArgumentType]
    return _scale_and_shift(dy, normalised, weight.dim(), wanted)


def _group_norm(module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    assert isinstance(module, nn.GroupNorm)
    factors: dict[str, Factor] = {}
    if "weight" in wanted:
        normalised = F.group_norm(x, module.num_groups, eps=module.eps)
        factors["weight"] = Dense(_channels(dy * normalised).sum(2))
    if "bias" in wanted:
        factors["bias"] = Dense(_channels(dy).sum(2))
    return factors


def _scale_and_shift(
    dy: Tensor, normalised: Tensor, dims: int, wanted: Set[str]
) -> dict[str, Factor]:
    shape = dy.shape[dy.dim() - dims :]
    dy = dy.reshape(dy.shape[0], -1, shape.numel())  # [B, L, d]
    factors: dict[str, Factor] = {}
    if "weight" in wanted:
        rows = (dy * normalised.reshape(dy.shape)).sum(1)
        factors["weight"] = Dense(rows.view(-1, *shape))
    if "bias" in wanted:
        factors["bias"] = Dense(dy.sum(1).view(-1, *shape))
    return factors


def _matrix(
    left: Tensor, right: Tensor, weight: Tensor | nn.Module, wanted: Set[str]
) -> dict[str, Factor]:
    """The factor of a weight matrix, ghost or instantiated, whichever is cheaper here."""
    if "weight" not in wanted:
        return {}
    assert isinstance(weight, Tensor)
    factor = Outer(left, right, weight.shape)
    L, m, n = left.shape[1], left.shape[2], right.shape[2]
    ghost = 2 * L * L * (m + n)
    instantiate = OPERATIONS_PER_NUMBER * 3 * m * n
    if L > 1 and instantiate < ghost:
        return {"weight": factor.instantiated()}
    return {"weight": factor}


def _bias(dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    return {"bias": Dense(dy.sum(1) if dy.shape[1] > 1 else dy[:, 0])} if "bias" in wanted else {}


def _positions(x: Tensor) -> Tensor:
    """[B, ..., d] -> [B, L, d]; [B, d] -> [B, 1, d]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _channels(x: Tensor) -> Tensor:
    """[B, C, ...] -> [B, C, L]; [B, C] -> [B, C, 1]."""
    return x.reshape(*x.shape[:2], -1)


def _weight_only(module: nn.Module, suffix: str) -> bool:
    """Guards a rule found by class name: the parameters must be the ones it knows."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    if suffix == "RMSNorm":
        return own == {"weight"} and bool({"eps", "variance_epsilon"} & module.__dict__.keys())
    return type(module).__module__ == "transformers.pytorch_utils"


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
}
BY_NAME: dict[str, Rule] = {
    "RMSNorm": _rms_norm,  # Llama, Qwen, T5LayerNorm's kin: y = weight * x / rms(x)
    "Conv1D": _conv1d_of_transformers,
}
