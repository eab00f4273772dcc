"""The hidden states of a decoder's layer, found by number or by name.

| symbol | variable |
|---|---|
| h_l | `hidden(model, tokens, layer)`: [B, T, d], the residual stream behind layer l |
"""

from __future__ import annotations

import difflib

from torch import Tensor, nn

from steelyard.objectives.tokens import Tokens, forward


def hidden(model: nn.Module, tokens: Tokens, layer: int | str) -> Tensor:
    """h_l [B, T, d] of `tokens`, in the model's own precision, differentiable where `model` is.

    layer: a number counts the blocks from 0 (-1 is the last); a name is a module's dotted path,
    or the end of just one ("layers.7", "h.7.mlp").
    The whole model runs, its head included: a hook reads what the layer returns.
    Raises: ValueError for an unknown layer, or one whose output is no [B, T, d].
    """
    found: list[Tensor] = []

    def read(module: nn.Module, inputs: object, output: object) -> None:
        state = output[0] if isinstance(output, tuple) else output
        if not isinstance(state, Tensor) or state.shape[:2] != tokens.input_ids.shape:
            raise ValueError(f"layer {layer!r} returns no [B, T, d]: choose a decoder block")
        found.append(state)

    handle = find_layer(model, layer).register_forward_hook(read)
    try:
        forward(model, tokens)
    finally:
        handle.remove()
    if len(found) != 1:
        raise ValueError(f"layer {layer!r} ran {len(found)} times in one forward pass: choose one")
    return found[0]


def find_layer(model: nn.Module, layer: int | str) -> nn.Module:
    """The module that `layer` means.

    Numbers index the blocks: of all `ModuleList`s and `Sequential`s inside no other one, the one
    with the most parameters (`model.layers`, `transformer.h`, `blocks`, with or without peft).
    Raises: ValueError where nothing, or more than one module, is meant.
    """
    if isinstance(layer, str):
        return _by_name(model, layer)
    blocks = _blocks(model)
    if not -len(blocks) <= layer < len(blocks):
        raise ValueError(f"layer {layer} of {len(blocks)}: use 0 to {len(blocks) - 1}")
    return blocks[layer]


def _by_name(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name in modules:
        return modules[name]
    ends = [path for path in modules if path.endswith(f".{name}")]
    if len(ends) == 1:
        return modules[ends[0]]
    if ends:
        raise ValueError(f"layer {name!r} is the end of {ends[0]!r} and {ends[1]!r}: write more")
    close = difflib.get_close_matches(name, modules, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else "see model.named_modules()"
    raise ValueError(f"the model has no layer {name!r}: {hint}")


def _blocks(model: nn.Module) -> list[nn.Module]:
    outermost: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{other}.") for other in outermost)
        if isinstance(module, nn.ModuleList | nn.Sequential) and not inside and path:
            outermost[path] = module
    if not outermost:
        raise ValueError("the model has no list of layers: name one by its dotted path")
    largest = max(outermost.values(), key=lambda m: sum(p.numel() for p in m.parameters()))
    return list(largest.children())
