"""Per layer type: the factors of its parameters' per-sample gradients.

A rule is a function `(module, x, dy, wanted) -> {parameter name: Factor}` where x [B, ...] is the
layer's first input, dy [B, ...] the gradient of sum_i loss_i at its output (not averaged), and
`wanted` the names of its trainable parameters. A rule serves a subclass only if that inherits
`forward`.

Add a layer: write the rule, add a row to `RULES` (or to `BY_NAME` for a class we must not import),
add a row to the table in tests/rules/test_layers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rules.convolution import convolution, transposed_convolution
from steelyard.rules.factors import Dense, Factor, OneHot, Outer

Rule = Callable[[nn.Module, Tensor, Tensor, Set[str]], dict[str, Factor]]


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
    return _per_channel(x, dy, module.num_groups, module.eps, wanted)


def _instance_norm(module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    assert isinstance(module, nn.modules.instancenorm._InstanceNorm)
    return _per_channel(x, dy, x.shape[1], module.eps, wanted)  # every channel its own group


def _per_channel(
    x: Tensor, dy: Tensor, groups: int, eps: float, wanted: Set[str]
) -> dict[str, Factor]:
    factors: dict[str, Factor] = {}
    if "weight" in wanted:
        normalised = F.group_norm(x, groups, eps=eps)
        factors["weight"] = Dense(_channels(normalised.mul_(dy)).sum(2))
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
        rows = normalised.reshape(dy.shape).mul_(dy).sum(1)
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
    return {"weight": Outer(left, right, weight.shape).cheaper()}


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
    if suffix in ("RMSNorm", "T5LayerNorm"):
        return own == {"weight"} and bool({"eps", "variance_epsilon"} & module.__dict__.keys())
    return type(module).__module__ == "transformers.pytorch_utils"


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.ConvTranspose1d: transposed_convolution,
    nn.ConvTranspose2d: transposed_convolution,
    nn.ConvTranspose3d: transposed_convolution,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
}
# rules of layers that keep leading dimensions as they are, so that [T, B, d] makes sense too
FEATURES_LAST = {_linear, _embedding, _layer_norm, _rms_norm, _conv1d_of_transformers}
BY_NAME: dict[str, Rule] = {
    "RMSNorm": _rms_norm,  # Llama, Qwen, Gemma: y = weight * x / rms(x), or (1 + weight)
    "T5LayerNorm": _rms_norm,
    "Conv1D": _conv1d_of_transformers,
}
