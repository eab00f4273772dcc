"""The noise, tested both ways: the right scale passes, five per cent more or less fails.

The statistic for a scale s is sum (x / s)^2 over n independent draws, chi-square with n degrees of
freedom: mean n, variance 2n. With n = 40,000 and a threshold of 5 standard deviations a right scale
fails with probability 6e-7, and a scale 5 % off lies 14 standard deviations away, so it passes with
probability below 1e-15. Seeds are fixed where nothing is said about seeds, so nothing flakes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.gaussian import CHUNK, Gaussian
from steelyard.filters.keystream import Keystream
from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped, Noised
from steelyard.weightings.clip import FlatClip

THRESHOLD = 5.0
SIZES = [(120, 250), (7,), (1,), (9_000,), (10, 10, 10)]  # 40,008 elements


def zeros(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.zeros(shape) for shape in shapes]


def drawn(mechanism: Gaussian, shapes=SIZES, sensitivity: float = 1.0) -> list[Tensor]:
    return list(mechanism.privatise(Clipped(zeros(*shapes), sensitivity)).tensors)


def flat(tensors) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])


def scale_error(x: Tensor, scale: float) -> float:
    """Standard deviations between the draws' sum of squares and that of N(0, scale^2)."""
    return float(((x / scale).square().sum() - len(x)) / math.sqrt(2 * len(x)))


def mean_error(x: Tensor, scale: float) -> float:
    return float(x.mean() / scale * math.sqrt(len(x)))


def correlation(x: Tensor, y: Tensor) -> float:
    """In standard deviations of independent draws."""
    return float((x * y).sum() / (x.norm() * y.norm()) * math.sqrt(len(x)))


def assert_noise(x: Tensor, scale: float) -> None:
    assert abs(scale_error(x, scale)) < THRESHOLD
    assert abs(mean_error(x, scale)) < THRESHOLD
    for wrong in (0.95 * scale, 1.05 * scale):
        assert abs(scale_error(x, wrong)) > 2 * THRESHOLD


@pytest.mark.parametrize(("sigma", "sensitivity"), [(1.0, 1.0), (0.7, 0.02), (30.0, 3.0)])
def test_scale_is_sigma_times_the_sensitivity(sigma, sensitivity):
    mechanism = Gaussian(sigma, seed=0)
    signal = [torch.full(shape, 5.0) for shape in SIZES]
    noised = mechanism.privatise(Clipped(signal, sensitivity))
    assert isinstance(noised, Noised)
    assert (noised.sensitivity, noised.noise_multiplier) == (sensitivity, sigma)
    assert [t.shape for t in noised.tensors] == list(SIZES)
    assert_noise(flat(noised.tensors) - 5.0, sigma * sensitivity)


def test_it_is_normal_and_a_uniform_of_the_same_variance_is_not():
    x = flat(drawn(Gaussian(1.0, seed=1))).numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-6
    uniform = (torch.rand(len(x), dtype=torch.float64) - 0.5) * math.sqrt(12)
    assert stats.kstest(uniform.numpy(), "norm").pvalue < 1e-6


class Part(nn.Module):
    """40,400 parameters, of which the forward pass reaches less than half."""

    def __init__(self):
        super().__init__()
        self.used, self.idle, self.frozen = (
            nn.Linear(100, 200),
            nn.Linear(200, 100),
            nn.Linear(2, 2),
        )
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("batches", [[8], [2, 2, 2, 2], [0], [0, 0], [3, 0, 5]], ids=str)
def test_a_step_adds_the_noise_once_to_every_trainable_tensor(batches):
    """Scale sigma R / B whatever the number of micro-batches, none of them included."""
    torch.manual_seed(0)
    model, sigma, bound, expected_batch = Part(), 1.3, 0.4, 20.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    released = []
    for multiplier in (sigma, 0.0):
        rows = PerSample(model, FlatClip(bound), expected_batch=expected_batch)
        attached = attach(optimizer, rows, Gaussian(multiplier, seed=2))
        torch.manual_seed(1)
        for size in batches:
            rows.backward(model(torch.randn(size, 100)).square().sum(1))
        optimizer.step()
        released.append([p.grad.clone() for p in rows.parameters if p.grad is not None])
        optimizer.zero_grad()
        attached.detach()
        rows.close()
    noise = [a - b for a, b in zip(*released, strict=True)]
    assert len(noise) == 4  # weight and bias of `used` and of `idle`
    assert_noise(flat(noise), sigma * bound / expected_batch)
    for tensor in noise:  # and on each by itself, with fewer draws
        assert abs(scale_error(flat([tensor]), sigma * bound / expected_batch)) < THRESHOLD
    assert model.frozen.weight.grad is None


def test_tensors_chunks_and_steps_are_independent():
    """All pairs among five chunks of one tensor, of its neighbours and of the next step."""
    shapes = [(5 * CHUNK + 17,), (CHUNK,), (3, CHUNK // 3)]
    mechanism = Gaussian(1.0, seed=3)
    pieces = [
        piece
        for _ in range(2)
        for tensor in drawn(mechanism, shapes)
        for piece in flat([tensor]).split(CHUNK)
        if len(piece) > CHUNK // 2
    ]
    shortest = min(len(piece) for piece in pieces)
    pieces = [piece[:shortest] for piece in pieces]
    assert len(pieces) == 14
    found = [abs(correlation(pieces[i], pieces[j])) for i in range(len(pieces)) for j in range(i)]
    assert max(found) < THRESHOLD
    half = 0.5 * pieces[0] + pieces[1]  # a correlation of 0.45 would be noticed
    assert abs(correlation(half, pieces[0])) > 2 * THRESHOLD
    for lag in (1, 2, 7):  # within a stream
        assert abs(correlation(pieces[0][lag:], pieces[0][:-lag])) < THRESHOLD


def test_steps_never_repeat():
    mechanism = Gaussian(1.0, seed=4)
    seen = {float(t) for _ in range(200) for t in drawn(mechanism, [(1,), (1,)])}
    assert len(seen) == 400


def test_the_number_of_threads_changes_nothing():
    shapes = [(2 * CHUNK + 5,), (11,), (2, CHUNK), (1003,)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            mechanism = Gaussian(0.9, seed=5)
            found.append([drawn(mechanism, shapes) for _ in range(2)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for step, same in zip(found[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(step, same, strict=True))


def test_tails_are_as_long_as_they_should_be():
    """Two million numbers: how many lie beyond 1 .. 5 standard deviations, on each side."""
    z = flat(drawn(Gaussian(1.0, seed=6), [(2_000_000,)]))
    for sign in (-1, 1):
        for k in (1, 2, 3, 4, 4.5, 5):
            expected = len(z) * stats.norm.sf(k)
            count = int((sign * z > k).sum())
            assert stats.poisson.sf(count - 1, expected) > 1e-6, (sign, k, count, expected)
            assert stats.poisson.cdf(count, expected) > 1e-6, (sign, k, count, expected)


@pytest.mark.parametrize("shapes", [[(1,)] * 300, [(300,)], [(CHUNK + 3,), (CHUNK - 1,)]])
def test_no_block_of_the_keystream_is_used_twice(shapes, monkeypatch):
    used: list[tuple[int, int]] = []
    fill = Keystream.fill

    def spy(stream: Keystream, out: np.ndarray[Any, Any]) -> None:
        before = stream.position
        fill(stream, out)
        used.append((before, stream.position))

    monkeypatch.setattr(Keystream, "fill", spy)
    mechanism = Gaussian(1.0, seed=8)
    for _ in range(3):
        drawn(mechanism, shapes)
    assert used[0][0] == 0
    assert all(first[1] == second[0] for first, second in itertools.pairwise(used))
    numbers = 3 * sum(math.prod(shape) for shape in shapes)
    assert numbers / 4 <= used[-1][1] <= numbers / 4 + 2 * len(used)  # four numbers from a block
    assert len(used) == 3 * math.ceil(numbers / 3 / CHUNK)  # many small tensors are one draw


def test_scratch_memory_is_small():
    mechanism = Gaussian(1.0, seed=0)
    drawn(mechanism, [(5 * CHUNK,)])
    arrays = [a for s in mechanism._scratch.values() for a in vars(s).values()]
    assert sum(a.nbytes for a in arrays if isinstance(a, np.ndarray)) <= 2**20
    little = Gaussian(1.0, seed=0)
    drawn(little, [(100,)])
    assert all(scratch.size == 100 for scratch in little._scratch.values())
    assert len(drawn(little, [(3000,)])[0]) == 3000  # grows


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_a_bad_noise_multiplier_is_refused(bad):
    with pytest.raises(ValueError, match=f"noise multiplier.*found {bad}"):
        Gaussian(bad)


def test_no_noise_without_a_finite_bound():
    with pytest.raises(ValueError, match="finite clipping bound, found inf"):
        drawn(Gaussian(1.0), sensitivity=math.inf)
    (tensor,) = drawn(Gaussian(0.0), [(3,)], sensitivity=math.inf)
    assert not tensor.any()


def test_zero_noise_is_exactly_none_and_empty_tensors_pass():
    assert not flat(drawn(Gaussian(0.0))).any()
    found = drawn(Gaussian(1.0, seed=0), [(0,), (3,), (0, 2)])
    assert [t.numel() for t in found] == [0, 3, 0]
    assert drawn(Gaussian(1.0), []) == []


def test_float64_gradients_get_float64_noise():
    (tensor,) = (
        Gaussian(1.0, seed=0).privatise(Clipped([torch.zeros(40_000).double()], 1.0)).tensors
    )
    assert tensor.dtype == torch.float64
    assert_noise(tensor, 1.0)
    assert not torch.equal(tensor, tensor.float().double())


def test_gradients_of_both_types_at_once():
    mechanism = Gaussian(1.0, seed=0)
    mixed = [torch.zeros(20_000, dtype=d) for d in (torch.float64, torch.float32) * 2]
    noise = [t.double() for t in mechanism.privatise(Clipped(mixed, 0.5)).tensors]
    assert_noise(torch.cat(noise), 0.5)
    for i, x in enumerate(noise):
        assert all(abs(correlation(x, y)) < THRESHOLD for y in noise[:i])
