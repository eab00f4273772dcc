"""Bare parameters: the rows of what a module computes outside its children.

A module may use parameters of its own in any way (a class token, a learned scale, position
embeddings without a batch dimension). Its *own code* is then a function of its arguments, of what
its children returned, and of those parameters; its results are what it hands to its children and
what it returns. The forward pass is watched at these places:

    child call   cut on the tensors that go in;  what comes out is noted
    return       cut on the module's outputs, saving its arguments and what the children returned

and after the backward pass the own code alone runs again, under `vmap` over the samples, with every
child replaced by what it returned:

    g_i = d/dp <results(p; sample i), their gradients>

Exact for any own code that treats samples alike and draws no random numbers; children (dropout
among them) are never run again. Where `vmap` cannot follow the code, the samples take turns.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from steelyard.rows.cuts import Reached, cut
from steelyard.rows.own_code import FrameArrived
from steelyard.rows.tape import Hook, Tape


class Owner:
    """A module with bare parameters, by their names in the model."""

    def __init__(
        self,
        path: str,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        taken_in: Set[nn.Module],
    ):
        self.path, self.module, self.parameters = path, module, dict(parameters)
        self.mapped: dict[int, bool] = {}  # place among the inputs -> has a sample dimension
        self.by_turns = False  # vmap could not follow the own code
        ids = {id(p) for p in self.parameters.values()}
        # children that hold such a parameter run as a part of the own code
        self.live = set(taken_in)
        self.live |= {m for m in module.modules() if any(id(p) in ids for p in m.parameters())}


class Frames:
    """The hooks of all owners of a model, and the frames of the forward pass under way."""

    def __init__(self, tape: Tape, owners: list[Owner]):
        self._tape, self.closed = tape, False
        self._stack: list[Frame | nn.Module] = []  # a module: a child call of the frame below it
        self.open: dict[int, Frame] = {}  # reached by the backward pass in progress
        children = [(m, o) for o in owners for m in o.module.modules() if m not in o.live]
        modules = [(owner.module, owner) for owner in owners]
        # a child may be an owner too: its frame opens after the call is noted, and closes before
        hooks = [("pre", Frames.child_began, children), ("pre", Frames.began, modules)]
        hooks += [("post", Frames.ended, modules), ("post", Frames.child_ended, children)]
        self._handles = [
            (
                module.register_forward_pre_hook(Hook(act, self, owner), with_kwargs=True)
                if when == "pre"
                else module.register_forward_hook(Hook(act, self, owner), with_kwargs=True)
            )
            for when, act, pairs in hooks
            for module, owner in pairs
        ]

    def clear(self) -> None:
        self._stack, self.open = [], {}

    def close(self) -> None:
        self.closed = True
        for handle in self._handles:
            handle.remove()
        self.clear()

    def deliver(self) -> None:
        """After a backward pass: hand over the frames that it reached."""
        reached, self.open = list(self.open.values()), {}
        listen = self._tape.listener()
        for frame in reached:
            if listen is not None:
                listen(frame.arrival())

    # -- hooks -------------------------------------------------------------------------------

    def began(self, owner: Owner, module: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            self._stack.append(Frame(self, owner, args, kwargs))

    def ended(self, owner: Owner, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        frame = self._pop(lambda one: isinstance(one, Frame) and one.owner is owner)
        return frame.returned(output) if isinstance(frame, Frame) else None

    def child_began(self, owner: Owner, module: nn.Module, args: Any, kwargs: Any) -> Any:
        top = self._stack[-1] if self._stack else None
        if not isinstance(top, Frame) or top.owner is not owner:
            return None  # called by another child
        self._stack.append(module)
        return top.entered(module, args, kwargs)

    def child_ended(
        self, owner: Owner, module: nn.Module, args: Any, kwargs: Any, out: Any
    ) -> None:
        if not self._stack or self._stack[-1] is not module:
            return
        below = self._stack[-2] if len(self._stack) > 1 else None
        if isinstance(below, Frame) and below.owner is owner:
            self._stack.pop()
            below.left(out)

    def _pop(self, wanted: Callable[[Any], bool]) -> Any:
        while self._stack:  # what lies above it was left by an exception
            top = self._stack.pop()
            if wanted(top):
                return top
        return None

    def watcher(self, one: Any) -> Any:
        return None if self._tape.replaying else one

    @property
    def anchor(self) -> Tensor:
        return self._tape.anchor

    @property
    def tape(self) -> Tape:
        return self._tape


class Frame:
    """One run of an owner's own code."""

    def __init__(self, frames: Frames, owner: Owner, args: Any, kwargs: Any):
        self._frames, self.owner = weakref.ref(frames), owner
        self.names = owner.parameters.keys()
        self._inputs = [(args, kwargs)]  # then what each child call returned
        self.calls: list[nn.Module] = []
        self.places: list[list[int]] = []  # of each call, then of the return: leaves with gradients
        self._gradients: dict[int, tuple[Tensor | None, ...]] = {}
        self._saved: tuple[Tensor, ...] = ()
        device = next(iter(owner.parameters.values())).device.type
        self.autocast = (
            device,
            torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device),
        )

    def entered(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self.calls.append(module)
        return self._watch((args, kwargs), len(self.calls) - 1, [])

    def left(self, output: Any) -> None:
        self._inputs.append(output)

    def returned(self, output: Any) -> Any:
        leaves, self.spec = tree_flatten(self._inputs)
        self._inputs = []
        self.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        return self._watch(output, len(self.calls), [leaves[i] for i in self.tensors])

    def _watch(self, tree: Any, place: int, saved: list[Tensor]) -> Any:
        leaves, spec = tree_flatten(tree)
        wanted = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.requires_grad]
        self.places.append(wanted)
        frames = self._frames()
        if not wanted or frames is None:
            return None
        watcher = frames.watcher(_Place(self, place))
        for i, t in zip(
            wanted, cut(watcher, frames.anchor, saved, [leaves[i] for i in wanted]), strict=True
        ):
            leaves[i] = t
        if watcher is not None and place == len(self.calls):
            frames.tape.uses.add(self)
        return tree_unflatten(leaves, spec)

    # -- backward ----------------------------------------------------------------------------

    def gradients_came(self, place: int, cut: Reached) -> None:
        frames = self._frames()
        if frames is None or not frames.tape.replaying:
            return
        frames.open[id(self)] = self
        self._gradients[place] = cut.gradients
        if place == len(self.calls):
            self._saved = cut.saved(self.owner.path)

    def arrival(self) -> Any:
        came = [
            g
            for place, wanted in enumerate(self.places)
            for g in self._gradients.get(place, (None,) * len(wanted))
        ]
        saved, self._gradients, self._saved = self._saved, {}, ()
        return FrameArrived(self, saved, came)


class _Place:
    """A watched place of a frame."""

    def __init__(self, frame: Frame, place: int):
        self._frame, self._place = frame, place

    def reached(self, cut: Reached) -> None:
        self._frame.gradients_came(self._place, cut)
