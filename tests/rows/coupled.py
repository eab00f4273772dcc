"""A small private run with public rows, for the tests of coupling: test_sources*.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.rows.sources import PublicRows
from steelyard.types import Noised
from steelyard.weightings.clip import FlatClip

B, R, SIGMA = 4.0, 0.5, 0.8

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.2, momentum=0.9),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.05),
}


class Scaled(nn.Module):
    """Two layers and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) * self.scale)


def losses(net: nn.Module, x: Tensor) -> Tensor:  # [n]
    return (net(x) - x[:, :2]).square().sum(1)


def batch(step: int, salt: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * salt + step)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


class Run:
    """Model, rows, public rows and optimizer; `step(t)` takes one step on two batches."""

    def __init__(
        self,
        weight: Any,
        *behind: Any,
        optimizer: str = "sgd",
        groups: Any = "all",
        ledger: Any = None,
        private_salt: int = 2,
        seed: int = 3,
        **options: Any,
    ):
        torch.manual_seed(0)
        self.net = Scaled().double()
        self.rows = PerSample(self.net, FlatClip(R), expected_batch=B, groups=groups)
        self.public = PublicRows(self.rows, weight, **options)
        self.chain = chain(Gaussian(SIGMA, seed=seed), self.public, *behind)
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        q = None if ledger is None else ledger.plan.sampling_probability
        attach(self.optimizer, self.rows, self.chain, ledger=ledger, sampling_probability=q)
        self.salt, self.t = private_salt, 0

    def step(self, *, public: bool = True) -> list[Tensor]:
        t, self.t = self.t, self.t + 1
        if public:
            self.public.backward(losses(self.net, batch(t, 1, 3)))
        self.rows.backward(losses(self.net, batch(t, self.salt, 5)))
        self.optimizer.step()
        return self.weights()

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.net.parameters()]

    def state_dict(self) -> dict[str, Any]:
        parts = {"net": self.net, "chain": self.chain, "optimizer": self.optimizer}
        return {"t": self.t} | {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t = state["t"]
        for name in ("net", "chain", "optimizer"):
            getattr(self, name).load_state_dict(state[name])


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class LowPass:
    """m <- m / 2 + g / 2, from 0."""

    def __init__(self) -> None:
        self.memory: list[Tensor] | None = None

    def filter(self, gradient: Noised) -> Noised:
        old = (
            [torch.zeros_like(g) for g in gradient.tensors] if self.memory is None else self.memory
        )
        self.memory = [m / 2 + g / 2 for m, g in zip(old, gradient.tensors, strict=True)]
        tensors = [m.clone() for m in self.memory]
        return Noised(tensors, gradient.sensitivity, gradient.noise_multiplier)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory = state["memory"]
