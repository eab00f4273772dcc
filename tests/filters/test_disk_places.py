"""DiSK between the steps: parameters come back bit for bit, and only real steps count."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from steelyard.filters.disk import Disk
from steelyard.types import Noised

runs = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("disk_runs.py"))))
SETTINGS, every_setting = runs.SETTINGS, runs.every_setting
Training, after = runs.Training, runs.after
model, losses, weights, same = runs.model, runs.losses, runs.weights, runs.same


# -- where the parameters are ----------------------------------------------------------------------


@every_setting
def test_the_parameters_are_ahead_inside_and_themselves_outside(gain, gamma):
    training = after(2, Disk(gain, gamma))
    before = weights(training.net)
    now = training.step()
    pointers = [p.data_ptr() for p in training.net.parameters()]
    found = []

    def look() -> Tensor:
        found.append(weights(training.net))
        return losses(training.net, training.batch())

    training.rows.backward(look)
    assert same(now, weights(training.net))
    assert pointers == [p.data_ptr() for p in training.net.parameters()]
    gamma = gamma or (1 - gain) / gain
    for ahead, x, old in zip(found[0], now, before, strict=True):
        torch.testing.assert_close(ahead, x + gamma * (x - old), rtol=1e-6, atol=1e-7)
    assert len(found) == len(training.disk.evaluations())
    assert not same(found[0], now)
    assert len(found) == 1 or same(found[1], now)


@every_setting
def test_an_error_in_the_losses_leaves_the_parameters_alone(gain, gamma):
    training = after(3, Disk(gain, gamma))
    now, count = weights(training.net), len(training.disk.evaluations())

    def failing(at: int) -> Callable[[], Tensor]:
        calls = iter(range(count))

        def compute() -> Tensor:
            if next(calls) == at:
                raise KeyboardInterrupt
            return losses(training.net, training.batch())

        return compute

    for at in range(count):
        with pytest.raises(KeyboardInterrupt):
            training.rows.backward(failing(at))
        assert same(now, weights(training.net))
    twin = training.twin(Disk(gain, gamma))
    assert same(twin.step(), training.step())  # the next step is as if nothing had been


@every_setting
def test_a_learning_rate_of_zero_moves_nothing_not_even_ahead(gain, gamma):
    training = after(2, Disk(gain, gamma), lr=0.0)
    before = weights(training.net)
    assert same(before, training.step())
    for _, place in training.disk.evaluations():
        with place:
            assert same(before, weights(training.net))


def test_a_graph_of_the_look_ahead_point_is_refused_outside():
    training = after(2, Disk())
    kept = []

    def keep() -> Tensor:
        kept.append(losses(training.net, training.batch()))
        return losses(training.net, training.batch())

    stale = losses(training.net, training.batch())
    training.rows.backward(keep)
    for graph in (stale, *kept):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            graph.sum().backward()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def test_tied_weights_look_ahead_once():
    training = after(1, Disk(), net=Tied())
    (old,) = weights(training.net)
    (now,) = training.step()
    ((_, place),) = training.disk.evaluations()
    with place:
        (ahead,) = weights(training.net)
    torch.testing.assert_close(ahead, now + 3 / 7 * (now - old), rtol=1e-6, atol=1e-7)


class Sharded(Tensor):
    """A subclass whose values, not its storage, are what counts; as DTensor."""


class FakeRows:
    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.points = parameters, None


def test_subclasses_of_tensor_exchange_values_in_place():
    p = nn.Parameter(torch.tensor([1.0, 2.0, 0.3]).as_subclass(Sharded))
    optimizer = torch.optim.SGD([p], lr=1.0)
    disk = Disk(0.5)
    disk.connect(optimizer, FakeRows([p]))
    p.grad = disk.filter(Noised([torch.tensor([0.1, 0.2, -0.1])], 1.0, 1.0)).tensors[0]
    optimizer.step()
    now, pointer = p.detach().clone(), p.data_ptr()
    for _ in range(3):
        with disk.evaluations()[0][1]:
            assert torch.allclose(p, torch.tensor([0.8, 1.6, 0.5]))
            assert p.data_ptr() == pointer
        assert torch.equal(p, now)


# -- which steps count -----------------------------------------------------------------------------


def test_a_checkpointers_fake_step_is_not_a_step():
    one = after(0, Disk(), kind=torch.optim.SGD)
    other = one.twin(Disk(), kind=torch.optim.SGD)
    steps = []
    other.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    for _ in range(4):
        other.optimizer.zero_grad()
        get_optimizer_state_dict(other.net, other.optimizer)  # steps at rate 0
        assert same(one.step(), other.step())
    assert len(steps) == 8


def test_a_step_that_failed_leaves_no_displacement():
    training = after(2, Disk())
    training.optimizer.register_step_pre_hook(stop := Stop())
    with pytest.raises(InterruptedError):
        training.step()
    assert stop.calls == 1
    with torch.no_grad():  # and it failed half-way
        next(training.net.parameters()).add_(1.0)
    now = weights(training.net)
    ((weight, place),) = training.disk.evaluations()
    with place:
        assert weight == 1
        assert same(now, weights(training.net))
    assert training.disk.state_dict()["ahead"] == []
    training.step()
    assert training.disk.state_dict()["ahead"] != []


class Stop:
    calls = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1
        if self.calls == 1:
            raise InterruptedError


def test_released_tensors_are_nobodys_memory():
    one = after(0, Disk())
    other = one.twin(Disk())
    for _ in range(3):
        assert same(one.step(), other.step())
        for p in other.net.parameters():
            assert p.grad is not None
            p.grad.zero_()
