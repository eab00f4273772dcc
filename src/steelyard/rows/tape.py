"""Records what a forward pass calls, for one backward pass of the engine.

Forward hooks put a cut (`steelyard.rows.cuts`) behind every layer with a rule; the cut saves the
layer's input and delivers it with the output gradient. Nothing is patched or wrapped; `close`
removes all hooks.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level  # pyright: ignore[reportMissingImports]
from torch.utils._pytree import tree_flatten, tree_unflatten

from steelyard.rows.cuts import cut
from steelyard.rows.uses import Arrival, CallLayer, CallUse, Layer, Use
from steelyard.rules.call_rules import needs_rng
from steelyard.rules.calls import rng_state

REMEMBERED = 64  # forwards whose batch sizes are kept for `check`


class Tape:
    """Records what a forward pass calls. `arrive(arrival)` is called inside `replay`'s backward."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        calls: Sequence[CallLayer],
        arrive: Callable[[Arrival], None],
    ):
        self.uses: weakref.WeakSet[Any] = weakref.WeakSet()  # of graphs that are alive
        self.replaying = self.closed = False
        self.anchor = torch.zeros((), requires_grad=True)
        bags = [layer.module for layer in calls if isinstance(layer.module, nn.EmbeddingBag)]
        self._last_offset = any(bag.include_last_offset for bag in bags)  # B + 1 offsets for B bags
        self._rng: Tensor | None = None  # before the call under way
        self._arrive = weakref.WeakMethod(arrive)
        self._listener = partial(_listener, weakref.ref(self))
        self._forwards: deque[list[int]] = deque(maxlen=REMEMBERED)  # first dimensions of inputs
        self._second: set[int] = set()  # and second ones: inputs may be [T, B]
        self.sizes: dict[int | str, int] = {}  # of the last forward, by argument
        self._handles = [model.register_forward_pre_hook(Hook(Tape.began, self), with_kwargs=True)]
        for layer in layers:
            if layer.expand is not None:
                expand = Hook(Tape.expanded, self, layer)
                self._handles.append(
                    layer.module.register_forward_pre_hook(expand, with_kwargs=True)
                )
            record = Hook(Tape.record, self, layer)
            self._handles.append(layer.module.register_forward_hook(record, with_kwargs=True))
        for layer in calls:
            record = Hook(Tape.record_call, self, layer)
            self._handles.append(layer.module.register_forward_hook(record, with_kwargs=True))
            if needs_rng(layer.module):
                remember = Hook(Tape.remember_rng, self, layer)
                self._handles.append(layer.module.register_forward_pre_hook(remember))

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Inside, cuts deliver, and a recomputed forward is not recorded."""
        self.replaying = True
        try:
            yield
        finally:
            self.replaying = False

    def listener(self) -> Callable[[Arrival], None] | None:
        return self._arrive() if self.replaying else None

    def clear(self) -> None:
        self._forwards.clear()
        self._second.clear()

    def close(self) -> None:
        self.closed = True
        for handle in self._handles:
            handle.remove()
        self.clear()

    def check(self, count: int) -> None:
        """Raises ValueError where `count` losses cannot be one per sample of the forwards."""
        known = [sizes for sizes in self._forwards if sizes]
        together = sum(max(sizes) for sizes in known)
        possible = {count, count + 1} if self._last_offset else {count}
        if count in self._second:
            return
        if known and count != together and not any(possible & set(sizes) for sizes in known):
            raise ValueError(
                f"{count} losses for a batch of {max(known[-1])} samples: one loss per sample is "
                "needed (average over a sample's own positions; a loss per token would make every "
                "token a sample)"
            )

    # -- hooks -------------------------------------------------------------------------------

    def began(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward of the whole model begins."""
        if self.replaying or not torch.is_grad_enabled():
            return
        values = (*enumerate(args), *kwargs.items())
        self.sizes = {k: v.shape[0] for k, v in values if isinstance(v, Tensor) and v.dim()}
        self._forwards.append(list(self.sizes.values()))
        self._second |= {v.shape[1] for _, v in values if isinstance(v, Tensor) and v.dim() > 1}

    def expanded(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Position ids [1, T] are broadcast over the batch: give every sample its own."""
        batch = 1 if layer.expand is None else self.sizes.get(layer.expand, 1)
        if batch == 1 or not torch.is_grad_enabled() or not args:
            return None
        x = args[0]
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[0] != 1:
            return None
        return (x.expand(batch, -1), *args[1:]), kwargs

    def record(
        self,
        layer: Layer,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        """A layer was called."""
        if not torch.is_grad_enabled() or not output.requires_grad:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        use = Use(self._listener, layer, x)
        (watched,) = cut(self._keep(use), self.anchor, [x] if use.shape is None else [], [output])
        return watched

    def remember_rng(self, layer: CallLayer, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and module.training:
            self._rng = rng_state(module)

    def record_call(
        self,
        layer: CallLayer,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        """A layer with a call rule was called."""
        outputs, spec = tree_flatten(output)
        places = [i for i, t in enumerate(outputs) if isinstance(t, Tensor) and t.requires_grad]
        if not torch.is_grad_enabled() or not places:
            return None
        rng, self._rng = self._rng, None
        use = CallUse(self._listener, layer, (args, kwargs), outputs, rng)
        saved, use.saved = use.saved, []
        # recurrent layers keep their output for their own backward: in-place changes need a copy
        copy = isinstance(module, nn.RNNBase)
        wanted = [outputs[i].clone() if copy else outputs[i] for i in places]
        watched = cut(self._keep(use), self.anchor, saved, wanted)
        for i, t in zip(places, watched, strict=True):
            outputs[i] = t
        return tree_unflatten(outputs, spec)

    def _keep(self, use: Any) -> Any:
        """The watcher of a new cut; none while checkpointing computes a forward again."""
        if self.replaying:
            return None
        self.uses.add(use)
        return use


def _listener(tape: weakref.ref[Tape]) -> Callable[[Arrival], None] | None:
    found = tape()
    return None if found is None else found.listener()


class Hook:
    """A module's hook that holds its owner weakly; a copied model gets one that rests."""

    def __init__(self, act: Callable[..., Any] | None = None, owner: Any = None, *context: Any):
        self._act, self._context = act, context
        self._owner = None if owner is None else weakref.ref(owner)
        _keep_uncompiled()

    def __call__(self, *arguments: Any) -> Any:
        owner = None if self._owner is None else self._owner()
        if owner is None or self._act is None or owner.closed:  # compiled code may hold it longer
            return None
        if maybe_current_level() is not None:
            return None  # under vmap, grad, jvp, ...: there is no graph to look at
        return self._act(owner, *self._context, *arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


@functools.cache
def _keep_uncompiled() -> None:
    """Hooks run as they are where the module that they sit on is compiled: what they do (look at
    the batch, remember) must not be traced. Done late, because it loads the compiler."""
    why = "steelyard looks at this layer"
    Hook.__call__ = torch.compiler.disable(Hook.__call__, reason=why)  # type: ignore[method-assign]
