"""U1-U10 of the card, and the paper's algorithm written out, step by step."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steelyard.steps.gen import GeN
from steelyard.steps.quadratic import Policy

D = 12
OPTIMIZERS = {
    "sgd": lambda ps, lr: torch.optim.SGD(ps, lr),
    "momentum": lambda ps, lr: torch.optim.SGD(ps, lr, momentum=0.9, weight_decay=0.01),
    "adamw": lambda ps, lr: torch.optim.AdamW(ps, lr, weight_decay=0.1),
    "muon": lambda ps, lr: torch.optim.Muon(ps, lr),
    "tensor lr": lambda ps, lr: torch.optim.AdamW(ps, torch.tensor(lr, dtype=torch.float64)),
}


class Bowl(nn.Module):
    """0.5 (w - w*)'H(w - w*), float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        H = torch.randn(D, D, dtype=torch.float64)
        self.H = H @ H.T / D + 0.1 * torch.eye(D, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(D, 1, dtype=torch.float64))

    def forward(self, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        return scale * 0.5 * (self.w.T @ self.H @ self.w).squeeze() + offset


def one_fit(bowl, optimizer, losses=None, **options):
    """lr after one fit without smoothing or clip: eta*."""
    rate = GeN(optimizer, bootstrap=0, every=1, smoothing=0.0, clip=(1e-9, 1e9), **options)
    decision = rate.step(bowl if losses is None else losses)
    return rate, decision


def backward(bowl, scale=1.0):
    bowl.zero_grad()
    bowl(scale).backward()
    return bowl.w.grad.clone()


# -- U1, U2, U3: eta* is what it should be ---------------------------------------------------------


@pytest.mark.parametrize("probes", [(-1, 1), (-2, -1, 1, 2)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_u1_exact_on_a_quadratic(name, probes):
    bowl = Bowl()
    optimizer = OPTIMIZERS[name](bowl.parameters(), 0.01)
    old = bowl.w.detach().clone()
    g = backward(bowl)
    one_fit(bowl, optimizer, probes=probes, rescale=False)
    d = (old - bowl.w.detach()) / 0.01
    exact = (g.T @ d / (d.T @ bowl.H @ d)).item()
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(exact, rel=1e-6)
    if name == "sgd":
        assert exact == pytest.approx((g.T @ g / (g.T @ bowl.H @ g)).item())


def test_u2_newtons_direction_has_rate_1():
    bowl = Bowl()
    backward(bowl)
    bowl.w.grad = torch.linalg.solve(bowl.H, bowl.w.grad)
    rate, _ = one_fit(bowl, torch.optim.SGD(bowl.parameters(), 0.3))
    assert rate.rates[0] == pytest.approx(1, rel=1e-9)
    assert bowl.w.abs().max() < 1e-9  # the step taken was rescaled: it arrives


def test_u3_invariances():
    def eta(scale=1.0, offset=0.0, k=1.0):
        bowl = Bowl()
        backward(bowl)
        bowl.w.grad *= k
        optimizer = torch.optim.SGD(bowl.parameters(), 0.1)
        return one_fit(bowl, optimizer, lambda: bowl(scale, offset))[0].rates[0]

    assert eta(scale=37.0) == pytest.approx(eta(), rel=1e-9)
    assert eta(offset=5.0) == pytest.approx(eta(), rel=1e-9)
    assert eta(k=4.0) == pytest.approx(eta() / 4, rel=1e-9)


# -- the algorithm, written out --------------------------------------------------------------------


def twin(bowl, lr, steps, every, gamma, clip, decay, bootstrap, targets):
    """Section 2.4 with momentum, one line after the other; yields (w, lr)."""
    w, m = bowl.w.detach().clone(), None
    H, fits = bowl.H, 0

    def loss(v, target):
        return (0.5 * (v - target).T @ H @ (v - target)).item()

    for t in range(steps):
        g = H @ (w - targets[2 * t])
        m = g if m is None else 0.9 * m + g
        f = decay(t)
        delta = -lr * f * m
        multiple = 1.0
        if fits < bootstrap or (t + 1) % every == 0:
            fits += 1
            L = {c: loss(w + c / f * delta, targets[2 * t + 1]) for c in (-2, -1, 0, 1, 2)}
            y = {c: L[c] - L[0] for c in L}
            a = (4 * (y[2] + y[-2]) + y[1] + y[-1]) / 17
            b = -(2 * (y[2] - y[-2]) + y[1] - y[-1]) / 10
            if a > 0 and b > 0:
                if fits <= bootstrap:
                    multiple = min(max(b / a, 0.1), 10)
                else:
                    multiple = gamma + (1 - gamma) * min(max(b / a, clip[0]), clip[1])
        w = w + multiple * delta
        lr = lr * multiple
        yield w, lr


@pytest.mark.parametrize("bootstrap", [0, 5])
def test_equals_the_paper_for_100_steps(bootstrap):
    def decay(t):
        return 1 - t / 120

    steps, bowl = 100, Bowl()
    targets = 0.3 * torch.randn(2 * steps, D, 1, dtype=torch.float64)  # batches: they differ
    options = {"every": 3, "decay": decay, "bootstrap": bootstrap}
    slow = list(twin(bowl, 1e-3, steps, 3, 0.9, (0.5, 2.0), decay, bootstrap, targets))
    optimizer = torch.optim.SGD(bowl.parameters(), 1e-3, momentum=0.9)
    rate = GeN(optimizer, policy=Policy(least_snr=0), shrink_after=999, **options)

    def loss(target):
        v = bowl.w - target
        return (0.5 * v.T @ bowl.H @ v).squeeze()

    for t, (w, lr) in enumerate(slow):
        optimizer.zero_grad()
        loss(targets[2 * t]).backward()
        rate.step(lambda t=t: loss(targets[2 * t + 1]))
        assert rate.rates[0] == pytest.approx(lr, rel=1e-7)
        assert torch.allclose(bowl.w, w, rtol=1e-7, atol=1e-9)
    assert sum(d.accepted for d in rate.log) > 20
    assert len(rate.log) == (33 if not bootstrap else 5 + 32)


# -- U5, U6, U9, U10 -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_u5_one_step_rescaled_to_the_new_rate(name):
    bowl = Bowl()
    plain = copy.deepcopy(bowl)
    optimizer, other = (OPTIMIZERS[name](b.parameters(), 0.01) for b in (bowl, plain))
    rate = GeN(optimizer, every=2, bootstrap=0)
    for t in range(2):
        backward(bowl)
        backward(plain)
        old, lr = bowl.w.detach().clone(), rate.rates[0]
        rate.step(bowl if rate.due else None)
        other.step()
        if t == 0:
            assert torch.equal(bowl.w, plain.w)
    assert rate.log[-1].accepted
    update, base = bowl.w.detach() - old, plain.w.detach() - old
    assert rate.rates[0] / lr != 1
    assert torch.allclose(update, rate.rates[0] / lr * base, rtol=1e-9)
    for a, b in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)  # advanced once


@pytest.mark.parametrize("bootstrap", [0, 20])
@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (lambda w: -(w**2).sum(), "curvature is not positive"),
        (lambda w: (w**2).sum() * math.nan, "not finite"),
        (lambda w: w.sum(), "curvature"),
    ],
)
def test_u6_rejected_fits_leave_rate_and_step(losses, words, bootstrap):
    p = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([p], 0.25)
    p.grad = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    rate = GeN(optimizer, every=1, bootstrap=bootstrap)
    decision = rate.step(lambda: losses(p))
    assert not decision.accepted
    assert words in decision.reason
    assert rate.rates == [0.25]
    assert decision.multiple == 1
    assert p.tolist() == [3.25, -1.25]


def test_u6_a_zero_gradient_and_a_zero_rate_make_no_fit():
    for lr, grad, words in ((0.1, 0.0, "moves nothing"), (0.0, 1.0, "learning rate is 0")):
        p = nn.Parameter(torch.ones(2))
        p.grad = torch.full((2,), grad)
        rate = GeN(torch.optim.SGD([p], lr), every=1)
        decision = rate.step(lambda: (p**2).sum())  # noqa: B023
        assert words in decision.reason
        assert rate.forwards == 0
        assert rate.rates == [lr]
        assert math.isnan(decision.slope)


def test_u9_gradient_accumulation():
    torch.manual_seed(0)
    x, y = torch.randn(256, 5).double(), torch.randint(3, (256,))

    def eta(sizes):
        torch.manual_seed(1)
        net = nn.Linear(5, 3).double()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        cross_entropy(net(x), y).backward()
        parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
        losses = [lambda p=p: cross_entropy(net(p[0]), p[1], reduction="none") for p in parts]
        return one_fit(net, optimizer, losses if len(losses) > 1 else losses[0])[0].rates[0]

    assert eta([64] * 4) == pytest.approx(eta([256]), rel=1e-9)
    assert eta([200, 56]) == pytest.approx(eta([256]), rel=1e-9)


@pytest.mark.parametrize(("phi", "T"), [(4, 21), (1, 5)])
def test_u10_forwards(phi, T):
    for known in (False, True):
        bowl, calls = Bowl(), itertools.count()

        def losses(bowl=bowl, calls=calls):
            next(calls)
            return bowl()

        optimizer = torch.optim.SGD(bowl.parameters(), 1e-2)
        rate = GeN(optimizer, every=phi, bootstrap=0, probes=(-1, 1))
        for _ in range(T):
            optimizer.zero_grad()
            loss = losses()
            loss.backward()
            rate.step(losses, start=loss.item() if known else None)
        checked = 1  # the first fit looks twice whether all probes see one batch
        assert rate.forwards == (2 if known else 3) * (T // phi) + checked
        assert next(calls) == T + rate.forwards
