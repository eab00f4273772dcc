"""Proof by the first batches: every trainable parameter is covered, and no sample sees another.

| claim | test | on failure |
|---|---|---|
| coverage | sum of the rows == autograd's gradient, per parameter | slow engine takes over |
| independence | losses[i] has no gradient at other samples' layer outputs | ValueError |

A parameter whose gradient is exactly zero (LoRA's A while B = 0) proves nothing yet, so the proof
is repeated on up to three batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

BATCHES = 3
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


class Proof:
    """The state of the proof: which parameters have shown a gradient that agrees."""

    def __init__(self, names: Mapping[str, nn.Parameter]):
        self._names = names
        self._open = set(names)
        self._batches = 0
        self._independent = False

    @property
    def done(self) -> bool:
        covered = not self._open or self._batches >= BATCHES
        return covered and self._independent

    def count(self) -> None:
        """One batch less to prove on."""
        self._batches += 1

    def independence(self, losses: Tensor, edges: Sequence[GradientEdge]) -> None:
        """Raises ValueError when a sample's loss moves with another sample's layer outputs.

        Backward is linear and scaling by powers of two is exact: if losses[j] is multiplied by
        2^k_j, the gradient at sample j's outputs must be multiplied by 2^k_j too, to the last bit.
        A digit of j in base 16 is k_j in turn, so that every pair of samples differs in some pass.
        """
        B = len(losses)
        if B < 2 or not edges or self._independent:
            return
        index = torch.arange(B, device=losses.device)
        plain = self._gradients(losses, edges, torch.zeros_like(index))
        digits = 1 + int(math.log(B - 1, 16))
        for digit in range(digits):
            exponents = (index // 16**digit) % 16 - 8
            scaled = self._gradients(losses, edges, exponents)
            for before, after in zip(plain, scaled, strict=True):
                if before is None or after is None or before.shape[0] != B:
                    continue
                shape = (B, *[1] * (before.dim() - 1))
                expected = torch.ldexp(before, exponents.view(shape))
                rounding = 4 * torch.finfo(after.dtype).eps * expected.abs().flatten(1).amax(1)
                if ((after - expected).abs() > rounding.view(shape)).any():
                    raise ValueError(
                        "a sample's loss depends on other samples of the batch (a mean over all "
                        "tokens? a batch statistic? a first dimension that is not the sample?): no "
                        "sample has a gradient of its own, so none can be protected; make "
                        "losses[i] a function of sample i alone"
                    )
        self._independent = True

    def _gradients(
        self, losses: Tensor, edges: Sequence[GradientEdge], exponents: Tensor
    ) -> tuple[Tensor | None, ...]:
        weights = torch.ldexp(torch.ones_like(losses), exponents)
        return torch.autograd.grad(losses, edges, weights, retain_graph=True, allow_unused=True)

    def coverage(self, losses: Tensor, sums: Mapping[str, Tensor], *, rough: bool) -> str | None:
        """None if `sums` (rows with weight one) are autograd's gradients, else what differs.

        rough: some output gradient came in half precision.
        """
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
        if not all(bool(g.isfinite().all()) for g in truth.values()):
            return None  # says nothing; `take` will refuse this step
        scale = max((float(g.norm()) for g in truth.values()), default=0.0)
        for name, gradient in truth.items():
            tolerance = 5e-2 if rough else _TOLERANCE.get(gradient.dtype, 5e-2)
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
        return None
