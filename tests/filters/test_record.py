"""The recorder changes nothing, notes the same places everywhere, and goes on after a resume."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.doppler import Doppler
from steelyard.filters.gaussian import Gaussian
from steelyard.filters.record import Recorder
from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped, Noised
from steelyard.weightings.clip import FlatClip

SHAPES = [(30, 20), (7,), (), (5, 0), (4, 3, 2)]
SIZE = 632


def release(step: int, sensitivity: float = 0.5) -> Noised:
    generator = torch.Generator().manual_seed(step)
    return Noised([torch.randn(s, generator=generator) for s in SHAPES], sensitivity, 1.2)


def flat(gradient: Noised) -> np.ndarray:
    return torch.cat([t.flatten() for t in gradient.tensors]).numpy()


def test_notes_different_coordinates_of_every_step_and_changes_nothing():
    one = Recorder(64, seed=3)
    for step in range(5):
        gradient = release(step)
        assert one.filter(gradient) is gradient
        assert np.array_equal(flat(gradient), flat(release(step)))
        for tensor in gradient.tensors:
            tensor.zero_()  # filters behind it work in place
    assert one.values.shape == (5, 64)
    assert one.values.dtype == np.float32
    whole = np.stack([flat(release(step)) for step in range(5)])  # [5, SIZE]
    columns = {tuple(column): at for at, column in enumerate(whole.T)}
    places = [columns[tuple(column)] for column in one.values.T]
    assert len(set(places)) == 64
    assert min(places) < 100  # spread over everything
    assert max(places) > 500
    assert np.allclose(one.noise_std, 0.6)


def test_a_small_model_is_noted_whole():
    one = Recorder(10_000)
    assert one.values.shape == (0, 10_000)
    for step in range(2):
        one.filter(release(step))
    assert np.array_equal(one.values, np.stack([flat(release(step)) for step in range(2)]))


def test_equal_seeds_choose_equal_places_and_others_do_not():
    noted = []
    for seed in (0, 0, 1):
        one = Recorder(32, seed=seed)
        one.filter(release(0))
        noted.append(one.values)
    assert np.array_equal(noted[0], noted[1])
    assert not np.array_equal(noted[0], noted[2])


def test_the_noise_that_was_added_step_by_step():
    one = Recorder(SIZE)
    mechanism = chain(Gaussian(2.0, seed=1), one)
    for step in range(40):
        zeros = [torch.zeros(s) for s in SHAPES]
        mechanism.privatise(Clipped(zeros, 0.1 * (step + 1)))
    assert np.allclose(one.noise_std, 0.2 * np.arange(1, 41))
    assert abs((one.values / one.noise_std[:, None]).std() - 1) < 5 / np.sqrt(2 * 40 * SIZE)


@pytest.mark.parametrize("done", [0, 1, 4])
def test_resumes(done):
    one, other = Recorder(16, seed=5), Recorder(16, seed=5)
    other.filter(release(99))  # moved on: must not matter
    for step in range(done):
        one.filter(release(step))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(done, 6):
        one.filter(release(step))
        other.filter(release(step))
    assert one.values.shape == (6, 16)
    assert np.array_equal(one.values, other.values)
    assert np.array_equal(one.noise_std, other.noise_std)


def test_a_state_brings_its_own_model():
    one, other = Recorder(4), Recorder(4)
    one.filter(release(0))
    other.filter(Noised([torch.zeros(9)], 1.0, 1.0))
    other.load_state_dict(one.state_dict())
    for recorder in (one, other):
        recorder.filter(release(1))
    assert np.array_equal(one.values, other.values)


def test_half_precision():
    one = Recorder(3)
    one.filter(Noised([torch.ones(3, dtype=torch.bfloat16)], 1.0, 1.0))
    assert one.values.tolist() == [[1.0, 1.0, 1.0]]


def test_refusals():
    with pytest.raises(ValueError, match="one coordinate or more, found 0"):
        Recorder(0)
    one = Recorder(4)
    one.filter(release(0))
    with pytest.raises(ValueError, match="seen gradients of 632 numbers, and got 2"):
        one.filter(Noised([torch.ones(2)], 1.0, 1.0))
    assert one.values.shape == (1, 4)
    for other, words in [
        (Recorder(5), "coordinates 5, this one has 4"),
        (Recorder(4, seed=1), "seed 1, this one has 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            one.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="not a saved state of Recorder"):
        one.load_state_dict({"kind": "recorder"})


def test_before_and_behind_a_filter_in_a_private_step():
    net = torch.nn.Linear(3, 2)
    rows = PerSample(net, FlatClip(1.0), expected_batch=4)
    before, after, low_pass = Recorder(5), Recorder(5), Doppler.first_order(0.8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer, rows, chain(Gaussian(1.0, seed=0), before, low_pass, after))
    for _ in range(6):
        rows.backward(net(torch.randn(4, 3)).square().sum(1))
        optimizer.step()
        optimizer.zero_grad()
    twin = Doppler.first_order(0.8)
    expected = [
        twin.filter(Noised([torch.tensor(row)], 1.0, 1.0)).tensors[0].clone()
        for row in before.values
    ]
    assert np.allclose(after.values, torch.stack(expected).numpy(), atol=1e-6)
    assert np.array_equal(before.values[0], after.values[0])
    assert not np.allclose(before.values[-1], after.values[-1])
