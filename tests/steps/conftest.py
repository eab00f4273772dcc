"""Exact quadratics in groups of parameters, and one fit of Hi-DLR on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from steelyard.steps.hidlr import HiDLR
from steelyard.steps.quadratic import Policy

WIDE = Policy(clip=(1e-6, 1e6), least_snr=0.0)


class _Bowl:
    """L(w) = scale (w'Hw / 2 - g.w + slope) of float64 groups; w starts at 0, or at `start`."""

    def __init__(self, H, g, sizes, *, scale=1.0, start=None):
        self.H, self.g = torch.as_tensor(H, dtype=torch.float64), torch.as_tensor(g).double()
        self.scale = scale
        start = torch.zeros(len(self.g)) if start is None else torch.as_tensor(start)
        self.parts = [nn.Parameter(part) for part in start.double().split(list(sizes))]
        self.groups = {f"g{k}": [part] for k, part in enumerate(self.parts)}

    @property
    def w(self):
        return torch.cat([part.detach() for part in self.parts])

    def loss(self):
        w = torch.cat(list(self.parts))
        return self.scale * (0.5 * w @ self.H @ w - self.g @ w)

    def backward(self):
        for part in self.parts:
            part.grad = None
        self.loss().backward()

    def sgd(self, lr=0.01):
        return torch.optim.SGD(self.parts, lr=lr)


def _bowl(seed=0, sizes=(3, 2, 4), *, coupling=1.0, **options) -> _Bowl:
    """A random positive definite H; coupling scales its off-diagonal blocks."""
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    root = rng.normal(size=(n, n))
    H = root @ root.T / n + 0.3 * np.eye(n)
    block = np.repeat(np.arange(len(sizes)), sizes)
    H = np.where(block[:, None] == block[None, :], H, coupling * H)
    return _Bowl(H, rng.normal(size=n), sizes, **options)


def _exact(bowl: _Bowl, lr: float) -> tuple[np.ndarray, np.ndarray]:
    """b [K] and A [K, K] along the SGD step's parts, by matrix algebra."""
    gradient = bowl.scale * (bowl.H @ bowl.w - bowl.g)
    parts = torch.block_diag(*[p[:, None] for p in gradient.split([len(p) for p in bowl.parts])])
    D = -lr * parts  # [n, K]
    return (-(gradient @ D)).numpy(), (bowl.scale * D.T @ bowl.H @ D).numpy()


def _one_fit(bowl: _Bowl, lr: float = 0.01, **options):
    """The decision of one unsmoothed, unclipped fit."""
    options = {"bootstrap": 0, "every": 1, "smoothing": 0.0, "policy": WIDE} | options
    rate = HiDLR(bowl.sgd(lr), bowl.groups, **options)
    bowl.backward()
    return rate, rate.step(bowl.loss)


@pytest.fixture
def Bowl() -> type[_Bowl]:  # noqa: N802
    return _Bowl


@pytest.fixture
def bowl() -> Callable[..., _Bowl]:
    return _bowl


@pytest.fixture
def exact() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return _exact


@pytest.fixture
def one_fit() -> Callable[..., Any]:
    return _one_fit
