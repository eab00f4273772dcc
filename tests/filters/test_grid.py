"""Noise on a grid: what is released, how wide the grid is, the theorems behind its accounting."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.discrete import discrete_gaussian
from steelyard.filters.grid import CHUNK, GridGaussian
from steelyard.filters.keystream import Keystream
from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped, Noised
from steelyard.weightings.clip import FlatClip

SHAPES = [(120, 250), (7,), (), (9_000,), (10, 10, 10)]  # 40,008 elements


def signal(dtype=torch.float32, shapes=SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def flat(tensors) -> np.ndarray:
    return torch.cat([t.detach().double().flatten() for t in tensors]).numpy()


def scale_error(x: np.ndarray, scale: float) -> float:
    """Standard deviations between the sum of squares and that of so many N(0, scale^2)."""
    return float((np.sum((x / scale) ** 2) - len(x)) / math.sqrt(2 * len(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [20, 24])
def test_what_is_released_is_the_formula_in_whole_numbers(dtype, bits):
    mechanism = GridGaussian(0.8, bits=bits, seed=1)
    numbers = sum(math.prod(shape) for shape in SHAPES)
    gamma = mechanism.spacing(0.25, numbers)
    words = Keystream(mechanism.state_dict()["root"], "grid cpu")
    y = np.concatenate(
        [discrete_gaussian(words, min(CHUNK, numbers - i), bits) for i in range(0, numbers, CHUNK)]
    )
    before = flat(signal(dtype))
    released = mechanism.privatise(Clipped(signal(dtype), 0.25))
    assert isinstance(released, Noised)
    assert (released.sensitivity, released.noise_multiplier) == (0.25, 0.8)
    assert [t.shape for t in released.tensors] == [torch.Size(shape) for shape in SHAPES]
    assert {t.dtype for t in released.tensors} == {dtype}
    found = flat(released.tensors)
    whole = np.rint(found / gamma)
    assert np.array_equal(torch.from_numpy(whole * gamma).to(dtype).double().numpy(), found)
    assert dtype == torch.float32 or np.array_equal(whole, np.rint(before / gamma) + y)
    for i in range(0, numbers, 997):  # exact rounding, and the cast is the only one after it
        step = round(Fraction(before[i]) / Fraction(gamma)) + int(y[i])
        assert found[i] == torch.tensor(step * gamma, dtype=dtype).double().item()


@pytest.mark.parametrize(("sigma", "sensitivity"), [(1.0, 1.0), (0.7, 0.02), (30.0, 3.0)])
def test_the_scale_is_sigma_times_the_larger_sensitivity(sigma, sensitivity):
    mechanism = GridGaussian(sigma, seed=2)
    noise = flat(mechanism.privatise(Clipped(signal(), sensitivity)).tensors) - flat(signal())
    scale = 2**24 * mechanism.spacing(sensitivity, len(noise))
    assert scale == pytest.approx(1.001 * sigma * sensitivity, rel=4e-4)  # d = 40,008
    assert abs(scale_error(noise, scale)) < 5
    for wrong in (0.95 * scale, 1.05 * scale):
        assert abs(scale_error(noise, wrong)) > 10


@pytest.mark.parametrize("sigma", [1e-3, 0.8, 4.0])
@pytest.mark.parametrize("numbers", [1, 26_010, 1_860_000])
@pytest.mark.parametrize("slack", [0.0, 1e-3, 0.1])
def test_the_spacing_pays_for_its_own_rounding(sigma, numbers, slack):
    """s gamma = sigma (Delta (1 + slack) + gamma sqrt(d)), and two gradients Delta apart, in the
    worst case for rounding, are at most s / sigma whole steps apart."""
    mechanism, delta = GridGaussian(sigma, slack=slack), 0.03
    gamma = mechanism.spacing(delta, numbers)
    larger = delta * (1 + slack) + gamma * math.sqrt(numbers)
    assert 2**24 * gamma == pytest.approx(sigma * larger, rel=1e-12)
    assert larger < 1.01 * delta * (1 + slack)
    each = delta / math.sqrt(numbers)  # in a diagonal direction
    steps = np.rint((0.49999 * gamma + each) / gamma) - np.rint(-0.49999)
    assert steps * math.sqrt(numbers) <= 2**24 / sigma * (1 + 1e-9)


def test_without_the_rounding_term_the_worst_case_would_be_too_far():
    """The check above notices: few steps in many dimensions."""
    numbers, s, sigma, delta = 10**6, 2.0**20, 10.0, 1.0
    gamma = GridGaussian(sigma, bits=20, slack=0.0).spacing(delta, numbers)
    short = sigma * delta / s
    for spacing, fits in ((gamma, True), (short, False)):
        moved = (delta / math.sqrt(numbers) + spacing) / spacing  # up to one step in each dimension
        assert (moved * math.sqrt(numbers) <= s / sigma * (1 + 1e-9)) == fits


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GridGaussian(-1.0), "noise multiplier must be 0 or positive, found -1"),
        (lambda: GridGaussian(math.inf), "noise multiplier"),
        (lambda: GridGaussian(1.0, bits=19), r"bits must be in 20\.\.24, found 19"),
        (lambda: GridGaussian(1.0, bits=25), "found 25"),
        (lambda: GridGaussian(1.0, slack=-1e-9), r"slack must be in \[0, 1\], found -1e-09"),
        (lambda: GridGaussian(1.0, slack=math.nan), "found nan"),
        (lambda: GridGaussian(2.0).spacing(1.0, 10**10), r"10,000,000,000 numbers .* 1\.2%"),
        (lambda: GridGaussian(2.0, bits=20).spacing(1.0, 10**8), "bits=24, fewer trained"),
        (lambda: GridGaussian(1.0).spacing(math.inf, 5), "finite clipping bound, found inf"),
        (lambda: GridGaussian(1.0).spacing(0.0, 5), r"positive sensitivity, found 0\.0"),
        (lambda: noised([math.nan]), "not finite"),
        (lambda: noised([1.0, math.inf]), "not finite"),
        (lambda: noised([2.0**30]), r"1\.\d+e\+16 steps of the grid, at most 2\^52"),
    ],
)
def test_refusals_are_one_line(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def noised(values: list[float], sensitivity: float = 1.0) -> Tensor:
    return (
        GridGaussian(1.0, seed=0).privatise(Clipped([torch.tensor(values)], sensitivity)).tensors[0]
    )


def test_at_the_limits_it_still_works():
    assert noised([2.0**27]).item() == pytest.approx(2.0**27)
    assert GridGaussian(1.0).spacing(1.0, 10**10) > 0  # 0.6 %
    for empty in ([], [torch.zeros(0), torch.zeros(0, 3)]):
        assert GridGaussian(1.0).privatise(Clipped(empty, 1.0)).tensors == empty


def test_without_noise_nothing_is_rounded():
    (tensor,) = GridGaussian(0.0).privatise(Clipped([torch.tensor([0.1, -7.3])], math.inf)).tensors
    assert torch.equal(tensor, torch.tensor([0.1, -7.3]))


def test_it_keeps_the_contracts(properties):
    for sigma, bits in ((1.1, 24), (0.4, 20)):
        make = lambda sigma=sigma, bits=bits: GridGaussian(sigma, bits=bits, seed=3)  # noqa: E731
        properties.assert_mechanism(make)
        properties.assert_resumes(
            make, lambda m: m.privatise(Clipped([torch.ones(50), torch.ones(3, 4)], 0.5)).tensors
        )
    with pytest.raises(AssertionError, match="scale"):
        properties.assert_mechanism(lambda: GridGaussian(1.0, slack=0.06, seed=3))


def test_in_attach_and_in_a_chain():
    model = nn.Linear(100, 50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rows = PerSample(model, FlatClip(0.4), expected_batch=20.0)
    mechanism = chain(GridGaussian(1.3, seed=4))
    attach(optimizer, rows, mechanism)
    x = torch.randn(8, 100)
    for size in (8, 0):
        rows.backward(model(x[:size]).square().sum(1))
        optimizer.step()
        noise = flat([p.grad for p in rows.parameters if p.grad is not None])
        assert len(noise) == 5050
        assert abs(scale_error(noise, 1.3 * 0.4 / 20)) < 5 + 5 * (size > 0)  # plus the gradient
        optimizer.zero_grad()


# -- what docs/noise.md says is proven ----------------------------------------------------------


def pmf(s: float, far: int = 60) -> np.ndarray:
    k = np.arange(-far, far + 1)
    p = np.exp(-(k**2) / (2 * s * s))
    return p / p.sum()


def amplified(p: np.ndarray, shift: int, q: float, order: float) -> float:
    """E_Q[((1 - q) + q P / Q)^order] for Q = N_Z and P the same, shifted."""
    moved = np.concatenate([np.zeros(shift), p[:-shift]])  # what falls off is nothing
    keep = p > 0
    return float((p[keep] * (1 - q + q * moved[keep] / p[keep]) ** order).sum())


@pytest.mark.parametrize("s", [1.0, 2.0, 4.0])
def test_at_whole_orders_the_subsampled_renyi_divergence_is_the_continuous_ones(s):
    q, shift = 0.1, 2
    for order in (2, 3, 5):
        continuous = sum(
            math.comb(order, k)
            * (1 - q) ** (order - k)
            * q**k
            * math.exp(k * (k - 1) * shift**2 / (2 * s * s))
            for k in range(order + 1)
        )
        assert amplified(pmf(s), shift, q, order) == pytest.approx(continuous, rel=1e-11)


@pytest.mark.parametrize("s", [1.0, 2.0, 4.0, 8.0])
def test_the_distance_to_a_rounded_gaussian(s):
    """KL(N_Z || round(N)) <= 1 / (320 s^4): 2^-104 at s = 2^24."""
    far = 60
    k = np.arange(-far, far + 1)
    tail = np.array([math.erfc((abs(i) - 0.5) / (s * math.sqrt(2))) / 2 for i in k])
    beyond = np.array([math.erfc((abs(i) + 0.5) / (s * math.sqrt(2))) / 2 for i in k])
    p, rounded = pmf(s), tail - beyond
    keep = (p > 1e-30) & (rounded > 1e-30)
    divergence = float((p[keep] * np.log(p[keep] / rounded[keep])).sum())
    assert 0.3 / (320 * s**4) < divergence < 1 / (320 * s**4)
