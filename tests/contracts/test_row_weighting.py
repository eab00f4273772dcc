"""Every clipping rule keeps the RowWeighting contract. A new rule joins by one line."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.types import RowWeighting
from steelyard.weightings.clip import AutoClip, FlatClip, GlobalClip, NormalizedClip

WEIGHTINGS: dict[str, RowWeighting] = {
    "flat": FlatClip(0.7),
    "flat, tiny bound": FlatClip(1e-3),
    "AUTO-S": AutoClip(0.7),
    "AUTO-V": AutoClip(0.7, stability=0.0),
    "normalised": NormalizedClip(0.7, stability=0.2),
    "global": GlobalClip(0.7),
}


class Tied(nn.Module):
    """Embedding and head share a matrix; one layer is called twice."""

    def __init__(self):
        super().__init__()
        self.token, self.twice = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens)
        return self.head(self.norm(self.twice(torch.tanh(self.twice(x)))))


def losses(model: nn.Module, tokens: Tensor, targets: Tensor, scale: Tensor) -> Tensor:  # [B]
    return scale * F.cross_entropy(model(tokens).transpose(1, 2), targets, reduction="none").sum(1)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_separable(properties, name):
    properties.assert_separable(WEIGHTINGS[name])


@pytest.mark.parametrize("groups", ["all", "layer", "parameter", 2], ids=str)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_sensitivity(properties, name, groups):
    tokens, targets = torch.randint(0, 6, (4, 5)), torch.randint(0, 6, (4, 5))
    batch = (tokens, targets, torch.tensor([1.0, 100.0, 0.0, 1e-4]))
    properties.assert_sensitivity(WEIGHTINGS[name], Tied(), losses, batch, groups=groups)
