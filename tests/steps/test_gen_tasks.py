"""NGDiff's automatic rate: Tasks gives the gradient, GeN the rate, from the retain loss alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard.rows.tasks import Tasks
from steelyard.steps.gen import GeN
from steelyard.steps.stop import Stop
from steelyard.weightings.ngdiff import NGDiff

D = 12


class Two:
    """R and F quadratic in float64; F = -CE would have no minimum, so F's Hessian is indefinite."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        H, K = torch.randn(2, D, D, dtype=torch.float64, generator=g)
        self.H = H @ H.T / D + 0.1 * torch.eye(D, dtype=torch.float64)
        self.K = (K + K.T) / 2
        self.w = nn.Parameter(torch.randn(D, dtype=torch.float64, generator=g))

    def retain(self):
        return self.w @ self.H @ self.w / 2

    def forget(self):
        return self.w @ self.K @ self.w / 2


def one_fit(two, optimizer, scale=1.0, **options):
    tasks = Tasks([two.w], NGDiff())
    rate = GeN(optimizer, bootstrap=0, every=1, smoothing=0.0, clip=(1e-9, 1e9), **options)
    tasks.backward(retain=two.retain, forget=lambda: scale * two.forget())
    g = two.w.grad.clone()
    return g, rate, rate.step(two.retain)


def test_the_rate_is_newtons_along_the_combined_gradient():
    """eta* = <g_R, g> / (g^T H_R g), and R decreases."""
    two = Two()
    g_R, before = (two.H @ two.w).detach(), float(two.retain().detach())
    g, rate, _ = one_fit(two, torch.optim.SGD([two.w], 0.01))
    exact = float(g_R @ g / (g @ two.H @ g))
    assert exact > 0  # <g_R, g> >= 0 for NGDiff, whatever F is
    assert rate.rates[0] == pytest.approx(exact, rel=1e-6)
    assert float(two.retain().detach()) < before  # the step taken was rescaled to eta*


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_rate_does_not_depend_on_the_scale_of_f(kind):
    rates = []
    for scale in (1e-3, 1.0, 1e4):
        two = Two()
        _, rate, _ = one_fit(two, kind([two.w], 0.01), scale)
        rates.append(rate.rates[0])
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)
    assert rates[2] == pytest.approx(rates[1], rel=1e-6)


def test_a_rate_that_raises_the_fresh_retain_loss_is_halved_not_flipped():
    """The probes disagree with the gradient's batch: b <= 0."""
    two = Two()
    tasks = Tasks([two.w], NGDiff())
    optimizer = torch.optim.SGD([two.w], 0.01)
    rate = GeN(optimizer, bootstrap=0, every=1, shrink_after=2)
    for _ in range(2):
        tasks.backward(retain=two.retain, forget=two.forget)
        rate.step(lambda: 50 - two.retain())
    assert [d.accepted for d in rate.log] == [False, False]
    assert rate.rates[0] == pytest.approx(0.005)


def test_forgetting_with_an_automatic_rate_and_a_stop():
    """A memorised classifier: the forget CE reaches that of unseen points, the retain loss stays
    within its tolerance, from a first rate off by three orders of magnitude."""
    torch.manual_seed(0)
    x = torch.randn(260, 20)
    y = (x @ torch.randn(20, 4)).argmax(1)
    forget = slice(0, 20)
    y[forget] = torch.randint(4, (20,))  # to be remembered by heart
    net = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 4))
    trained = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(120):
        trained.zero_grad()
        cross_entropy(net(x), y).backward()
        trained.step()

    def ce(rows):
        with torch.no_grad():
            return float(cross_entropy(net(x[rows]), y[rows]))

    retain = slice(20, 260)
    assert ce(forget) < 0.1
    stop = Stop(reference=1.4, tolerance=0.5, slack=0.2)
    tasks = Tasks(net.parameters(), NGDiff())
    optimizer = torch.optim.SGD(net.parameters(), 1e-5)
    rate = GeN(optimizer, model=net, every=5, bootstrap=6, decay=lambda t: 1 / (1 + t / 400))
    why, first = "", ce(retain)
    for _ in range(300):
        i, fresh = 20 + torch.randint(240, (2, 64))
        tasks.backward(
            retain=lambda i=i: cross_entropy(net(x[i]), y[i]),
            forget=lambda: -cross_entropy(net(x[forget]), y[forget]),
        )
        rate.step(
            (lambda j=fresh: cross_entropy(net(x[j]), y[j], reduction="none")) if rate.due else None
        )
        why = stop(retain=ce(retain), forget=ce(forget))
        if why:
            break
    assert why.startswith("forgotten"), (why, ce(retain), ce(forget), rate.rates)
    assert ce(retain) <= 1.5 * first + 0.2
    assert rate.rates[0] > 1e-3
