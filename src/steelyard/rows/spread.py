"""The sum of public rows, and the variance of their mean: V_pub = E ||gbar_pub - G||_H^2.

Both estimates are unbiased for rows drawn independently. H = identity, from n rows c_k of mean m:

    V_pub = ( sum_k ||c_k||^2 - n ||m||^2 ) / ((n - 1) n)

and in Adam's metric, from K micro-batches of b_k rows with means m_k:

    V_pub = sum_k b_k ||m_k - m||_h^2 / ((K - 1) n),    h = 1 / (sqrt(v) + eps), scaled to mean 1

where the sum is built up as micro-batches come: one of b rows after n others, whose means are apart
by D, adds ||D||_h^2 b n / (b + n).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from steelyard.rows.losses import Losses
from steelyard.rows.per_sample import PerSample
from steelyard.types import RowWeighting


class PublicSum:
    """Rows of public samples since the last `clear`. metric: "identity", "adam", or None."""

    def __init__(self, rows: PerSample, weighting: RowWeighting | None, metric: str | None):
        self._rows, self._metric = rows, metric
        self._sum = rows.new_sum(expected_batch=1.0, weighting=weighting)
        self._sum.measured = metric == "identity"
        self._optimizer: Optimizer | None = None
        self.clear()

    def connect(self, optimizer: Optimizer) -> None:
        """Raises ValueError where the metric is Adam's and the optimizer is not like Adam."""
        if self._metric == "adam" and not {"betas", "eps"} <= optimizer.defaults.keys():
            raise _not_adam(optimizer)
        self._optimizer = optimizer

    def add(self, losses: Losses) -> None:
        """The rows of these losses, or of a function that returns them."""
        count = 0

        def counted() -> Tensor:
            nonlocal count
            assert callable(losses)
            found = losses()
            count = len(found)
            return found

        self._rows.backward(counted if callable(losses) else losses, into=self._sum)
        count = count if callable(losses) else len(losses)
        if self._metric == "adam" and count:
            self._compare(count)
        self.count += count

    def tensors(self) -> list[Tensor]:
        """sum_k c_k, one tensor per parameter; the caller may keep them."""
        return self._sum.tensors() if self._earlier is None else self._earlier

    @property
    def finite(self) -> bool:
        return self._sound and self._sum.finite

    def variance(self) -> float | None:
        """V_pub; None where nothing is to be measured, or fewer than two rows (Adam's metric:
        micro-batches) have come."""
        n = self.count
        if self._metric == "identity" and n > 1:
            assert self._sum.squares is not None
            mean = sum(float(t.double().square().sum()) for t in self.tensors()) / n
            return max(0.0, float(self._sum.squares) - mean) / (n - 1) / n
        if self._metric == "adam" and self._batches > 1:
            return self._between / (self._batches - 1) / n
        return None

    def clear(self) -> None:
        self._sum.clear()
        self.count = 0
        self._earlier: list[Tensor] | None = None  # sums of the micro-batches already compared
        self._batches, self._between, self._sound = 0, 0.0, True

    @torch.no_grad()
    def _compare(self, count: int) -> None:
        """Move the micro-batch that has just come over to the earlier ones."""
        new, self._sound = self._sum.tensors(), self.finite
        self._sum.clear()
        self._batches += 1
        if self._earlier is None:
            self._earlier = new
            return
        if self._optimizer is None:
            raise RuntimeError(
                'metric "adam" reads the optimizer: attach(optimizer, rows, chain(Gaussian(sigma), '
                "public)) before public.backward"
            )
        n, curvature = self.count, adam_metric(self._optimizer, self._rows.parameters)
        apart = sum(
            float((h * (a / count - b / n).square()).sum(dtype=torch.float64))
            for h, a, b in zip(curvature, new, self._earlier, strict=True)
        )
        self._between += apart * count * n / (count + n)
        torch._foreach_add_(self._earlier, new)


def adam_metric(optimizer: Optimizer, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    """h = 1 / (sqrt(v) + eps), the diagonal by which Adam stretches a gradient, scaled to mean 1.

    v is corrected for its start at 0. Ones before the optimizer's first step; zero where the
    optimizer does not hold a parameter, which then does not move. Raises ValueError for an
    optimizer that keeps no second moments.
    """
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p)
            if not state:
                found[p] = torch.ones_like(p, dtype=torch.float32)
                continue
            if "exp_avg_sq" not in state:
                raise _not_adam(optimizer)
            seen = 1 - group["betas"][1] ** float(state["step"])
            found[p] = 1 / ((state["exp_avg_sq"].float() / seen).sqrt() + group["eps"])
    metric = [
        found[p] if p in found else torch.zeros_like(p, dtype=torch.float32) for p in parameters
    ]
    trace = sum(float(h.sum(dtype=torch.float64)) for h in metric)
    torch._foreach_mul_(metric, sum(h.numel() for h in metric) / trace)
    return metric


def _not_adam(optimizer: Optimizer) -> ValueError:
    return ValueError(
        f'metric "adam" needs an optimizer with second moments, found {type(optimizer).__name__}: '
        'use AdamW, or metric "identity"'
    )
