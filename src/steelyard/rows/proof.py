"""Proof on a batch: every trainable parameter is covered, and no sample sees another.

| claim | test | on failure |
|---|---|---|
| coverage | sum of the rows == autograd's gradient, per parameter | slow engine takes over |
| independence | losses[i] has no gradient at other samples' layer outputs | ValueError |

A gradient that is exactly zero (of LoRA's A while B = 0) or not finite proves nothing: both tests
say what they have seen. When to repeat them is `adaptation`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Backward = Callable[[Tensor, Callable[[int, list[Tensor]], None]], None]
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True, slots=True)
class Difference:
    """Why the rows do not serve, the parameters concerned, and what may be done about it."""

    reason: str
    names: list[str]
    child: nn.Module | None = None
    single: Any = None  # the use of an embedding on positions [1, T], for all samples


class MixedError(ValueError):
    """Samples mix, as the gradients of these keys show."""

    def __init__(self, keys: Set[int]):
        super().__init__(
            "a sample's loss depends on other samples of the batch (a mean over all "
            "tokens? a batch statistic? a first dimension that is not the sample?): no "
            "sample has a gradient of its own, so none can be protected; make "
            "losses[i] a function of sample i alone (or, if some length only equals the batch size "
            "by chance, try another micro-batch size)"
        )
        self.keys = keys


class Proof:
    """Both tests, for the parameters of these names."""

    def __init__(self, names: Mapping[str, nn.Parameter]):
        self._names = names
        self.shown: set[str] = set()  # by `coverage`: gradients that agreed and were not zero

    def independence(self, losses: Tensor, backward: Backward) -> set[int]:
        """Raises MixedError when a sample's loss moves with another sample's layer outputs. Returns
        the keys that show that it does not: their gradients are finite, and not all zero.

        Backward is linear and scaling by powers of two is exact: if losses[j] is multiplied by
        2^k_j, the gradient at sample j's outputs must be multiplied by 2^k_j too, to the last bit.
        A digit of j in base 16 is k_j in turn, so that every pair of samples differs in some pass.
        Of each gradient only a projection per sample is kept: the proof needs no memory.

        backward(weights, see): one backward pass of sum_j weights_j losses_j that calls
        see(key, output gradients, each [B, ...]) for everything recorded.
        """
        B = len(losses)
        index = torch.arange(B, device=losses.device)
        plain = self._projections(losses, torch.zeros_like(index), backward)
        wrong: set[int] = set()
        for digit in range(1 + int(math.log(B - 1, 16))):
            exponents = (index // 16**digit) % 16 - 8
            scaled = self._projections(losses, exponents, backward)
            for key, (before, size) in plain.items():
                if key not in scaled:
                    continue
                error = (scaled[key][0] - torch.ldexp(before, exponents)).abs()
                rounding = 4 * torch.finfo(before.dtype).eps * torch.ldexp(size, exponents)
                if (error > rounding + _smallest(before)).any():
                    wrong.add(key)
        if wrong:
            raise MixedError(wrong)
        return {
            key
            for key, (_, size) in plain.items()
            if size.isfinite().all() and size.max() > _smallest(size)
        }

    def _projections(
        self, losses: Tensor, exponents: Tensor, backward: Backward
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """By key: one number per sample, and the size of the terms that it sums."""
        found: dict[int, tuple[Tensor, Tensor]] = {}

        def see(key: int, gradients: list[Tensor]) -> None:
            rows = torch.cat([dy.reshape(len(dy), -1) for dy in gradients], dim=1)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            direction = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
            direction = direction.mul_(12.9898).sin_()  # any direction nobody has aimed at
            found[key] = rows @ direction, rows.abs() @ direction.abs()

        backward(torch.ldexp(torch.ones_like(losses), exponents), see)
        return found

    def coverage(
        self, losses: Tensor, sums: Mapping[str, Tensor], *, rough: bool
    ) -> Difference | None:
        """None if `sums` (rows with weight one) are autograd's gradients, else what differs.

        rough: some output gradient came in half precision.
        """
        self.shown = set()
        parameters = list(self._names.values())
        gradients = torch.autograd.grad(
            losses.sum(), parameters, retain_graph=True, allow_unused=True
        )
        truth = {
            name: gradient.to_dense()
            for name, gradient in zip(self._names, gradients, strict=True)
            if gradient is not None
        }
        missing = [name for name in truth if name not in sums]
        if missing:
            return Difference(
                f"parameter {missing[0]!r} is used outside its layer's own forward", missing
            )
        if not all(bool(g.isfinite().all()) for g in truth.values()):
            return None  # says nothing; `take` will refuse this step
        scale = max((float(g.norm()) for g in truth.values()), default=0.0)
        wrong: dict[str, float] = {}
        for name, gradient in truth.items():
            tolerance = 5e-2 if rough else _TOLERANCE.get(gradient.dtype, 5e-2)
            size = float(gradient.norm())
            # gradients that are zero but for rounding (a key's bias under softmax) need a floor
            floor = scale if gradient.dtype == torch.float64 else 1e-2 * scale
            error = float((sums[name] - gradient).norm())
            if not error <= tolerance * max(size, floor):
                wrong[name] = error / max(size, 1e-30)
            elif size > 0:
                self.shown.add(name)
        if wrong:
            name, error = next(iter(wrong.items()))
            return Difference(
                f"the rows of parameter {name!r} do not sum to its gradient (relative error "
                f"{error:.1e}): is it also used outside its layer's forward?",
                list(wrong),
            )
        return None


def _smallest(t: Tensor) -> float:
    """Gradients that vanish below it are no normal numbers on their way: nothing exact is left."""
    return torch.finfo(t.dtype).tiny * 2**20
