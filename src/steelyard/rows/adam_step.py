"""The coming step of Adam or AdamW as a function of the gradient it will get.

    s    = u                          + wd w where Adam's decay is coupled
    v    = beta2 v + (1 - beta2) s^2          m = beta1 m + (1 - beta1) s
    P    = lr / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)          after u has been seen
    step = P m + lr wd w                      the last where decay is decoupled;   w <- w - step

`torch.optim.Adam` and `AdamW` are read, never changed. All in float32 or better, sums in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from steelyard.rows.gram import Row
from steelyard.rows.reference import accumulator

PIECE = 1 << 16  # numbers worked on at once


def refuse_others(optimizer: Optimizer | None) -> None:
    """Raises ValueError for an optimizer whose step is not known here."""
    if not isinstance(optimizer, Adam):
        found = "none" if optimizer is None else type(optimizer).__name__
        raise ValueError(
            'metric="optimizer" knows the steps of Adam and AdamW, found '
            f"{found}: give Tasks that optimizer, or leave metric out (right for plain SGD)"
        )
    for name in ("amsgrad", "maximize"):
        if any(group[name] for group in optimizer.param_groups):
            raise ValueError(f'metric="optimizer" does not know {name}=True: leave it out')


@dataclass(frozen=True)
class _Place:
    """One parameter that f reaches, and what its step depends on."""

    p: Tensor
    tensors: tuple[Tensor | None, ...]  # of each row
    group: dict[str, Any]
    state: dict[str, Any]


class AdamStep:
    """rows: gradients of `parameters`, each to be multiplied by its scale. Parameters that the
    optimizer does not hold do not move; ValueError where it holds none of them."""

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        rows: Sequence[Row],
        scales: Sequence[float],
    ):
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._scales = [float(s) for s in scales]
        self._places = [
            _Place(p, tensors, groups[id(p)], optimizer.state.get(p, {}))
            for p, tensors in zip(parameters, zip(*rows, strict=True), strict=True)
            if id(p) in groups
        ]
        if not self._places:
            raise ValueError(
                "the optimizer holds none of the parameters, so its step says nothing about them: "
                "give Tasks the optimizer that moves them"
            )
        self._still = all(float(group["lr"]) == 0 for group in optimizer.param_groups)

    @torch.no_grad()
    def slopes(self, low: int, weights: Sequence[float]) -> tuple[float, float, float, float]:
        """<f, P u>, <f, P f>, <f, step>, and d/dx <f, step(u + x f)> at fixed P; f = scaled row
        `low`. Where every rate is 0 (warm-up) they are those of rate 1."""
        factors = [w * s for w, s in zip(weights, self._scales, strict=True)]
        total = torch.zeros(4, dtype=torch.float64)
        for place in self._places:
            if place.tensors[low] is not None:
                total += self._part(place, low, factors)
        along, own, real, rate = total.tolist()
        return along, own, real, rate

    def _part(self, place: _Place, low: int, factors: Sequence[float]) -> Tensor:
        group, state, p = place.group, place.state, place.p
        lr = 1.0 if self._still else float(group["lr"])
        beta1, beta2 = (float(beta) for beta in group["betas"])
        t = float(state.get("step", 0)) + 1
        decay, decoupled = float(group["weight_decay"]), bool(group["decoupled_weight_decay"])
        root2 = (1 - beta2**t) ** 0.5
        scale = lr / (1 - beta1**t) * root2
        sums = torch.zeros(5, dtype=torch.float64)
        moments = (state.get("exp_avg"), state.get("exp_avg_sq"))
        for w, f, m, v, *rows in _pieces(p, place.tensors[low], *moments, *place.tensors):
            assert w is not None
            assert f is not None
            u = torch.zeros_like(f)
            for row, factor in zip(rows, factors, strict=True):
                if row is not None:
                    u.add_(row, alpha=factor)
            s = u if decoupled or not decay else u.add(w, alpha=decay)
            seen = torch.zeros_like(s) if v is None else v * beta2
            seen.addcmul_(s, s, value=1 - beta2)
            fP = f / seen.sqrt_().add_(float(group["eps"]) * root2)  # P without its scale
            old = fP.new_zeros(()) if m is None else torch.dot(fP, m)
            found = [torch.dot(fP, u), torch.dot(fP, f), torch.dot(fP, s), old, torch.dot(f, w)]
            sums += torch.stack(found).cpu().double()
        c = self._scales[low]
        along, own, new, old, back = sums.tolist()
        step = scale * c * (beta1 * old + (1 - beta1) * new)
        if decoupled:
            step += lr * decay * c * back
        own *= scale * c * c
        return torch.tensor([scale * c * along, own, step, (1 - beta1) * own], dtype=torch.float64)


def _pieces(*tensors: Tensor | None) -> Iterator[list[Tensor | None]]:
    """All of them flat and in the first one's accumulator, piece by piece. Some may be None."""
    assert tensors[0] is not None
    wide, count = accumulator(tensors[0]), -(-tensors[0].numel() // PIECE)
    flat = [None if t is None else t.detach().reshape(-1).split(PIECE) for t in tensors]
    for i in range(count):
        yield [None if one is None else one[i].to(wide) for one in flat]
