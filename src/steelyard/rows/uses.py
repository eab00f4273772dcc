"""Calls of layers with a rule, as recorded, and what arrives at them in the backward pass.

| recorded | delivers | rules |
|---|---|---|
| `Use` of a layer with one input and one output | its rule's factors | `layers.RULES` |
| `CallUse` of a layer with more of either | its call rule's factors | `call_rules.CALL_RULES` |

The third kind, a module's own code with bare parameters, stands in `frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from steelyard.rows.cuts import Reached
from steelyard.rows.proof import Difference
from steelyard.rules.call_rules import needs_rng, supports
from steelyard.rules.calls import Call, CallRule
from steelyard.rules.factors import Factor
from steelyard.rules.layers import FEATURES_LAST, Rule


class BatchMismatchError(RuntimeError):
    """The first dimension of some tensor is not the sample: the fast rules cannot serve it.

    names: the parameters concerned. child: where a module's own code handed such a tensor to a
    child, that child: it can be made a part of the own code.
    """

    def __init__(
        self,
        message: str,
        names: Sequence[str],
        child: nn.Module | None = None,
        single: Any = None,
    ):
        super().__init__(message)
        self.difference = Difference(message, list(names), child, single)


class Arrival(Protocol):
    """Gradients that have come to something recorded: what proof and sums need of it."""

    @property
    def key(self) -> int: ...  # of the recorded thing: the same in every pass

    @property
    def rough(self) -> bool: ...  # whether some gradient came in half precision

    def turnable(self, batch: int) -> Layer | None: ...  # see `_Arrived`

    def gradients(self, batch: int) -> list[Tensor]: ...  # each [B, ...]

    def factors(self, batch: int) -> dict[str, list[Factor]]: ...


# where arrivals go; None while a backward pass is not the engine's own
Listener = Callable[[], Callable[[Arrival], None] | None]


class Layer:
    """A module with a rule. `dim`: which dimension is the sample, settled by the first batch."""

    def __init__(self, path: str, module: nn.Module, rule: Rule, wanted: Mapping[str, str]):
        self.path, self.module, self.rule, self.wanted = path, module, rule, wanted
        self.dim: int | None = None
        self.expand: int | str | None = None  # argument of the model that tells B: see `broadcast`
        self.turned = False  # what to think of [T, B, d] with T = B

    def samples_first(
        self, x: Tensor, dy: Tensor, batch: int, use: Any = None
    ) -> tuple[Tensor, Tensor]:
        dim = self.dim
        if dim is None:
            second = self.rule in FEATURES_LAST and dy.dim() > 2 and x.shape[1] == batch
            second = second and not self.positions(x)  # [1, T] with T = B
            if second and x.shape[0] == batch:
                dim = int(self.turned)
            else:
                dim = int(second)  # [T, B, d]
                self.dim = dim if batch > 1 else None
        if x.dim() <= dim or x.shape[dim] != batch or dy.shape[dim] != batch:
            raise BatchMismatchError(
                f"layer {self.path!r} saw an input of shape {list(x.shape)} where there are "
                f"{batch} losses: the first dimension must be the sample",
                list(self.wanted.values()),
                single=use if self.positions(x) else None,
            )
        return (x, dy) if dim == 0 else (x.transpose(0, 1), dy.transpose(0, 1))

    def positions(self, x: Tensor) -> bool:
        """Whether these look like the ids of one row for the whole batch."""
        return isinstance(self.module, nn.Embedding) and x.dim() == 2 and len(x) == 1


class Use:
    """One call of a layer with one input and one output."""

    __slots__ = ("__weakref__", "_like", "layer", "listener", "names", "shape")

    def __init__(self, listener: Listener, layer: Layer, x: Tensor):
        self.listener, self.layer = listener, layer
        self.names, self._like = layer.wanted.values(), x.shape
        # of a layer whose biases alone are trained, the shape of the input is all that is needed
        self.shape = x.shape if layer.wanted.keys() == {"bias"} else None

    def kind(self, batch: int) -> Hashable:
        return self.layer.path, pattern(self._like, batch)

    def reached(self, cut: Reached) -> None:
        (dy,) = cut.gradients
        deliver = self.listener()
        if dy is None or deliver is None:
            return
        saved = cut.saved(self.layer.path)
        x = saved[0] if self.shape is None else dy.new_empty(()).expand(self.shape)
        deliver(_Arrived(self, x, dy))


class _Arrived:
    __slots__ = ("_dy", "_use", "_x", "key", "rough")

    def __init__(self, use: Use, x: Tensor, dy: Tensor):
        self._use, self._x, self._dy = use, x, dy
        self.key, self.rough = id(use), half(dy)

    def gradients(self, batch: int) -> list[Tensor]:
        return [self._use.layer.samples_first(self._x, self._dy, batch, self._use)[1]]

    def turnable(self, batch: int) -> Layer | None:
        """The layer, if its samples may as well stand in the second dimension."""
        layer, ahead = self._use.layer, tuple(self._x.shape[:2])
        sequence = layer.rule in FEATURES_LAST and self._dy.dim() > 2
        return layer if layer.dim is None and sequence and ahead == (batch, batch) else None

    def factors(self, batch: int) -> dict[str, list[Factor]]:
        layer = self._use.layer
        x, dy = layer.samples_first(self._x, self._dy, batch)
        dy = dy.float() if self.rough else dy
        if x.is_floating_point() and x.dtype != dy.dtype:
            x = x.to(dy.dtype)
        found = layer.rule(layer.module, x, dy, layer.wanted.keys())
        return {layer.wanted[name]: [factor] for name, factor in found.items()}


class CallLayer:
    """A module with a call rule."""

    def __init__(self, path: str, module: nn.Module, rule: CallRule, wanted: Mapping[str, str]):
        self.path, self.module, self.rule, self.wanted = path, module, rule, wanted


class CallUse:
    """One call of a layer with several inputs or outputs; `watched`: outputs with a gradient."""

    def __init__(
        self,
        listener: Listener,
        layer: CallLayer,
        given: Any,
        outputs: list[Any],
        rng: Tensor | None,
    ):
        self.listener, self.layer, self.names = listener, layer, layer.wanted.values()
        leaves, self._spec = tree_flatten(given)
        self.saved = [leaf for leaf in leaves if isinstance(leaf, Tensor)]  # until the cut has them
        self._others = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        tensors = [t for t in outputs if isinstance(t, Tensor)]
        self._shapes = [t.shape for t in tensors]
        self._watched = [i for i, t in enumerate(tensors) if t.requires_grad]
        self._rng, self._training = rng, layer.module.training
        self._like = [t.shape for t in (*self.saved, *tensors)]

    def kind(self, batch: int) -> Hashable:
        patterns = tuple(pattern(shape, batch) for shape in self._like)
        return self.layer.path, self._training, patterns

    def reached(self, cut: Reached) -> None:
        deliver = self.listener()
        if deliver is None:
            return
        module = self.layer.module
        if module.training != self._training and needs_rng(module):
            raise RuntimeError(
                f"layer {self.layer.path!r} was switched between training and evaluation mode "
                "after its forward: its dropout cannot be computed again; call rows.backward first"
            )
        saved = iter(cut.saved(self.layer.path))
        leaves = [next(saved) if other is _TENSOR else other for other in self._others]
        args, kwargs = tree_unflatten(leaves, self._spec)
        gradients: list[Tensor | None] = [None] * len(self._shapes)
        for i, dy in zip(self._watched, cut.gradients, strict=True):
            gradients[i] = dy
        deliver(_CallArrived(self, Call(args, kwargs, gradients, self._shapes, self._rng)))


class _CallArrived:
    __slots__ = ("_call", "_use", "key", "rough")

    def __init__(self, use: CallUse, call: Call):
        self._use, self._call, self.key = use, call, id(use)
        self.rough = any(dy is not None and half(dy) for dy in call.gradients)

    def turnable(self, batch: int) -> None:
        return None

    def gradients(self, batch: int) -> list[Tensor]:
        found = []
        for i, dy in enumerate(self._call.gradients):
            if dy is not None:
                dim = sample_dimension(self._use.layer.module, i)
                self._expect(dy.shape[dim], batch)
                found.append(dy.movedim(dim, 0))
        return found

    def factors(self, batch: int) -> dict[str, list[Factor]]:
        layer, call = self._use.layer, self._call
        reason = supports(layer.module, call)
        if reason is not None:
            raise BatchMismatchError(f"layer {layer.path!r}: {reason}", list(layer.wanted.values()))
        self.gradients(batch)
        found = layer.rule(layer.module, call, layer.wanted.keys())
        return {layer.wanted[name]: factors for name, factors in found.items()}

    def _expect(self, found: int, batch: int) -> None:
        if found != batch:
            raise BatchMismatchError(
                f"layer {self._use.layer.path!r} returned {found} samples where there are {batch} "
                "losses: the first dimension must be the sample",
                list(self._use.layer.wanted.values()),
            )


def pattern(shape: torch.Size, batch: int) -> Hashable:
    """Where a tensor may have its samples: what it looks like to rules that go by the shape."""
    return len(shape), batch > 1, *(size == batch for size in shape[:2])


_TENSOR = object()  # stands in the place of a tensor that autograd keeps


def sample_dimension(module: nn.Module, output: int) -> int:
    """Of a tensor output of a layer with a call rule."""
    if isinstance(module, nn.RNNBase):
        return 0 if output == 0 and module.batch_first else 1
    if isinstance(module, nn.MultiheadAttention):
        return 1 if output == 0 and not module.batch_first else 0
    return 0


def half(t: Tensor) -> bool:
    """Whether a tensor is of half precision."""
    return t.dtype in (torch.float16, torch.bfloat16)
