"""What a step costs, when it is paid, and a checkpointer's fake step, which costs nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped, Noised
from steelyard.weightings.clip import FlatClip

B = 4


class Ledger:
    """Counts charges, keeps what the parameters were then, and refuses after `budget` of them."""

    def __init__(self, model: nn.Module, budget: int = 1000):
        self.model, self.budget = model, budget
        self.charges: list[tuple[float, float]] = []
        self.log: list[str] = []

    def charge(self, *, noise_multiplier: float, sampling_probability: float) -> None:
        if len(self.charges) >= self.budget:
            raise BudgetError("no budget left")
        assert all(p.grad is None or not p.grad.any() for p in self.model.parameters())
        self.log.append("charge")
        self.charges.append((noise_multiplier, sampling_probability))


class BudgetError(RuntimeError):
    pass


class Logged(Gaussian):
    def __init__(self, sigma: float, log: list[str]):
        super().__init__(sigma, seed=0)
        self.log = log

    def privatise(self, gradient: Clipped) -> Noised:
        self.log.append("release")
        return super().privatise(gradient)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))


def losses(net: nn.Module, n: int = B) -> Tensor:  # [n]
    return net(torch.randn(n, 3)).square().sum(1)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_step_is_paid_once_and_before_its_release():
    net = model()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ledger = Ledger(net)
    mechanism = chain(Logged(1.5, ledger.log))
    attach(optimizer, rows, mechanism, ledger=ledger, sampling_probability=0.25)
    for sizes in ([4], [2, 1, 1], [0], [0, 3]):
        optimizer.zero_grad()
        for n in sizes:
            rows.backward(losses(net, n))
        optimizer.step()
    assert ledger.charges == [(1.5, 0.25)] * 4
    assert ledger.log == ["charge", "release"] * 4
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert len(ledger.charges) == 4


def test_a_refused_payment_leaves_parameters_and_state_alone():
    net = model()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    ledger = Ledger(net, budget=1)
    attach(optimizer, rows, Logged(1.0, ledger.log), ledger=ledger, sampling_probability=0.25)
    rows.backward(losses(net))
    optimizer.step()
    optimizer.zero_grad()
    before, state = weights(net), copy.deepcopy(optimizer.state_dict()["state"])
    for _ in range(2):
        rows.backward(losses(net))
        with pytest.raises(BudgetError):
            optimizer.step()
        assert same(before, weights(net))
        assert all(p.grad is None for p in net.parameters())
        assert not rows.armed
    assert ledger.log == ["charge", "release"]
    for key, values in state.items():
        assert torch.equal(optimizer.state_dict()["state"][key]["exp_avg"], values["exp_avg"])


def test_a_row_that_is_not_finite_is_neither_paid_nor_released():
    net = model()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ledger = Ledger(net)
    attach(optimizer, rows, Gaussian(1.0), ledger=ledger, sampling_probability=0.25)
    before = weights(net)
    rows.backward(losses(net) * torch.tensor([1.0, torch.nan, 1.0, 1.0]))
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert same(before, weights(net))
    assert ledger.charges == []
    rows.backward(losses(net))
    optimizer.step()
    assert len(ledger.charges) == 1


class Planned(Ledger):
    class plan:  # noqa: N801  # what a ledger of a run carries
        sampling_probability = 0.125
        expected_batch = float(B)


def test_the_plan_of_the_ledger_says_how_samples_were_drawn():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    ledger = Planned(net)
    attached = attach(optimizer, rows, Gaussian(1.0), ledger=ledger)
    rows.backward(losses(net))
    optimizer.step()
    assert ledger.charges == [(1.0, 0.125)]
    attached.detach()
    with pytest.raises(ValueError, match="sampling_probability"):
        attach(optimizer, rows, Gaussian(1.0), ledger=Ledger(net))
    other = PerSample(net, FlatClip(0.5), expected_batch=B + 1)
    with pytest.raises(ValueError, match=r"divide by 5.*expects batches of 4"):
        attach(optimizer, other, Gaussian(1.0), ledger=ledger)


# -- torch.distributed.checkpoint's fake step ---------------------------------------------------


def adamw():
    net = model()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    ledger = Ledger(net)
    attach(optimizer, rows, Gaussian(1.0), ledger=ledger, sampling_probability=0.25)
    return net, rows, optimizer, ledger


def test_distributed_checkpoint_initialises_the_state_without_a_release():
    net, rows, optimizer, ledger = adamw()
    before = weights(net)
    found = get_optimizer_state_dict(net, optimizer)
    assert found["state"]
    assert same(before, weights(net))
    assert ledger.charges == []
    rows.backward(losses(net))
    optimizer.step()
    assert len(ledger.charges) == 1
    get_optimizer_state_dict(net, optimizer)  # and in mid-training it takes no step at all
    assert len(ledger.charges) == 1


def test_distributed_checkpoint_between_backward_and_step_loses_nothing():
    net, rows, optimizer, ledger = adamw()
    rows.backward(losses(net))
    get_optimizer_state_dict(net, optimizer)
    before = weights(net)
    optimizer.step()
    assert not same(before, weights(net))
    assert len(ledger.charges) == 1
