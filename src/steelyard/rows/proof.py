"""Proof by the first batches: every trainable parameter is covered, and no sample sees another.

| claim | test | on failure |
|---|---|---|
| coverage | sum of the rows == autograd's gradient, per parameter | slow engine takes over |
| independence | half of the losses have no gradient at the other half's layers | ValueError |

A parameter whose gradient is exactly zero (LoRA's A while B = 0) proves nothing yet, so the proof
is repeated on up to three batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

BATCHES = 3


class Proof:
    """The state of the proof: which parameters have shown a gradient that agrees."""

    def __init__(self, names: Mapping[str, nn.Parameter]):
        self._names = names
        self._open = set(names)
        self._batches = 0

    @property
    def done(self) -> bool:
        return not self._open or self._batches >= BATCHES

    def count(self) -> None:
        """One batch less to prove on."""
        self._batches += 1

    def independence(self, losses: Tensor, edges: Sequence[GradientEdge]) -> None:
        """Raises ValueError when losses of one half of the batch move with samples of the other."""
        half = len(losses) // 2
        if half == 0 or not edges:
            return
        gradients = torch.autograd.grad(
            losses[:half].sum(), edges, retain_graph=True, allow_unused=True
        )
        for gradient in gradients:
            if gradient is None or gradient.shape[0] != len(losses):
                continue
            if gradient[half:].any():
                raise ValueError(
                    "a sample's loss depends on other samples of the batch (a mean over all "
                    "tokens? "
                    "a batch statistic? a position index without batch dimension?): no sample has "
                    "a gradient of its own, so none can be protected; make losses[i] a function of "
                    "sample i alone"
                )

    def coverage(self, losses: Tensor, sums: Mapping[str, Tensor]) -> str | None:
        """None if `sums` (rows with weight one) are autograd's gradients, else what differs."""
        self.count()
        parameters = list(self._names.values())
        gradients = torch.autograd.grad(
            losses.sum(), parameters, retain_graph=True, allow_unused=True
        )
        truth = {
            name: gradient
            for name, gradient in zip(self._names, gradients, strict=True)
            if gradient is not None
        }
        missing = [name for name in truth if name not in sums]
        if missing:
            return f"parameter {missing[0]!r} is used outside its layer's own forward"
        scale = max((float(g.norm()) for g in truth.values()), default=0.0)
        for name, gradient in truth.items():
            tolerance = _tolerance(gradient, sums[name])
            size = float(gradient.norm())
            # gradients that are zero but for rounding (a key's bias under softmax) need a floor
            error = float((sums[name] - gradient).norm())
            if not error <= tolerance * max(size, 1e-2 * scale):
                return (
                    f"the rows of parameter {name!r} do not sum to its gradient (relative error "
                    f"{error / max(size, 1e-30):.1e}): is it also used outside its layer's forward?"
                )
            if size > 0:
                self._open.discard(name)
        self._open &= truth.keys()
        return None


def _tolerance(gradient: Tensor, total: Tensor) -> float:
    if gradient.dtype == torch.float64:
        return 1e-8
    if gradient.dtype == torch.float32 and not torch.is_autocast_enabled(total.device.type):
        return 1e-3
    return 5e-2
