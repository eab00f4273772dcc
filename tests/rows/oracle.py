"""The oracle of the row tests: every sample alone in its own forward and backward pass, in float64,
and the clip formulas written again from the papers. It shares no line with the engine.

| name | C(n) | source |
|---|---|---|
| flat | min(1, R / n) | arXiv 1607.00133, Algorithm 1 |
| auto-s | R / (n + 0.01) | arXiv 2206.07136, eq. (4.1) |
| auto-v | R / n, and 0 for a zero row | arXiv 2206.07136 |
| normalized | R / (n + 0.1) | arXiv 2206.13033 |
| global | 1 if n <= R else 0 | arXiv 2106.07830 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Row = dict[str, Tensor]  # a sample's gradient by parameter name
Losses = Callable[..., Tensor]  # (model, *batch) -> [B]

FORMULAS: dict[str, Callable[[float, float], float]] = {
    "flat": lambda R, n: min(1.0, R / n) if n > 0 else 1.0,
    "auto-s": lambda R, n: R / (n + 0.01),
    "auto-v": lambda R, n: R / n if n > 0 else 0.0,
    "normalized": lambda R, n: R / (n + 0.1),
    "global": lambda R, n: float(n <= R),
}


def per_sample(model: nn.Module, losses: Losses, *batch: Tensor) -> list[Row]:
    """Gradients of sample i from a forward pass of sample i alone; zeros where none reaches."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = []
    for i in range(len(batch[0])):
        (loss,) = losses(model, *(part[i : i + 1] for part in batch))
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        rows.append(
            {
                name: torch.zeros_like(p).double() if g is None else g.to_dense().double()
                for (name, p), g in zip(named.items(), found, strict=True)
            }
        )
    return rows


def clipped_sum(
    rows: Sequence[Row], groups: Sequence[Sequence[str]], clip: str, bound: float
) -> Row:
    """sum_i concat_m C(||g_i^(m)||) g_i^(m) with R_m = R / sqrt(M)."""
    total = {name: torch.zeros_like(g) for name, g in rows[0].items()}
    for group in groups:
        for row in rows:
            weight = FORMULAS[clip](bound / math.sqrt(len(groups)), norm(row, group))
            for name in group:
                total[name] += weight * row[name]
    return total


def norm(tensors: Mapping[str, Tensor], names: Sequence[str] | None = None) -> float:
    """L2 norm of the named tensors together (all by default), in float64."""
    chosen = tensors.keys() if names is None else names
    return math.sqrt(sum(float(tensors[name].double().square().sum()) for name in chosen))


def relative_error(
    got: Mapping[str, Tensor], truth: Mapping[str, Tensor], names: Sequence[str]
) -> float:
    """L2 of the difference over L2 of the truth, over a clipping group as a whole."""
    size = norm(truth, names)
    error = norm({name: got[name].double() - truth[name] for name in names})
    return error / size if size else error
