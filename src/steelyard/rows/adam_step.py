"""The coming step of Adam or AdamW as a function of the gradient it will get.

    s    = u                          + wd w where Adam's decay is coupled
    v    = beta2 v + (1 - beta2) s^2          m = beta1 m + (1 - beta1) s
    P    = lr / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)          after u has been seen
    step = P m + lr wd w                      the last where decay is decoupled;   w <- w - step

`torch.optim.Adam` and `AdamW` are read, never changed. All in float32 or better, sums in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from steelyard.rows.gram import Column, Row, pieces, totals
from steelyard.rows.reference import accumulator


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
        held = [
            (p, tensors, groups[id(p)], optimizer.state.get(p, {}))
            for p, tensors in zip(parameters, zip(*rows, strict=True), strict=True)
            if id(p) in groups
        ]
        if not held:
            raise ValueError(
                "the optimizer holds none of the parameters, so its step says nothing about them: "
                "give Tasks the optimizer that moves them"
            )
        self._still = all(float(group["lr"]) == 0 for group in optimizer.param_groups)
        steps = _numbers([state.get("step", 0) for *_, state in held])
        self._kinds: dict[tuple[int, float], tuple[dict[str, Any], list[Column]]] = {}
        for t, (p, tensors, group, state) in zip(steps, held, strict=True):
            _, columns = self._kinds.setdefault((id(group), t + 1), (group, []))
            columns.append((p, state.get("exp_avg"), state.get("exp_avg_sq"), *tensors))

    @torch.no_grad()
    def slopes(self, low: int, weights: Sequence[float]) -> tuple[float, float, float, float]:
        """<f, P u>, <f, P f>, <f, step>, and d/dx <f, step(u + x f)> at fixed P; f = scaled row
        `low`. Where every rate is 0 (warm-up) they are those of rate 1."""
        factors = [w * s for w, s in zip(weights, self._scales, strict=True)]
        along = own = real = rate = 0.0
        for (_, t), (group, columns) in self._kinds.items():
            found = self._part(group, t, columns, low, factors)
            along, own, real, rate = map(sum, zip((along, own, real, rate), found, strict=True))
        return along, own, real, rate

    def _part(
        self, group: dict[str, Any], t: float, columns: list[Column], low: int, factors: list[float]
    ) -> tuple[float, float, float, float]:
        lr = 1.0 if self._still else float(group["lr"])
        beta1, beta2 = (float(beta) for beta in group["betas"])
        decay, decoupled = float(group["weight_decay"]), bool(group["decoupled_weight_decay"])
        root2 = (1 - beta2**t) ** 0.5
        scale = lr / (1 - beta1**t) * root2
        found: list[list[Tensor]] = [[] for _ in range(5)]
        reached = (column for column in columns if column[3 + low] is not None)
        for piece in pieces(reached):
            assert piece[0] is not None
            wide = accumulator(piece[0])
            w, m, v, *rows = (None if one is None else one.to(wide) for one in piece)
            f = rows[low]
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
            for place, other in enumerate((u, f, s, m)):
                if other is not None:
                    found[place].append(torch.dot(fP, other))
            if decoupled and decay:
                found[4].append(torch.dot(f, w))
        c = self._scales[low]
        along, own, new, old, back = totals(found)
        step = scale * c * (beta1 * old + (1 - beta1) * new)
        if decoupled:
            step += lr * decay * c * back
        own *= scale * c * c
        return scale * c * along, own, step, (1 - beta1) * own


def _numbers(steps: Sequence[Any]) -> list[float]:
    """As floats; those on a device (fused, capturable) in one wait."""
    far = [isinstance(s, Tensor) and s.device.type != "cpu" for s in steps]
    brought = iter(
        torch.stack([s for s, one in zip(steps, far, strict=True) if one]).tolist()
        if any(far)
        else []
    )
    return [next(brought) if one else float(s) for s, one in zip(steps, far, strict=True)]
