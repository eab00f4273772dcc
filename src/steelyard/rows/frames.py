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
from collections.abc import Callable, Hashable, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from steelyard.rows.containers import Copy, replaced
from steelyard.rows.cuts import Reached, cut, rejoin
from steelyard.rows.own_code import FrameArrived
from steelyard.rows.tape import Hook, Tape
from steelyard.rows.uses import pattern


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
        self.mapped: dict[Any, bool] = {}  # an input of a frame -> has a sample dimension
        self.by_turns = False  # vmap could not follow the own code
        self.modifies = True  # whether the own code changes its inputs in place; unknown: True
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
        if not torch.is_grad_enabled():
            return None  # has no frame
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
        self.spec: Any = None  # of all inputs, when the own code has returned
        self.tensors: list[int] = []  # places of the tensors among their leaves
        self.others: list[Any] = []  # the leaves that are none
        self.shapes: list[torch.Size] = []
        self.modes = {m: m.training for m in (owner.module, *owner.live)}
        self._given: list[tuple[Tensor, Tensor, int]] = []  # to the child: tensor, cut, version
        self._copies: list[Copy] = []
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
        given, copies, self._given, self._copies = self._given, self._copies, [], []
        for t, watched, version in given:  # what the child did to its inputs, it did to ours
            if watched._version != version and not t.is_leaf:
                rejoin(t, watched)
        back = {id(watched): t for t, watched, _ in given}
        for copy in copies:
            copy.write_back(back)

    def returned(self, output: Any) -> Any:
        self._arguments = len(tree_leaves(self._inputs[0]))
        leaves, self.spec = tree_flatten(self._inputs)
        self._inputs = []
        self.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.shapes = [leaves[i].shape for i in self.tensors]
        # the caller may change what is returned in place, as it could without us
        out = {_memory(t) for t in tree_leaves(output) if isinstance(t, Tensor)} - {0}
        kept = [
            t.detach().clone() if _memory(t) in out else t
            for t in map(leaves.__getitem__, self.tensors)
        ]
        return self._watch(output, len(self.calls), kept)

    def _watch(self, tree: Any, place: int, saved: list[Tensor]) -> Any:
        leaves = tree_flatten(tree)[0] if torch.is_grad_enabled() else []
        first: dict[int, int] = {}  # a tensor that is there twice is one afterwards too
        for i, t in enumerate(leaves):
            if isinstance(t, Tensor) and t.requires_grad:
                first.setdefault(id(t), i)
        wanted = list(first.values())
        self.places.append(wanted)
        frames = self._frames()
        if not wanted or frames is None:
            return None
        watcher = frames.watcher(_Place(self, place))
        old = [leaves[i] for i in wanted]
        watched = cut(watcher, frames.anchor, saved, old)
        if place == len(self.calls):
            if watcher is not None:
                frames.tape.uses.add(self)
        else:
            self._given = [(t, v, v._version) for t, v in zip(old, watched, strict=True)]
        new = {id(t): v for t, v in zip(old, watched, strict=True)}
        self._copies = []
        return replaced(tree, new, self._copies)

    def kind(self, batch: int) -> Hashable:
        """Which children were called, and what the inputs look like."""
        patterns = frozenset(pattern(shape, batch) for shape in self.shapes)
        called, modes = frozenset(map(id, self.calls)), tuple(self.modes.values())
        return self.owner.path, called, modes, self._arguments, patterns

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


def _memory(t: Tensor) -> int:
    """Where a tensor's numbers lie; 0 where that cannot be told."""
    plain = t.layout is torch.strided and not t.is_nested
    return t.untyped_storage().data_ptr() if plain else 0


class _Place:
    """A watched place of a frame."""

    def __init__(self, frame: Frame, place: int):
        self._frame, self._place = frame, place

    def reached(self, cut: Reached) -> None:
        self._frame.gradients_came(self._place, cut)
