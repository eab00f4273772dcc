"""A network with normalisation and dropout, and its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

Batches = Iterator[Callable[[], Tensor]]


@pytest.fixture
def network() -> Callable[[], tuple[nn.Module, Callable[..., Batches]]]:
    """`model, batches = network()`: always the same; `batches()` yields functions without end."""

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2),
                              nn.Linear(8, 3))  # fmt: skip
        x = torch.randn(256, 6)
        y = (x[:, :3] * 2).argmax(1)

        def batches(size=64, seed=0):
            random = torch.Generator().manual_seed(seed)
            while True:
                i = torch.randint(256, (size,), generator=random)
                yield lambda i=i: nn.functional.cross_entropy(model(x[i]), y[i], reduction="none")

        return model, batches

    return make
