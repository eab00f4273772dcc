"""DiSK between the steps: parameters come back bit for bit, and only real steps count."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.disk import Disk
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.types import Noised
from steelyard.weightings.clip import FlatClip

SETTINGS = {"w=1": (0.7, None), "w<1": (0.7, 0.5), "w>1": (0.5, 0.7)}
every_setting = pytest.mark.parametrize(("gain", "gamma"), SETTINGS.values(), ids=SETTINGS)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def losses(net: nn.Module, x: Tensor) -> Tensor:  # [B]
    return net(x).square().sum(1)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Training:
    """All that a checkpoint of a private run has to hold. `step()` takes one step."""

    def __init__(self, disk: Disk, *, lr=0.1, net: nn.Module | None = None, kind=torch.optim.AdamW):
        self.net = model() if net is None else net
        self.disk, self.steps = disk, 0
        self.rows = PerSample(self.net, FlatClip(0.5), expected_batch=4)
        self.optimizer = kind(self.net.parameters(), lr=lr)
        self.parts = chain(Gaussian(0.5, seed=0), disk)
        self.attached = attach(self.optimizer, self.rows, self.parts)

    def batch(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.steps)
        return torch.randn(4, 3, generator=generator)

    def step(self) -> list[Tensor]:
        x = self.batch()
        self.steps += 1
        self.rows.backward(lambda: losses(self.net, x))
        self.optimizer.step()
        return weights(self.net)

    def state_dict(self) -> dict[str, Any]:
        parts = {"net": self.net, "optimizer": self.optimizer, "parts": self.parts}
        return {"steps": self.steps} | {name: p.state_dict() for name, p in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.parts.load_state_dict(state["parts"])
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])

    def twin(self, disk: Disk, **options: Any) -> Training:
        other = Training(disk, **options)
        other.load_state_dict(copy.deepcopy(self.state_dict()))
        return other


def after(steps: int, disk: Disk, **options: Any) -> Training:
    training = Training(disk, **options)
    for _ in range(steps):
        training.step()
    return training


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
