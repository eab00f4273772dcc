"""One call of a layer with several inputs or outputs, and what the rules for such calls share.

A call rule is a function `(module, call, wanted) -> {parameter name: factors}`: `call` holds what
the module was given and the gradients of sum_i loss_i at its outputs (not averaged), `wanted` the
names of its trainable parameters, as `module.named_parameters()` has them. Several factors of one
name are several uses of that parameter: their cross terms belong to its norm.

The rules live in `attention.py`, `recurrent.py` and `bags.py`; `call_rules.py` finds them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from steelyard.rules.factors import Factor


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call of a module.

    | field | meaning |
    |---|---|
    | `args`, `kwargs` | as the module got them, tensors detached |
    | `gradients` | d(sum_i loss_i) / d(output), per tensor output; None: not reached |
    | `shapes` | of the same outputs |
    | `rng` | `rng_state(module)` before the call; needed in training where `needs_rng(module)` |

    Outputs are in the order of `torch.utils._pytree.tree_leaves`, those that are no tensor left
    out. `gradients` may be empty while a call is only judged by `supports`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gradients: list[Tensor | None]
    shapes: list[torch.Size]
    rng: Tensor | None

    def bound(self, module: nn.Module) -> dict[str, Any]:
        """The arguments by the names of the module's `forward`, defaults filled in."""
        found = _signature(type(module)).bind(module, *self.args, **self.kwargs)
        found.apply_defaults()
        return found.arguments

    def gradient(self, position: int) -> Tensor | None:
        """The gradient of one output; None also for an output that there is not."""
        return self.gradients[position] if position < len(self.gradients) else None


CallRule = Callable[[nn.Module, Call, Set[str]], dict[str, list[Factor]]]


class Found:
    """The factors of a module's parameters; a tensor held under two names collects the uses of
    both under the first, as `named_parameters` does."""

    def __init__(self, module: nn.Module, wanted: Set[str]):
        self._names = {id(p): name for name, p in module.named_parameters() if name in wanted}
        self.factors: dict[str, list[Factor]] = {}

    def wants(self, *parameters: Tensor | None) -> bool:
        return any(id(p) in self._names for p in parameters)

    def add(self, parameter: Tensor, *uses: Factor) -> None:
        self.factors.setdefault(self._names[id(parameter)], []).extend(uses)


def working_dtype(weight: Tensor) -> torch.dtype:
    """Of a local recomputation: the weights' own, and never less than float32."""
    return torch.promote_types(weight.dtype, torch.float32)


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def rng_state(module: nn.Module) -> Tensor:
    """The state of the generator that the module's dropout is about to draw from."""
    device = device_of(module)
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def replayed(rng: Tensor | None, device: torch.device) -> Iterator[None]:
    """Inside, the generator stands where `rng` says; afterwards where it stood before."""
    if rng is None:
        yield
        return
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        if cuda:
            torch.cuda.set_rng_state(rng, device)
        else:
            torch.set_rng_state(rng)
        yield


def unreplayable(module: nn.Module, call: Call) -> str | None:
    """Why the dropout of this call cannot be drawn again, or None."""
    device, of = device_of(module), type(module).__name__
    if call.rng is None:
        return f"the dropout of {of} cannot be replayed: no state of the generator was kept"
    if device.type not in ("cpu", "cuda"):
        return f"the dropout of {of} cannot be replayed on {device.type}"
    # a mask depends on the element type on some devices, and autocast chooses that out of our sight
    tensors = [t for t in tree_leaves((call.args, call.kwargs, call.gradients)) if _floats(t)]
    if torch.is_autocast_enabled(device.type) or any(t.dtype.itemsize < 4 for t in tensors):
        return f"the dropout of {of} cannot be replayed in half precision"
    return None


def foreign(module: nn.Module, known: Set[str]) -> str | None:
    """A sentence where the module has a parameter that its rule does not know, else None."""
    names = [name for name, _ in module.named_parameters() if name not in known]
    if names:
        return f"{type(module).__name__} has a parameter {names[0]!r} that its rule does not know"
    return None


def _floats(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@lru_cache(maxsize=64)
def _signature(kind: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(kind.forward)
