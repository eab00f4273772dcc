"""Every mechanism keeps the Mechanism contract. A new one joins by one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from steelyard.filters.chain import chain
from steelyard.filters.gaussian import Gaussian
from steelyard.filters.grid import GridGaussian
from steelyard.types import Clipped, Mechanism, Stateful

MECHANISMS: dict[str, Callable[[], Mechanism]] = {
    "gaussian": lambda: Gaussian(1.1, seed=1),
    "gaussian, un-seeded": lambda: Gaussian(0.4),
    "grid": lambda: GridGaussian(1.1, seed=1),
    "chain without filters": lambda: chain(Gaussian(2.0, seed=2)),
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_mechanism(properties, name):
    properties.assert_mechanism(MECHANISMS[name])


@pytest.mark.parametrize("name", MECHANISMS)
def test_resumes(properties, name):
    make = MECHANISMS[name]
    assert isinstance(make(), Stateful)
    properties.assert_resumes(
        make, lambda m: m.privatise(Clipped([torch.ones(50), torch.ones(3, 4)], 0.5)).tensors
    )
