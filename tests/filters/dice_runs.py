"""What the tests of error feedback share: a model and its batches, and streams made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steelyard.filters.dice import Dice
from steelyard.types import Clipped

B = 6.0
SIZES = [5, 8, 0, 6, 3, 7]  # of the batches, in turn


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def losses(net: nn.Module, x: Tensor) -> Tensor:  # [n]
    return (net(x) - x[:, :2].sin()).square().sum(1) * (1 + 5 * x[:, 0].abs())


def batches(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [SIZES[t % len(SIZES)] for t in range(steps)]
    return [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in sizes]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


def clip(vector: Tensor, bound: float) -> Tensor:
    norm = float(vector.norm())
    return vector * min(1.0, bound / norm) if norm > 0 else vector


def stream(steps: int, size: float = 3.0) -> list[tuple[Tensor, Tensor]]:
    """(clipped mean, raw mean) made by hand, of random rows in twelve dimensions."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for t in range(steps):
        n = SIZES[t % len(SIZES)]
        g = torch.randn(n, 12, generator=generator, dtype=torch.float64) * size + 0.5
        cut = torch.stack([clip(one, 1.0) for one in g]) if n else g
        made.append((cut.sum(0) / B, g.sum(0) / B))
    return made


def release(dice: Dice, clipped: Tensor, raw: Tensor) -> Tensor:
    """In two tensors, as parameters are; returned in one."""
    halves = [[part.clone() for part in one.tensor_split([5])] for one in (clipped, raw)]
    return flat(dice.privatise(Clipped(halves[0], dice.bound / B, halves[1])).tensors)


def error(dice: Dice) -> Tensor:
    return flat(dice.state_dict()["error"])
