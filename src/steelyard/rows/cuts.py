"""Cuts: places in the autograd graph where the engine looks on.

A cut is an identity on some tensors. In a backward pass of the engine it hands the gradients that
reach them to whoever made it, together with tensors that were saved beside them. Saving goes
through autograd, so that activation checkpointing, offloading and the check for in-place changes
treat the engine's tensors as they treat autograd's own, and nothing outlives the graph.

Every cut has an edge to one leaf, the `anchor`: asking `torch.autograd.grad` for the anchor alone
runs every cut and prunes every weight gradient (ghost differentiation, arXiv 2210.00038).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Watcher(Protocol):
    """Whoever made a cut."""

    def reached(self, cut: Reached) -> None: ...


class Reached:
    """One cut in one backward pass: output gradients (None: no gradient came), saved tensors."""

    __slots__ = ("_context", "gradients")

    def __init__(self, context: Any, gradients: tuple[Tensor | None, ...]):
        self._context, self.gradients = context, gradients

    def saved(self, place: str) -> tuple[Tensor, ...]:
        """What was saved; raises RuntimeError, naming the place, if that was changed in place."""
        try:
            return self._context.saved_tensors
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise RuntimeError(
                f"the input of layer {place!r} was changed in place after use"
            ) from error


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, watcher: Watcher | None, count: int, anchor: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.watcher, ctx.count = watcher, count
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:count])
        # not views: in-place activations may follow, and autograd forbids them on a function's
        # views; but of one version counter, so that autograd goes on to see in-place changes
        return tuple(t.detach() for t in tensors[count:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.watcher is not None:
            ctx.watcher.reached(Reached(ctx, gradients))
        return (None, None, None, *[None] * ctx.count, *gradients)


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, old: Tensor, new: Tensor) -> Tensor:  # type: ignore[override]
        ctx.mark_dirty(old)
        return old

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return torch.zeros_like(gradient), gradient


def rejoin(old: Tensor, cut: Tensor) -> None:
    """After the output `cut` of `old` was changed in place: give `old` the history of `cut` too, as
    it would have it if they were one tensor."""
    with torch.autograd._unsafe_preserve_version_counter(old):  # the numbers do not change
        _Replaced.apply(old, cut)


def cut(
    watcher: Watcher | None, anchor: Tensor, saved: Sequence[Tensor], outputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The outputs, watched. With watcher None only the same tensors are saved (recomputation)."""
    detached = [t.detach() for t in saved]
    return _Cut.apply(watcher, len(detached), anchor, *detached, *outputs)  # type: ignore[return-value]
