"""Everything that looks at a model's forward pass, as one: layers, own code, relative biases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.rows.frames import Frames
from steelyard.rows.layout import Layout
from steelyard.rows.relative_bias import Biases
from steelyard.rows.tape import Tape
from steelyard.rows.uses import Arrival


class Recording:
    """Hooks for one layout of a model; `arrive(arrival)` is called inside `backward`."""

    def __init__(self, model: nn.Module, layout: Layout, arrive: Callable[[Arrival], None]):
        if any(_is_compiled(module) for module in model.modules()):
            torch.compiler.reset()  # code compiled without the hooks would go on to run without
        self._tape = Tape(model, layout.layers, layout.calls, arrive)
        self._frames = Frames(self._tape, layout.owners)
        self._biases = Biases(self._tape, layout.biases)

    @property
    def uses(self) -> Collection[Any]:
        """What was recorded and may still be reached; `names`: the parameters that each feeds."""
        return self._tape.uses

    @property
    def sizes(self) -> Mapping[int | str, int]:
        """First dimensions of the last forward's arguments, by position or keyword."""
        return self._tape.sizes

    def check(self, count: int) -> None:
        """Raises ValueError where `count` losses cannot be one per sample of the forwards."""
        self._tape.check(count)

    def backward(self, losses: Tensor, weights: Tensor, *, retain: bool) -> None:
        """One pass of sum_j weights_j losses_j that only brings output gradients to `arrive`."""
        with self._tape.replay():
            torch.autograd.grad(
                losses, self._tape.anchor, weights, retain_graph=retain, allow_unused=True
            )
            self._frames.deliver()

    def clear(self) -> None:
        self._tape.clear()
        self._frames.clear()

    def close(self) -> None:
        """Remove every hook."""
        for part in (self._tape, self._frames, self._biases):
            part.close()


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
