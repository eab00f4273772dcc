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

    __slots__ = ("__weakref__", "edge", "layer", "module", "rule", "version", "wanted", "x")

    def __init__(self, layer: str, module: nn.Module, rule: Rule, wanted: Mapping[str, str]):
        self.layer, self.module, self.rule = layer, module, rule
        self.wanted = wanted  # the layer's own parameter name -> its name in the model
        self.x: Tensor
        self.version: int
        self.edge: GradientEdge

    def factors(self, dy: Tensor, batch: int) -> dict[str, Factor]:
        """The factors of this use by the parameter's name in the model."""
        x = self.x
        if self.version != x._version:
            raise RuntimeError(f"the input of layer {self.layer!r} was changed in place after use")
        if x.shape[0] != batch or dy.shape[0] != batch:
            raise BatchMismatchError(
                f"layer {self.layer!r} saw a first dimension of {x.shape[0]} where there are "
                f"{batch} losses: the first dimension must be the sample"
            )
        if dy.dtype in (torch.float16, torch.bfloat16):
            dy = dy.float()
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
        self._batch: int | None = None
        self._forwards = 0
        me = weakref.proxy(self)  # the model must not keep a dropped engine alive
        self._handles = [model.register_forward_pre_hook(partial(_began, me), with_kwargs=True)]
        for name, (module, rule, wanted) in layers.items():
            record = partial(_record, me, name, rule, wanted)
            self._handles += [
                module.register_forward_pre_hook(partial(_expand, me), with_kwargs=True),
                module.register_forward_hook(record, with_kwargs=True),
            ]

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Inside, hooks hand over output gradients, and a recomputed forward is not recorded."""
        self.replaying = True
        try:
            yield
        finally:
            self.replaying = False

    def clear(self) -> None:
        self.uses = []
        self._forwards = 0

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.clear()

    def began(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes = [v.shape[0] for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()]
        self._batch = max(sizes, default=None)
        if torch.is_grad_enabled() and not self.replaying:
            self._forwards += 1
            if self._forwards > MAX_FORWARDS:
                self.clear()
                raise RuntimeError(
                    f"{MAX_FORWARDS} forward passes without rows.backward(losses): evaluate under "
                    "torch.no_grad(), or call rows.discard()"
                )

    def expanded(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Position ids of shape [1, T] are broadcast over the batch: give every sample its own."""
        if not self._batch or self._batch == 1 or not torch.is_grad_enabled():
            return None
        if args and isinstance(args[0], Tensor) and args[0].dim() > 1 and args[0].shape[0] == 1:
            return (args[0].expand(self._batch, *args[0].shape[1:]), *args[1:]), kwargs
        return None

    def record(self, use: Use, x: Tensor, output: Tensor) -> Tensor | None:
        if self.replaying or not torch.is_grad_enabled() or not output.requires_grad:
            return None
        use.x, use.version = x.detach(), x._version
        # the edge, not the tensor: an in-place activation may still change what `output` stands for
        use.edge = get_gradient_edge(output)
        # weakly: graph -> hook -> use -> edge -> graph would be a cycle that no collector sees
        output.register_hook(partial(_deliver, self._arrive, weakref.ref(use)))
        self.uses.append(use)
        # an in-place change of a view would re-route the graph around the recorded output
        return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else None


def _deliver(
    arrive: weakref.WeakMethod[Callable[[Use, Tensor], None]], use: weakref.ref[Use], dy: Tensor
) -> None:
    method, recorded = arrive(), use()
    if method is not None and recorded is not None:  # else somebody else's backward, later on
        method(recorded, dy)


def _began(tape: Tape, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tape.began(args, kwargs)


def _expand(tape: Tape, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
    return tape.expanded(args, kwargs)


def _record(
    tape: Tape,
    name: str,
    rule: Rule,
    wanted: Mapping[str, str],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> Tensor | None:
    x = args[0] if args else next(iter(kwargs.values()))
    return tape.record(Use(name, module, rule, wanted), x, output)


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
