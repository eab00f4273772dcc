"""A small private run with DiSK, for its tests: test_disk_places.py, test_disk_state.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.disk import Disk
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

SETTINGS = {"w=1": (0.7, None), "w<1": (0.7, 0.5), "w>1": (0.5, 0.7)}
every_setting = pytest.mark.parametrize(("gain", "gamma"), SETTINGS.values(), ids=SETTINGS)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def losses(net: nn.Module, x: Tensor) -> Tensor:  # [B]
    return net(x).square().sum(1)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Training:
    """All that a checkpoint of a private run has to hold. `step()` takes one step."""

    def __init__(self, disk: Disk, *, lr=0.1, net: nn.Module | None = None, kind=torch.optim.AdamW):
        self.net = model() if net is None else net
        self.disk, self.steps = disk, 0
        self.rows = PerSample(self.net, FlatClip(0.5), expected_batch=4)
        self.optimizer = kind(self.net.parameters(), lr=lr)
        self.parts = chain(Gaussian(0.5, seed=0), disk)
        self.attached = attach(self.optimizer, self.rows, self.parts)

    def batch(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.steps)
        return torch.randn(4, 3, generator=generator)

    def step(self) -> list[Tensor]:
        x = self.batch()
        self.steps += 1
        self.rows.backward(lambda: losses(self.net, x))
        self.optimizer.step()
        return weights(self.net)

    def state_dict(self) -> dict[str, Any]:
        parts = {"net": self.net, "optimizer": self.optimizer, "parts": self.parts}
        return {"steps": self.steps} | {name: p.state_dict() for name, p in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.parts.load_state_dict(state["parts"])
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])

    def twin(self, disk: Disk, **options: Any) -> Training:
        other = Training(disk, **options)
        other.load_state_dict(copy.deepcopy(self.state_dict()))
        return other


def after(steps: int, disk: Disk, **options: Any) -> Training:
    training = Training(disk, **options)
    for _ in range(steps):
        training.step()
    return training
