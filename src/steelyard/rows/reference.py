"""The slow engine: one backward pass per row. Right for any module whose samples do not mix.

It is the fallback for parameters that no layer rule covers, and the oracle of the tests. It costs B
backward passes and the memory of every row's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steelyard.rules.factors import Dense


def per_row_gradients(losses: Tensor, parameters: Sequence[Tensor]) -> list[Dense]:
    """Gradients of losses[i] for every i: one `Dense` [B, *shape] per parameter; the graph is kept.

    Shapes: losses [B], each a function of its own sample. Unreached parameters get zeros.
    """
    rows = [p.new_zeros(len(losses), *p.shape, dtype=accumulator(p)) for p in parameters]
    for i in range(len(losses)):
        gradients = torch.autograd.grad(losses[i], parameters, retain_graph=True, allow_unused=True)
        for row, gradient in zip(rows, gradients, strict=True):
            if gradient is not None:
                row[i] = gradient
    return [Dense(row) for row in rows]


def accumulator(tensor: Tensor) -> torch.dtype:
    """Norms, sums and noise are at least float32, whatever the parameters are."""
    return torch.promote_types(tensor.dtype, torch.float32)
