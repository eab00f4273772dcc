"""Every filter keeps the Filter contract. A new filter joins by one line in FILTERS.

The average below is no method of the library: it keeps this table from being empty, and shows how a
filter is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from steelyard.filters.disk import Disk
from steelyard.filters.doppler import Doppler
from steelyard.filters.record import Recorder
from steelyard.types import Filter, Noised


class Average:
    """m <- m + a (g - m), started at the first gradient."""

    def __init__(self, rate: float):
        self.rate = rate
        self.means: list[Tensor] = []

    def filter(self, gradient: Noised) -> Noised:
        if not self.means:
            self.means = [t.clone() for t in gradient.tensors]
        for mean, tensor in zip(self.means, gradient.tensors, strict=True):
            mean += self.rate * (tensor - mean)
        means = [mean.clone() for mean in self.means]
        return Noised(means, gradient.sensitivity, gradient.noise_multiplier)

    def state_dict(self) -> dict[str, Any]:
        return {"means": [mean.clone() for mean in self.means]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.means = [mean.clone() for mean in state["means"]]


FILTERS: dict[str, Callable[[], Filter]] = {
    "average": lambda: Average(0.25),
    "doppler, first order": lambda: Doppler.first_order(0.8),
    "doppler, cascade": lambda: Doppler.cascade(0.8, 2),
    "doppler, designed": lambda: Doppler.design(0.05),
    "disk": lambda: Disk(0.7),
    "disk, two evaluations": lambda: Disk(0.5, 0.7),
    "disk, gain 1": lambda: Disk(1.0),
    "recorder": lambda: Recorder(8),
}


class Driver:
    """Feeds a filter one release after the other; its position is part of its state."""

    def __init__(self, one: Filter):
        self.one, self.step = one, 0

    def drive(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.step)
        self.step += 1
        tensors = [torch.randn(s, generator=generator) for s in ((3, 4), (5,))]
        return list(self.one.filter(Noised(tensors, 0.5, 1.0)).tensors)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "filter": self.one.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.one.load_state_dict(state["filter"])


@pytest.mark.parametrize("name", FILTERS)
def test_filter(properties, name):
    properties.assert_filter(FILTERS[name])


@pytest.mark.parametrize("name", FILTERS)
def test_unit_gain(properties, name):
    properties.assert_unit_gain(FILTERS[name])


@pytest.mark.parametrize("name", FILTERS)
def test_resumes(properties, name):
    properties.assert_resumes(lambda: Driver(FILTERS[name]()), Driver.drive)
