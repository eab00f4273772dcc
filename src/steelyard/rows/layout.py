"""Who answers for which parameter: a layer rule, a call rule, or the own code of a module.

| parameter of | answered for by |
|---|---|
| a layer with a row in `layers.RULES` | that rule |
| a layer with a row in `call_rules.CALL_RULES` | that call rule |
| a table of relative position biases | `relative_bias` |
| any other module | a `frames.Owner`: the module's own code; of a container, its parent's |
| whatever the first batch shows to be used elsewhere | the own code of a module further up |
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils import parametrize

from steelyard.rows.frames import Owner
from steelyard.rows.relative_bias import TABLE, Bias, has_relative_bias
from steelyard.rows.uses import CallLayer, Layer
from steelyard.rules.call_rules import call_rule_for
from steelyard.rules.layers import rule_for


@dataclass
class Layout:
    layers: list[Layer] = field(default_factory=list)
    calls: list[CallLayer] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)

    @property
    def places(self) -> dict[str, str]:
        """Parameter name -> path of the module that answers for it."""
        found = {n: one.path for one in (*self.layers, *self.calls) for n in one.wanted.values()}
        found |= {bias.name: bias.path for bias in self.biases}
        return found | {name: owner.path for owner in self.owners for name in owner.parameters}


def find_layout(
    model: nn.Module,
    names: Mapping[str, nn.Parameter],
    moved: Mapping[str, str],
    taken_in: Set[nn.Module],
) -> Layout:
    """Every trainable parameter's place. `moved`: parameter name -> path of the module whose own
    code answers for it instead of its layer's rule. `taken_in`: children that run as a part of it.

    Raises ValueError, naming the layer, for one that no per-sample rule can serve.
    """
    canonical = {id(p): n for n, p in names.items()}
    layout, bare = Layout(), {}
    taken: set[str] = set()  # modules whose parameters belong to a call rule above them
    for path, module in model.named_modules():
        try:
            rule, call_rule = rule_for(module), call_rule_for(module)
        except ValueError as error:
            raise ValueError(f"layer {path!r}: {error}") from None
        if path in taken:
            continue
        if has_relative_bias(module):
            name = canonical.get(id(module.get_parameter(f"{TABLE}.weight")))
            if name is not None and name not in moved:
                layout.biases.append(Bias(path, module, name))
                taken.add(f"{path}.{TABLE}".lstrip("."))
        own: dict[str, str] = {}
        for local, p in module.named_parameters(recurse=call_rule is not None):
            name = canonical.get(id(p))
            if name is None:
                continue
            if call_rule and "." in local:
                taken.add(f"{path}.{local.rpartition('.')[0]}".lstrip("."))  # MHA's out_proj
            if name in moved:
                bare.setdefault(moved[name], {})[name] = p
            elif rule or call_rule:
                own[local] = name
            else:
                bare.setdefault(_with_code(model, path), {})[name] = p
        if own and call_rule:
            layout.calls.append(CallLayer(path, module, call_rule, own))
        elif own and rule:
            layout.layers.append(Layer(path, module, rule, own))
    for path, parameters in bare.items():
        layout.owners.append(Owner(path, model.get_submodule(path), parameters, taken_in))
    return layout


def further_up(model: nn.Module, path: str) -> str | None:
    """The path of the next module above with a forward of its own; None above the model."""
    return _with_code(model, path.rpartition(".")[0]) if path else None


def within(path: str, top: str) -> bool:
    return top == "" or path == top or path.startswith(f"{top}.")


def _with_code(model: nn.Module, path: str) -> str:
    """The module itself, or the nearest above it that has a forward (containers have none)."""
    while path:
        module = model.get_submodule(path)
        container = type(module).forward is nn.Module.forward
        if not container and not isinstance(module, parametrize.ParametrizationList):
            return path
        path = path.rpartition(".")[0]
    return path
