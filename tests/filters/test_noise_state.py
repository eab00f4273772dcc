"""Seeds and saved states of both mechanisms: reproducible where asked for, fresh otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from steelyard.filters.chain import chain
from steelyard.filters.gaussian import Gaussian
from steelyard.filters.grid import GridGaussian
from steelyard.types import Clipped

KINDS: dict[str, Callable[..., Any]] = {"gaussian": Gaussian, "grid": GridGaussian}
SHAPES = [(30, 50), (7,), (1,), (499,)]  # 2,007 elements


@pytest.fixture(params=KINDS)
def kind(request) -> Callable[..., Any]:
    return KINDS[request.param]


def drawn(mechanism) -> Tensor:
    gradient = Clipped([torch.zeros(shape) for shape in SHAPES], 1.0)
    return torch.cat([t.double().flatten() for t in mechanism.privatise(gradient).tensors])


def correlation(x: Tensor, y: Tensor) -> float:
    """In standard deviations of independent draws."""
    return abs(float((x * y).sum() / (x.norm() * y.norm()) * math.sqrt(len(x))))


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("steps", [0, 3])
def test_state_resumes_bit_exactly(kind, seed, steps):
    first = kind(1.0, seed=seed)
    for _ in range(steps):
        drawn(first)
    second = kind(1.0)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(drawn(first), drawn(second)) for _ in range(2))
    assert second.seeded == (seed is not None)


def test_a_resumed_mechanism_draws_nothing_again(kind):
    first = kind(1.0, seed=3)
    before = [drawn(first) for _ in range(3)]
    second = kind(1.0)
    second.load_state_dict(first.state_dict())
    assert max(correlation(drawn(second), old) for old in before) < 5


def test_a_state_is_plain_data_and_small(kind, properties):
    properties.assert_resumes(lambda: kind(0.5, seed=2), lambda m: [drawn(m)])
    mechanism = kind(1.0)
    drawn(mechanism)
    assert len(str(mechanism.state_dict())) < 300


def test_seeds(kind):
    def once(seed: int | None) -> Tensor:
        return drawn(kind(1.0, seed=seed))

    assert torch.equal(once(1), once(1))
    for one, other in ((once(1), once(2)), (once(None), once(None)), (once(0), once(2**40))):
        assert correlation(one, other) < 5
    before = torch.random.get_rng_state()
    torch.manual_seed(0)
    a = once(None)
    torch.manual_seed(0)
    assert not torch.equal(a, once(None))  # the global generator has no say
    torch.random.set_rng_state(before)
    once(None)
    assert torch.equal(before, torch.random.get_rng_state())  # and is left alone


def test_roots_are_fresh_and_one_seed_is_another_key_for_another_purpose(kind):
    assert len({kind(1.0).state_dict()["root"] for _ in range(5)}) == 5
    mechanism = Gaussian(1.0, seed=0)
    noise = drawn(mechanism)
    on_device = torch.randn(  # torch's generators are for other devices; here one on the CPU
        len(noise), generator=mechanism._generator("cpu"), dtype=torch.float64
    )
    grid = drawn(GridGaussian(1.0, seed=0))
    for one, other in ((noise, on_device), (noise, grid), (grid, on_device)):
        assert correlation(one, other) < 5
    states = Gaussian(1.0, seed=0).state_dict(), GridGaussian(1.0, seed=0).state_dict()
    assert states[0]["root"] == states[1]["root"]
    assert Gaussian(1.0, seed=0)._words.words(4).tolist() != (
        GridGaussian(1.0, seed=0)._words.words(4).tolist()
    )


FOREIGN = {
    "of an earlier version": {"root": "0" * 64, "seeded": False, "streams": {"cpu": []}},
    "of a chain": chain(Gaussian(1.0)).state_dict(),
    "of another mechanism": {"kind": "other", "root": "0" * 64, "seeded": False, "position": 0},
    "of another grid": GridGaussian(1.0, bits=23).state_dict(),
    "of another slack": GridGaussian(1.0, slack=0.01).state_dict(),
    "with a broken position": {**Gaussian(1.0).state_dict(), "position": None},
    "nothing": {},
}


@pytest.mark.parametrize("which", FOREIGN)
def test_a_foreign_state_is_refused_and_changes_nothing(kind, which):
    mechanism, same = kind(1.0, seed=1), kind(1.0, seed=1)
    with pytest.raises(ValueError, match=r"^not a saved state of G.*: ") as error:
        mechanism.load_state_dict(FOREIGN[which])
    assert "\n" not in str(error.value)
    assert torch.equal(drawn(mechanism), drawn(same))


def test_the_other_mechanisms_state_is_refused():
    for one, other in ((Gaussian(1.0), GridGaussian(1.0)), (GridGaussian(1.0), Gaussian(1.0))):
        with pytest.raises(ValueError, match=f"not a saved state of {type(other).__name__}"):
            other.load_state_dict(one.state_dict())
