"""The models on which test_opacus.py compares, and the modes of Opacus that do not serve one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steelyard import models

B = 6  # samples


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of a sample
    vocabulary: int = 0  # > 0: integer inputs
    not_in: tuple[str, ...] = ()  # modes of Opacus that do not serve it

    def batch(self) -> Tensor:
        if self.vocabulary:
            return torch.randint(0, self.vocabulary, (B, *self.shape))
        return torch.randn(B, *self.shape).double()


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def chain(*parts: nn.Module) -> Callable[[], nn.Module]:
    """The layer under test stands in the middle: its inputs need gradients too."""
    return lambda: nn.Sequential(*(copy.deepcopy(part) for part in parts))


def frozen(layer: nn.Module, name: str) -> nn.Module:
    layer.get_parameter(name).requires_grad_(False)
    return layer


def gpt() -> nn.Module:
    task = models.Task(kind="language", shape=(6,), vocabulary=11)
    return models.build("gpt", task, seed=0, layers=2, width=8, heads=2, tied=False)


def lora() -> nn.Module:
    return nn.Sequential(
        LoRA(nn.Linear(4, 6), 2), nn.GELU(), LoRA(nn.Linear(6, 5), 3), nn.LayerNorm(5)
    )


CASES = {
    "linear 2-D": Case(chain(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (5,)),
    "linear 3-D": Case(chain(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)), (7, 3)),
    "linear 4-D": Case(
        chain(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (2, 5, 3), not_in=("ghost",)
    ),
    "frozen weight": Case(chain(frozen(nn.Linear(3, 4), "weight"), nn.Linear(4, 2)), (7, 3)),
    "frozen bias": Case(chain(frozen(nn.Linear(3, 4), "bias"), nn.Linear(4, 2)), (7, 3)),
    "embedding": Case(chain(nn.Embedding(7, 4), nn.Linear(4, 3)), (9,), 7),
    "conv1d": Case(chain(nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.Conv1d(4, 3, 2)), (2, 11)),
    "conv1d groups": Case(
        chain(nn.Conv1d(4, 6, 3, dilation=2, groups=2), nn.Conv1d(6, 6, 2, groups=6)), (4, 9)
    ),
    "conv2d": Case(
        chain(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=1, dilation=2), nn.Conv2d(4, 3, 1)),
        (2, 8, 6),
    ),
    "conv2d groups": Case(
        chain(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Conv2d(6, 3, 2, groups=3)), (4, 6, 5)
    ),
    "conv2d same": Case(
        chain(nn.Conv2d(2, 4, (4, 3), padding="same"), nn.Conv2d(4, 3, 2)), (2, 6, 5)
    ),
    "conv3d": Case(
        chain(nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=1), nn.Conv3d(4, 2, 1)), (2, 3, 4, 3)
    ),
    "conv3d groups": Case(
        chain(nn.Conv3d(4, 4, 2, groups=2, dilation=(1, 2, 1)), nn.Conv3d(4, 2, 1)),
        (4, 3, 5, 3), not_in=("ew",),
    ),
    "layer norm": Case(chain(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (7, 3)),
    "layer norm 2-D": Case(chain(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (4,)),
    "layer norm two dims": Case(chain(nn.LayerNorm([4, 5]), nn.Linear(5, 3)), (4, 5)),
    "rms norm": Case(
        chain(nn.Linear(3, 5), nn.RMSNorm(5), nn.Linear(5, 3)), (7, 3), not_in=("ew",)
    ),
    "group norm": Case(chain(nn.Conv1d(3, 6, 2), nn.GroupNorm(3, 6), nn.Conv1d(6, 2, 2)), (3, 8)),
    "instance norm 1-D": Case(
        chain(nn.Conv1d(3, 4, 2), nn.InstanceNorm1d(4, affine=True), nn.Tanh(), nn.Linear(7, 3)),
        (3, 8),
    ),
    "instance norm 2-D": Case(
        chain(nn.Conv2d(3, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.Tanh(), nn.Conv2d(4, 2, 2)),
        (3, 6, 5),
    ),
    "instance norm 3-D": Case(
        chain(nn.Conv3d(1, 3, 2), nn.InstanceNorm3d(3, affine=True), nn.Tanh(), nn.Conv3d(3, 2, 1)),
        (1, 4, 3, 4),
    ),
    "gpt": Case(gpt, (6,), 11),
    "lora": Case(lora, (7, 4)),
    "convolutional net": Case(
        chain(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2), nn.GroupNorm(2, 4), nn.Tanh(),
            nn.Conv2d(4, 4, 2, groups=2, bias=False), nn.Flatten(), nn.Linear(16, 3),
        ),
        (2, 8, 8),
    ),
}  # fmt: skip
