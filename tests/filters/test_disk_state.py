"""DiSK's saved state, and what it refuses."""

from __future__ import annotations

import io
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from steelyard.filters.attach import attach
from steelyard.filters.disk import Disk
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

runs = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("disk_runs.py"))))
SETTINGS, every_setting = runs.SETTINGS, runs.every_setting
Training, after = runs.Training, runs.after
model, losses, weights, same = runs.model, runs.losses, runs.weights, runs.same


class FakeRows:
    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.points = parameters, None


# -- states ----------------------------------------------------------------------------------------


@every_setting
def test_a_run_resumes_bit_for_bit(properties, gain, gamma):
    properties.assert_resumes(lambda: Training(Disk(gain, gamma)), Training.step)


def test_a_state_may_be_loaded_before_the_filter_is_attached():
    first = after(3, Disk())
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    disk = Disk()
    disk.load_state_dict(state["parts"]["filters"][0])
    second = Training(disk)
    second.parts.mechanism.load_state_dict(state["parts"]["mechanism"])
    second.net.load_state_dict(state["net"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.steps = 3
    assert same(first.step(), second.step())


def test_a_foreign_state_is_refused_in_one_line_and_changes_nothing():
    training = after(2, Disk())
    before = training.disk.state_dict()
    other = after(2, Disk(), net=nn.Linear(3, 2)).disk.state_dict()
    for state, words in (
        ({}, "not a saved state of Disk: found"),
        (Disk(0.5).state_dict(), r"is Disk\(0.5, 1.0\), this one Disk\(0.7, "),
        (Disk(0.7, 0.5).state_dict(), r"is Disk\(0.7, 0.5\)"),
        (other, r"shapes \[\[2, 3\], \[2\]\].*2 in all.*load another"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            training.disk.load_state_dict(state)
        assert "\n" not in str(error.value)
    now = training.disk.state_dict()
    assert same(before["filtered"], now["filtered"])
    assert same(before["ahead"], now["ahead"])


def test_reset_starts_anew():
    training = after(3, Disk(0.5, 0.7))
    training.disk.reset()
    assert [weight for weight, _ in training.disk.evaluations()] == [1.0]
    spy = Gaussian(0.5)
    spy.load_state_dict(training.parts.mechanism.state_dict())
    plain = PerSample(training.net, FlatClip(0.5), expected_batch=4)
    plain.backward(losses(training.net, training.batch()))
    expected = spy.privatise(plain.take()).tensors
    plain.close()
    training.step()
    assert same([p.grad for p in training.net.parameters()], list(expected))  # type: ignore[misc]


# -- misuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.0, -0.1, 1.1, float("nan")])
def test_gains_out_of_range(gain):
    with pytest.raises(ValueError, match=r"gain must be in \(0, 1\], found"):
        Disk(gain)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("inf"), float("nan")])
def test_look_aheads_out_of_range(gamma):
    with pytest.raises(ValueError, match="look_ahead must be positive and finite, found"):
        Disk(0.5, gamma)


def test_a_look_ahead_close_to_the_whole_is_one_evaluation():
    assert Disk(0.7, 3 / 7 * (1 + 1e-10)).weight == Disk(0.7).weight == 1.0
    assert Disk(0.7, 3 / 7 * (1 + 1e-8)).weight != 1.0
    assert Disk(0.5, 0.7).weight == pytest.approx(1.4286, abs=1e-4)
    assert Disk(1.0).weight == Disk(1.0, 0.3).weight == 0.0


class Blind:
    """Rows that know nothing of points."""

    parameters: tuple[nn.Parameter, ...] = ()


def refused(words: str, disk: Disk, rows: Any) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=words) as error:
        disk.connect(optimizer, rows)
    assert "\n" not in str(error.value)


def test_rows_that_it_cannot_be_attached_to():
    training = after(1, Disk())
    refused("which Blind cannot: use PerSample", Disk(), Blind())
    refused("these rows look ahead: use one Disk", Disk(), training.rows)
    free = FakeRows([nn.Parameter(torch.zeros(2))])
    refused("this Disk is already attached", training.disk, free)
    half = FakeRows([nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))])
    refused("float32 or float64, found torch.bfloat16.*autocast", Disk(), half)
    assert half.points is None
    used = after(1, Disk())
    used.attached.detach()
    refused(r"remembers parameters of shapes \[\[4, 3\].*the rows have \[\[2\]\]", used.disk, free)
    used.disk.reset()
    used.disk.connect(training.optimizer, free)


def test_losses_must_be_a_function_that_can_be_called_elsewhere():
    training = after(0, Disk())
    with pytest.raises(ValueError, match=r"Disk .*rows\.backward\(lambda: ") as error:
        training.rows.backward(losses(training.net, training.batch()))
    assert "\n" not in str(error.value)


def test_parameters_that_changed_their_kind_are_refused_not_exchanged():
    training = after(2, Disk())
    training.net.double()
    with pytest.raises(ValueError, match=r"now \[4, 3\], torch.float64.*call reset\(\)"):
        training.disk.evaluations()
    training.disk.reset()
    assert len(training.disk.evaluations()) == 1


def test_detach_undoes_it_and_another_attach_goes_on():
    training = after(3, Disk())
    filtered = training.disk.state_dict()["filtered"]
    training.attached.detach()
    assert training.rows.points is None
    training.optimizer.zero_grad()
    losses(training.net, training.batch()).sum().backward()
    training.optimizer.step()  # as any other optimizer; nothing watches
    state = training.disk.state_dict()
    assert same(state["filtered"], filtered)
    assert state["ahead"] == []
    training.optimizer.zero_grad()
    attach(training.optimizer, training.rows, training.parts)
    assert training.rows.points is training.disk
    training.step()
    assert len(training.disk.state_dict()["ahead"]) == 4
