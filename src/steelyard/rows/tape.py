"""What happened in the forward pass: a list of uses, one per call of a layer with a rule.

Forward hooks keep each use's detached input and its output's place in the graph; a tensor hook
hands over the output gradient when a backward pass reaches it. Nothing is patched or wrapped;
`close` removes all hooks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from steelyard.rows.factors import Factor
from steelyard.rows.layers import Rule, rule_for

MAX_FORWARDS = 64


class Use:
    """One call of one layer: rule, input, place of its output in the graph."""

    __slots__ = (
        *("__weakref__", "edge", "layer", "module", "rough", "rule"),
        *("version", "wanted", "x"),
    )

    def __init__(self, layer: str, module: nn.Module, rule: Rule, wanted: Mapping[str, str]):
        self.layer, self.module, self.rule = layer, module, rule
        self.wanted = wanted  # the layer's own parameter name -> its name in the model
        self.x: Tensor
        self.version: int | None
        self.edge: GradientEdge
        self.rough = False  # whether its output gradient came in half precision

    def keep(self, x: Tensor) -> None:
        """The layer's input; of a layer whose biases alone are trained, its shape."""
        if self.wanted.keys() == {"bias"}:
            self.x, self.version = x.new_empty(()).expand(x.shape), None
        else:
            self.x, self.version = x.detach(), x._version

    def release(self) -> None:
        """Let go of the input: the factors hold what they need of it."""
        self.x = self.x.new_empty(())

    def factors(self, dy: Tensor, batch: int) -> dict[str, Factor]:
        """The factors of this use by the parameter's name in the model."""
        x = self.x
        if self.version is not None and self.version != x._version:
            raise RuntimeError(f"the input of layer {self.layer!r} was changed in place after use")
        if x.shape[0] != batch or dy.shape[0] != batch:
            raise BatchMismatchError(
                f"layer {self.layer!r} saw a first dimension of {x.shape[0]} where there are "
                f"{batch} losses: the first dimension must be the sample"
            )
        if dy.dtype in (torch.float16, torch.bfloat16):
            dy, self.rough = dy.float(), True
        if x.is_floating_point() and x.dtype != dy.dtype:
            x = x.to(dy.dtype)
        found = self.rule(self.module, x, dy, self.wanted.keys())
        return {self.wanted[name]: factor for name, factor in found.items()}


class BatchMismatchError(RuntimeError):
    """A layer whose first dimension is not the sample: the fast rules cannot serve it."""


class Tape:
    """Records uses between two backward passes. `arrive(use, dy)` is called inside the backward."""

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        arrive: Callable[[Use, Tensor], None],
    ):
        self.uses: list[Use] = []
        self.replaying = False
        self._arrive = weakref.WeakMethod(arrive)
        self._forwards: list[list[int]] = []  # of each: the first dimensions of its tensors
        self._handles = [model.register_forward_pre_hook(_Hook(Tape.began, self), with_kwargs=True)]
        for name, (module, rule, wanted) in layers.items():
            record = _Hook(Tape.record, self, name, rule, wanted)
            self._handles.append(module.register_forward_hook(record, with_kwargs=True))
            if isinstance(module, nn.Embedding):
                expand = _Hook(Tape.expanded, self)
                self._handles.append(module.register_forward_pre_hook(expand, with_kwargs=True))

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Inside, hooks hand over output gradients, and a recomputed forward is not recorded."""
        self.replaying = True
        try:
            yield
        finally:
            self.replaying = False

    def clear(self) -> None:
        self.uses, self._forwards = [], []

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.clear()

    def check(self, count: int) -> None:
        """Raises ValueError where `count` losses cannot be one per sample of the forwards."""
        known = [sizes for sizes in self._forwards if sizes]
        together = sum(max(sizes) for sizes in known)
        if known and count != together and not any(count in sizes for sizes in known):
            raise ValueError(
                f"{count} losses for a batch of {max(known[-1])} samples: one loss per sample is "
                "needed (average over a sample's own positions; a loss per token would make every "
                "token a sample)"
            )

    def began(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward of the whole model begins."""
        if self.replaying or not torch.is_grad_enabled():
            return
        values = (*args, *kwargs.values())
        self._forwards.append([v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()])
        if len(self._forwards) > MAX_FORWARDS:
            self.clear()
            raise RuntimeError(
                f"{MAX_FORWARDS} forward passes without rows.backward(losses): evaluate under "
                "torch.no_grad(), or call rows.discard()"
            )

    def expanded(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Position ids [1, T] are broadcast over the batch: give every sample its own."""
        batch = max(self._forwards[-1], default=1) if self._forwards else 1
        if batch == 1 or not torch.is_grad_enabled() or not args:
            return None
        x = args[0]
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[0] != 1:
            return None
        return (x.expand(batch, -1), *args[1:]), kwargs

    def record(
        self,
        name: str,
        rule: Rule,
        wanted: Mapping[str, str],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        """A layer was called."""
        if self.replaying or not torch.is_grad_enabled() or not output.requires_grad:
            return None
        use = Use(name, module, rule, wanted)
        use.keep(args[0] if args else next(iter(kwargs.values())))
        # the edge, not the tensor: an in-place activation may still change what `output` stands for
        use.edge = get_gradient_edge(output)
        # weakly: graph -> hook -> use -> edge -> graph would be a cycle that no collector sees
        output.register_hook(partial(_deliver, self._arrive, weakref.ref(use)))
        self.uses.append(use)
        # an in-place change of a view would re-route the graph around the recorded output
        return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else None


class _Hook:
    """A module's hook that holds the tape weakly; a copied or pickled model gets one that rests."""

    def __init__(
        self, act: Callable[..., Any] | None = None, tape: Tape | None = None, *context: Any
    ):
        self._act, self._context = act, context
        self._tape = None if tape is None else weakref.ref(tape)

    def __call__(self, *arguments: Any) -> Any:
        tape = None if self._tape is None else self._tape()
        if tape is None or self._act is None:
            return None
        return self._act(tape, *self._context, *arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _deliver(
    arrive: weakref.WeakMethod[Callable[[Use, Tensor], None]], use: weakref.ref[Use], dy: Tensor
) -> None:
    method, recorded = arrive(), use()
    if method is not None and recorded is not None:  # else somebody else's backward, later on
        method(recorded, dy)


Layers = dict[str, tuple[nn.Module, Rule, dict[str, str]]]


def find_layers(model: nn.Module, names: Mapping[str, nn.Parameter]) -> tuple[Layers, list[str]]:
    """Layers with a rule and a trainable parameter, and the trainable parameters of all others.

    names: the trainable parameters by their name in the model. Raises ValueError, naming the layer,
    for one that no per-sample rule can serve.
    """
    canonical = {id(p): n for n, p in names.items()}
    layers: Layers = {}
    uncovered: list[str] = []
    for path, module in model.named_modules():
        try:
            rule = rule_for(module)
        except ValueError as error:
            raise ValueError(f"layer {path!r}: {error}") from None
        own = {
            local: canonical[id(p)]
            for local, p in module.named_parameters(recurse=False)
            if id(p) in canonical
        }
        if own and rule is None:
            uncovered += own.values()
        elif own and rule is not None:
            layers[path] = (module, rule, own)
    return layers, uncovered


def earliest(losses: Tensor, uses: list[Use]) -> list[GradientEdge]:
    """The recorded outputs from which no other recorded output is reachable towards the inputs.

    Asking autograd for these alone runs the tensor hooks of all others on the way, prunes every
    weight-gradient product, and keeps no output gradient alive longer than its hook does.
    """
    recorded = {use.edge.node: use.edge for use in uses}
    below: dict[Any, bool] = {}  # node -> a recorded output lies at it or beneath it
    last: list[GradientEdge] = []
    assert losses.grad_fn is not None
    stack: list[tuple[Any, bool]] = [(losses.grad_fn, False)]
    while stack:
        node, expanded = stack.pop()
        children = [child for child, _ in node.next_functions if child is not None]
        if not expanded:
            if node not in below:
                below[node] = False
                stack.append((node, True))
                stack += [(child, False) for child in children if child not in below]
            continue
        beneath = any(below[child] for child in children)
        if node in recorded and not beneath:
            last.append(recorded[node])
        below[node] = beneath or node in recorded
    return last
