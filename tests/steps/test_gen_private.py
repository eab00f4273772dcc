"""GeN beside private gradients: refused, on public probes, or paid for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steelyard import FlatClip, Gaussian, Ledger, PerSample, attach, plan_privacy
from steelyard.runs.ledger import BudgetExceeded
from steelyard.steps.gen import GeN
from steelyard.steps.private_probe import PrivateProbe
from steelyard.steps.quadratic import Policy

B, N = 16, 400


def training(sigma=1.0, epsilon=50.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    rows = PerSample(net, FlatClip(1.0), expected_batch=B)
    plan = plan_privacy(n=N, batch=B, steps=40, epsilon=epsilon)
    ledger = Ledger(plan)
    attached = attach(optimizer, rows, Gaussian(sigma, seed=0), ledger=ledger)
    x = torch.randn(N, 4)

    def losses(n=B):
        batch = x[torch.randperm(N)[:n]]
        return lambda: net(batch).square().sum(1)

    return net, optimizer, rows, ledger, attached, losses


def test_nothing_said_of_the_probes_is_refused():
    net, optimizer, _, _, attached, losses = training()
    for words in ('probes_are="public"', r"private=PrivateProbe\("):
        with pytest.raises(ValueError, match=words):
            GeN(optimizer)
    attached.detach()
    rate = GeN(optimizer)
    rows = PerSample(net, FlatClip(1.0), expected_batch=B)
    attach(optimizer, rows, Gaussian(1.0))  # private only now
    rows.backward(losses()())
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="losses of private data would set its learning rate"):
        rate.step(losses())
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_public_probes_cost_nothing_and_one_step_is_one_release():
    net, optimizer, rows, ledger, _, losses = training()
    rate = GeN(optimizer, model=net, probes_are="public", every=2, bootstrap=3)
    for _ in range(8):
        rows.backward(losses()())
        rate.step(losses())
        optimizer.zero_grad()
    assert ledger.steps == 8
    assert len(rate.log) == 3 + 3


def test_private_probes_are_charged_beside_the_steps():
    net, optimizer, rows, ledger, _, losses = training(sigma=1.0)
    private = PrivateProbe(
        Gaussian(3.0, seed=1), bound=4.0, spread=0.5, expected_batch=B,
        sampling_probability=B / N, ledger=ledger,
    )  # fmt: skip
    rate = GeN(
        optimizer, model=net, private=private, every=4, bootstrap=0,
        policy=Policy(least_r2=-1e9, least_snr=0),
    )  # fmt: skip
    for _ in range(8):
        rows.backward(losses()())
        rate.step(losses(0) if ledger.steps > 5 else losses())  # an empty batch, too
        optimizer.zero_grad()
    q = B / N
    history = [(e["noise_multiplier"], e["steps"]) for e in ledger.report()["history"]]
    assert sum(count for sigma, count in history if sigma == 1.0) == 8
    assert sum(count for sigma, count in history if sigma == 3.0) == 2
    assert {e["sampling_probability"] for e in ledger.report()["history"]} == {q}
    assert len(rate.log) == 2
    other = GeN(torch.optim.SGD(net.parameters(), 0.1), private=private)
    other.load_state_dict(rate.state_dict())
    assert other.rates == rate.rates
    with pytest.raises(ValueError, match="no private probes"):
        other.load_state_dict(rate.state_dict() | {"private": None})


def test_a_rate_is_found_from_private_probes_of_a_large_batch():
    """B = 4000, sigma 2, losses that differ by 0.5 at most: the noise is far below the parabola."""
    torch.manual_seed(0)
    p, x = nn.Parameter(torch.ones(3)), 0.1 * torch.randn(4000, 3)
    optimizer = torch.optim.SGD([p], 0.3)
    private = PrivateProbe(
        Gaussian(2.0, seed=1), bound=10.0, spread=10.0, expected_batch=4000,
        sampling_probability=1.0, ledger=None,
    )  # fmt: skip
    rate = GeN(optimizer, private=private, every=1, bootstrap=0, smoothing=0.0, clip=(0.1, 10))
    p.grad = p.detach().clone()
    decision = rate.step(lambda: 0.5 * (p - x).square().sum(1))
    assert decision.accepted
    assert rate.rates[0] == pytest.approx(1, abs=0.05)  # Newton's


def test_no_budget_for_a_probe_stops_before_the_step():
    net, optimizer, rows, ledger, _, losses = training(sigma=5.0, epsilon=0.5)
    private = PrivateProbe(
        Gaussian(0.1), bound=1.0, expected_batch=B, sampling_probability=B / N, ledger=ledger
    )
    rate = GeN(optimizer, model=net, private=private)
    rows.backward(losses()())
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(BudgetExceeded):
        rate.step(losses())
    assert ledger.steps == 0
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_public_and_private_at_once_is_refused():
    net, optimizer, *_ = training()
    private = PrivateProbe(
        Gaussian(1.0), bound=1.0, expected_batch=B, sampling_probability=0.1, ledger=None
    )
    with pytest.raises(ValueError, match="not beside private="):
        GeN(optimizer, model=net, probes_are="public", private=private)
