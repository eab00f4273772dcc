from __future__ import annotations

from typing import Any

import pytest
import torch

from steelyard.filters.chain import chain
from steelyard.filters.gaussian import Gaussian
from steelyard.types import Clipped, Noised


class Scale:
    """A filter that multiplies by `factor` and counts."""

    def __init__(self, factor: float):
        self.factor, self.steps, self.seen = factor, 0, []

    def filter(self, gradient: Noised) -> Noised:
        self.steps += 1
        self.seen.append(type(gradient))
        scaled = [self.factor * t for t in gradient.tensors]
        return Noised(scaled, gradient.sensitivity, gradient.noise_multiplier)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class Add(Scale):
    def filter(self, gradient: Noised) -> Noised:
        added = [self.factor + t for t in gradient.tensors]
        return Noised(added, gradient.sensitivity, gradient.noise_multiplier)


def ones() -> Clipped:
    return Clipped([torch.ones(3), torch.ones(2, 2)], 0.5)


def test_noise_first_then_the_filters_in_order():
    plain = Gaussian(1.5, seed=0).privatise(ones())
    both = chain(Gaussian(1.5, seed=0), Scale(2.0), Add(1.0))
    found = both.privatise(ones())
    assert both.noise_multiplier == found.noise_multiplier == 1.5
    assert found.sensitivity == 0.5
    for got, noised in zip(found.tensors, plain.tensors, strict=True):
        torch.testing.assert_close(got, 2 * noised + 1)


def test_filters_see_released_gradients_only():
    scale = Scale(1.0)
    chain(Gaussian(1.0), scale).privatise(ones())
    assert scale.seen == [Noised]


def test_a_chain_without_filters_is_its_mechanism():
    a = chain(Gaussian(1.0, seed=1)).privatise(ones())
    b = Gaussian(1.0, seed=1).privatise(ones())
    assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([Scale(1.0), Gaussian(1.0)], "position 0.*Scale.*must add the noise"),
        ([Scale(1.0)], "position 0.*Scale"),
        ([Gaussian(1.0), Gaussian(1.0)], "position 1.*Gaussian.*must not add noise again"),
        ([Gaussian(1.0), Scale(1.0), Gaussian(0.5)], "position 2"),
        ([Gaussian(1.0), chain(Gaussian(1.0))], "position 1.*Chain"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else "+".join(type(v).__name__ for v in value)
    ),
)
def test_noise_stands_first_and_once(parts, words):
    with pytest.raises(ValueError, match=words):
        chain(*parts)


def test_a_chain_can_be_chained_on():
    found = chain(chain(Gaussian(0.0), Scale(2.0)), Scale(3.0)).privatise(ones())
    assert all(bool((t == 6).all()) for t in found.tensors)


def test_state_resumes_noise_and_filters():
    first = chain(Gaussian(1.0, seed=2), Scale(1.0), Scale(1.0))
    for _ in range(3):
        first.privatise(ones())
    second = chain(Gaussian(1.0), Scale(1.0), Scale(1.0))
    second.load_state_dict(first.state_dict())
    assert [f.steps for f in second.filters] == [3, 3]  # type: ignore[attr-defined]
    a, b = first.privatise(ones()), second.privatise(ones())
    assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


def test_a_state_of_another_length_is_refused_and_changes_nothing():
    first = chain(Gaussian(1.0, seed=2), Scale(1.0))
    second = chain(Gaussian(1.0, seed=3), Scale(1.0), Scale(1.0))
    with pytest.raises(ValueError, match=r"has 1 filter.*this one 2"):
        second.load_state_dict(first.state_dict())
    expected = chain(Gaussian(1.0, seed=3)).privatise(ones())
    found = second.privatise(ones())
    assert all(torch.equal(x, y) for x, y in zip(found.tensors, expected.tensors, strict=True))
