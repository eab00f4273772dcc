"""A low-pass filter inside private steps: the clock, the empty batch, the ledger, AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steelyard import Ledger, plan_privacy
from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.doppler import Doppler
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.types import Noised
from steelyard.weightings.clip import FlatClip

B = 32


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def train(filters: list[Doppler], steps: int, *, pieces: int = 1, optimizer=torch.optim.SGD):
    net = network()
    rows = PerSample(net, FlatClip(1.0), expected_batch=B)
    best = optimizer(net.parameters(), lr=0.05)
    plan = plan_privacy(n=20 * B, batch=B, steps=steps, epsilon=4, accountant="rdp")
    ledger = Ledger(plan)
    attach(best, rows, chain(Gaussian(plan.noise_multiplier, seed=4), *filters), ledger=ledger)
    data = torch.Generator().manual_seed(2)
    fixed = torch.randn(200, 4, generator=data)
    for step in range(steps):
        x = torch.randn(0 if step == 5 else B, 4, generator=data)
        y = x.sum(1, keepdim=True).tanh()
        for i in range(pieces):
            rows.backward((net(x[i::pieces]) - y[i::pieces]).square().sum(1))
        best.step()
        best.zero_grad()
    with torch.no_grad():
        loss = float((net(fixed) - fixed.sum(1, keepdim=True).tanh()).square().mean())
    return net, ledger, loss


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_no_filter_is_dp_sgd_bit_for_bit():
    plain, _, _ = train([], 12)
    assert same(plain, train([Doppler.first_order(0)], 12)[0])
    assert not same(plain, train([Doppler.first_order(0.5)], 12)[0])


def test_one_tick_per_noised_step_also_when_the_batch_is_empty():
    clock = {}
    for pieces in (1, 3):
        one = Doppler.first_order(0.9)
        train([one], 9, pieces=pieces)
        clock[pieces] = one.state_dict()["corr"]
    counted = Doppler.first_order(0.9)
    for _ in range(9):
        counted.filter(Noised([torch.ones(2)], 1.0, 1.0))
    assert clock[1] == clock[3] == counted.state_dict()["corr"]


def average(stream: list[float], phi: float = 0.9) -> list[float]:
    """The bias-corrected exponential average, each step from the whole stream."""
    out = []
    for t in range(len(stream)):
        weights = [(1 - phi) * phi ** (t - s) for s in range(t + 1)]
        out.append(sum(w * stream[s] for s, w in enumerate(weights)) / sum(weights))
    return out


def test_a_parameter_without_gradient_stays_in_step():
    net = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(2, 1, bias=False)})
    rows = PerSample(net, FlatClip(10.0), expected_batch=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    attach(optimizer, rows, chain(Gaussian(0.0), Doppler.first_order(0.9)))
    seen = {"a": [], "b": []}
    fed = {"a": [], "b": []}
    for step in range(8):
        x = torch.randn(1, 2)
        used = "ab" if step % 3 == 0 else "a"  # b rests in two steps of three
        rows.backward(sum(net[n](x)[:, 0] for n in used))  # type: ignore[arg-type]
        for n in "ab":
            fed[n].append(float(x[0, 0]) if n in used else 0.0)
        optimizer.param_groups[0]["lr"] = 1e-9
        optimizer.step()
        for n in "ab":
            seen[n].append(float(net[n].weight.grad[0, 0]))  # type: ignore[index, union-attr]
        optimizer.zero_grad()
    for n in "ab":
        assert seen[n] == pytest.approx(average(fed[n]), abs=1e-6)


def test_trains_with_adamw_and_leaves_epsilon_alone():
    filters = [Doppler.first_order(0.5), Doppler.design(0.2)]
    _, ledger, loss = train(filters, 120, optimizer=torch.optim.AdamW)
    _, plain, _ = train([], 120)
    assert ledger.epsilon() == plain.epsilon()
    assert ledger.steps == 120
    assert loss < 0.6 * train([], 1)[2]
