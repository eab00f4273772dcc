"""The predicted step of Adam against the one torch takes, and BLUR's guarantee on real steps."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from steelyard.rows.adam_step import AdamStep, refuse_others
from steelyard.rows.tasks import Tasks
from steelyard.weightings.blur import TOLERANCE, Blur

OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1),
    "adam, coupled decay": lambda groups: torch.optim.Adam(groups, lr=0.05, weight_decay=0.1),
    "plain moments": lambda groups: torch.optim.Adam(groups, lr=0.05, betas=(0.0, 0.9), eps=1e-4),
}


class Conflict:
    """Two noisy quadratics in float64 that pull apart; F reaches only `w`, R also `v`."""

    def __init__(self, seed, dtype=torch.float64, size=1.0):
        g = torch.Generator().manual_seed(seed)
        d = 40

        def normal(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        A, B = normal(d, d), normal(d, d) * torch.logspace(-2, 1, d).to(dtype)
        self.A, self.B = A @ A.T / d, B.T @ B / d
        self.a, self.b, self.normal, self.size = normal(d), normal(d), normal, size
        self.w, self.v = nn.Parameter(normal(d)), nn.Parameter(normal(3))
        self.next()

    @property
    def groups(self):
        return [{"params": [self.w]}, {"params": [self.v], "lr": 0.02, "weight_decay": 0.0}]

    def next(self):
        self.noise = self.normal(2, len(self.a))

    def retain(self):
        x = self.w - self.a
        return x @ self.A @ x / 2 + self.noise[0] @ self.w + (self.v - 1).square().sum() / 2

    def forget(self):
        x = self.w - self.b
        return self.size * (x @ self.B @ x / 2 + 2 * self.noise[1] @ self.w)

    def gradient(self, loss):
        found = torch.autograd.grad(loss(), [self.w, self.v], allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip((self.w, self.v), found)]  # noqa: B905

    def where(self):
        return torch.cat([self.w.detach(), self.v.detach()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slopes_are_those_of_the_step_that_torch_takes(name):
    """<f, step> from real steps; <f, P u>, <f, P f> from the moments after them."""
    task = Conflict(0)
    optimizer = OPTIMIZERS[name](task.groups)
    scales, weights = [0.5, 2.0], [1.0, -0.3]
    for _ in range(4):
        task.next()
        f, r = task.gradient(task.forget), task.gradient(task.retain)
        step = AdamStep(optimizer, [task.w, task.v], [r, f], scales)
        along, own, real, rate = step.slopes(1, weights)
        f = [scales[1] * one for one in f]
        u = [weights[0] * scales[0] * a + weights[1] * b for a, b in zip(r, f, strict=True)]
        task.w.grad, task.v.grad = u
        before = task.where()
        optimizer.step()
        moved = before - task.where()
        assert real == pytest.approx(float(torch.cat(f) @ moved), rel=1e-9)
        expected = torch.zeros(2, dtype=torch.float64)
        for p, one, grad, group in zip((task.w, task.v), f, u, optimizer.param_groups, strict=True):
            state, (beta1, beta2) = optimizer.state[p], group["betas"]
            t = float(state["step"])
            root = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]
            P = group["lr"] / (1 - beta1**t) / root
            expected += torch.stack([(one * P) @ grad, (one * P) @ one])
        assert [along, own] == pytest.approx(expected.tolist(), rel=1e-9)
        assert rate == pytest.approx((1 - optimizer.param_groups[0]["betas"][0]) * own)


def test_a_warm_up_from_rate_zero_and_foreign_parameters():
    task = Conflict(1)
    optimizer = torch.optim.AdamW([task.w], lr=0.0)
    rows = [task.gradient(task.retain), task.gradient(task.retain)]
    along, own, _, _ = AdamStep(optimizer, [task.w, task.v], rows, [1, 1]).slopes(1, [0.0, 1.0])
    assert along == pytest.approx(own)
    signs = float(task.gradient(task.retain)[0].abs().sum())  # Adam's first step: v is not its own
    assert own == pytest.approx(signs / (1 - 0.9), rel=1e-5)  # as if the rate were 1


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("options", [{}, {"norm": "unit"}, {"one_sided": True}])
def test_the_real_step_never_raises_the_forget_loss_to_first_order(name, gamma, options):
    """<f, step> >= 0 at each of 60 steps, momentum and decay included; without the metric it fails
    in most of them."""
    for metric in ("optimizer", None):
        task = Conflict(3)
        optimizer = OPTIMIZERS[name](task.groups)
        tasks = Tasks([task.w, task.v], Blur(gamma, metric=metric, **options), optimizer=optimizer)
        slopes = []
        for _ in range(60):
            task.next()
            f, before = torch.cat(task.gradient(task.forget)), task.where()
            tasks.backward(retain=task.retain, forget=task.forget)
            optimizer.step()
            moved = before - task.where()
            slopes.append(float(f @ moved / (f.norm() * moved.norm())))
        if metric:
            assert min(slopes) >= -1e-12
        elif gamma == 0:
            assert sum(slope < 0 for slope in slopes) > (3 if options.get("one_sided") else 10)


def test_the_swapped_roles_and_a_small_forget_loss():
    for lower, size in (("retain", 1.0), ("forget", 1e-3)):
        task = Conflict(4, size=size)
        optimizer = OPTIMIZERS["adamw"](task.groups)
        blur = Blur(0.1, lower=lower, metric="optimizer")
        tasks = Tasks([task.w, task.v], blur, optimizer=optimizer)
        for _ in range(60):
            task.next()
            f = torch.cat(task.gradient(task.retain if lower == "retain" else task.forget))
            before = task.where()
            tasks.backward(retain=task.retain, forget=task.forget)
            optimizer.step()
            assert float(f @ (before - task.where())) >= -1e-12


def test_without_momentum_the_share_of_f_is_exactly_gamma():
    """<f, step> = gamma <f, P f>, to the tolerance of the search, at every step."""
    task, gamma = Conflict(5), 0.3
    optimizer = torch.optim.Adam([task.w, task.v], lr=0.05, betas=(0.0, 0.99), eps=1e-3)
    tasks = Tasks([task.w, task.v], Blur(gamma, metric="optimizer"), optimizer=optimizer)
    for _ in range(40):
        task.next()
        f, before = task.gradient(task.forget), task.where()
        record = tasks.backward(retain=task.retain, forget=task.forget)
        looked = optimizer.state[task.w].get("step", torch.zeros(())).clone()
        optimizer.step()
        t = float(optimizer.state[task.w]["step"])
        root = (optimizer.state[task.w]["exp_avg_sq"] / (1 - 0.99**t)).sqrt() + 1e-3
        own = float((0.05 / root * f[0]) @ f[0])
        slope = float(torch.cat(f) @ (before - task.where()))
        xi = abs(record.weights["forget"])
        assert 0 <= slope - gamma * own <= 2 * TOLERANCE * (1 + xi) * own + 1e-12
        assert t == float(looked) + 1  # looking was no step


def test_few_passes_once_the_moments_are_there(monkeypatch):
    task = Conflict(6)
    optimizer = OPTIMIZERS["adamw"](task.groups)
    tasks = Tasks([task.w, task.v], Blur(0.5, metric="optimizer"), optimizer=optimizer)
    calls, slopes = [], AdamStep.slopes
    monkeypatch.setattr(AdamStep, "slopes", lambda *a: calls.append(1) or slopes(*a))
    for t in range(60):
        if t == 10:
            calls.clear()
        task.next()
        tasks.backward(retain=task.retain, forget=task.forget)
        optimizer.step()
    assert 50 <= len(calls) <= 4 * 50


def test_float32_keeps_it_up_to_rounding():
    task = Conflict(7, dtype=torch.float32)
    optimizer = OPTIMIZERS["adamw"](task.groups)
    tasks = Tasks([task.w, task.v], Blur(0.0, metric="optimizer"), optimizer=optimizer)
    for _ in range(60):
        task.next()
        f, before = torch.cat(task.gradient(task.forget)), task.where()
        tasks.backward(retain=task.retain, forget=task.forget)
        optimizer.step()
        moved = before - task.where()
        assert float(f @ moved) >= -1e-5 * float(f.norm() * moved.norm())


class Decayed:
    """F wants |w| to grow and the decay shrinks it, against noisy gradients of order 1."""

    def __init__(self, decay, size):
        self.g = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(size * self.normal().sign())
        self.optimizer = torch.optim.AdamW([self.w], lr=1e-4, weight_decay=decay)
        self.blur = Blur(0.1, metric="optimizer")
        self.tasks = Tasks([self.w], self.blur, optimizer=self.optimizer)

    def normal(self):
        return torch.randn(50, generator=self.g, dtype=torch.float64)

    def step(self):
        """(<f, step>, <f, P u> / <f, P f>, record)"""
        f, r, before = (
            self.normal() - self.w.detach().sign(),
            self.normal(),
            self.w.detach().clone(),
        )
        record = self.tasks.backward(retain=r @ self.w, forget=f @ self.w)
        u = self.w.grad.clone()
        self.optimizer.step()
        state = self.optimizer.state[self.w]
        P = 1 / ((state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-8)
        return float(f @ (before - self.w.detach())), float((f * P) @ u / ((f * P) @ f)), record


@pytest.mark.parametrize(("decay", "size"), [(0.1, 3.0), (0.3, 4.0), (1.0, 10.0)])
@pytest.mark.filterwarnings("ignore:BLUR")
def test_a_decay_stronger_than_adams_step_does_not_blow_the_gradient_up(decay, size):
    """xi that grows without bound would make the second moments infinite, and w would never move
    again; a little less decay sends xi up step after step, since Adam remembers it."""
    task = Decayed(decay, size)
    slopes, shares, records = zip(*(task.step() for _ in range(150)), strict=True)
    assert max(abs(record.weights["forget"]) for record in records) < 25
    assert float(task.optimizer.state[task.w]["exp_avg_sq"].max()) < 20
    assert min(shares) >= 0.1 - 1e-9  # the metric's part holds, whatever the decay
    if decay == 0.1:  # Adam's step is the stronger one
        assert min(slopes) >= -1e-12


def test_a_step_that_cannot_be_kept_from_raising_f_is_told():
    with pytest.warns(UserWarning, match=r"raising 'forget' in this step.*decay or beta1$"):
        Decayed(1.0, 10.0).step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Decayed(0.1, 3.0).step()


def test_optimizers_that_are_not_known():
    for wrong in (torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam):
        with pytest.raises(ValueError, match=f"found {wrong.__name__}: give Tasks that"):
            refuse_others(wrong(Conflict(0).groups, lr=0.1))
    for option in ("amsgrad", "maximize"):
        with pytest.raises(ValueError, match=f"does not know {option}=True"):
            refuse_others(torch.optim.AdamW(Conflict(0).groups, lr=0.1, **{option: True}))
