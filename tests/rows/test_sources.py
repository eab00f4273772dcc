"""Public rows beside private ones: the identities, and the box of the method written naively."""

from __future__ import annotations

import copy
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.gaussian import Gaussian
from steelyard.plans.privacy import plan_privacy
from steelyard.rows.per_sample import PerSample
from steelyard.rows.sources import PublicRows
from steelyard.runs.ledger import Ledger
from steelyard.types import Clipped, Noised
from steelyard.weightings.clip import FlatClip
from steelyard.weightings.coupling import ConstantWeight, CosineWeight

coupled = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("coupled.py"))))
B, R, SIGMA, OPTIMIZERS = coupled.B, coupled.R, coupled.SIGMA, coupled.OPTIMIZERS
Run, Scaled = coupled.Run, coupled.Scaled
batch, losses, same = coupled.batch, coupled.losses, coupled.same


class Without:
    """The same run without public rows: DP-SGD."""

    def __init__(self, optimizer: str = "sgd"):
        torch.manual_seed(0)
        self.net = Scaled().double()
        self.rows = PerSample(self.net, FlatClip(R), expected_batch=B)
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        attach(self.optimizer, self.rows, Gaussian(SIGMA, seed=3))

    def step(self, t: int) -> list[Tensor]:
        self.rows.backward(losses(self.net, batch(t, 2, 5)))
        self.optimizer.step()
        return [p.detach().clone() for p in self.net.parameters()]


class Drawn:
    """A mechanism whose noise the twin below knows."""

    noise_multiplier, seeded = SIGMA, True

    def __init__(self) -> None:
        self.t = 0

    def privatise(self, gradient: Clipped) -> Noised:
        noise = drawn(self.t, gradient.tensors)
        self.t += 1
        scale = SIGMA * gradient.sensitivity
        tensors = [g + scale * z for g, z in zip(gradient.tensors, noise, strict=True)]
        return Noised(tensors, gradient.sensitivity, SIGMA)

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t = state["t"]


def drawn(t: int, like: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(t)
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in like]


# -- the twin --------------------------------------------------------------------------------


def row_sum(net: nn.Module, x: Tensor, clip: float) -> list[Tensor]:
    """sum_i min(1, clip / ||g_i||) g_i, every sample alone."""
    total = [torch.zeros_like(p) for p in net.parameters()]
    for i in range(len(x)):
        g = torch.autograd.grad(losses(net, x[i : i + 1]).sum(), list(net.parameters()))
        norm = math.sqrt(sum(float(part.square().sum()) for part in g))
        for k, part in enumerate(g):
            total[k] += min(1.0, clip / norm) * part
    return total


@pytest.mark.parametrize("clip", ["same", "none"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_hundred_steps_equal_the_box_written_naively(optimizer, clip):
    """Two batch sizes that vary, empty private batches, micro-batches, losses and functions."""
    scale = 1.0 if clip == "same" else 0.3
    torch.manual_seed(0)
    net = Scaled().double()
    twin = copy.deepcopy(net)
    one, other = OPTIMIZERS[optimizer](net.parameters()), OPTIMIZERS[optimizer](twin.parameters())
    rows = PerSample(net, FlatClip(R), expected_batch=B)
    public = PublicRows(rows, CosineWeight(90), clip=clip, scale=scale)
    attach(one, rows, chain(Drawn(), public))
    for t in range(100):
        x_pub, x = batch(t, 1, 1 + t % 3), batch(t, 2, (0, 4, 1)[t % 3])
        if t % 2:
            public.backward(losses(net, x_pub[:2]))
            rows.backward(losses(net, x))
            public.backward(losses(net, x_pub[2:]))
        else:
            public.backward(lambda x_pub=x_pub: losses(net, x_pub))
            rows.backward(lambda x=x: losses(net, x))
        one.step()
        alpha = math.cos(math.pi * t / 180) if t < 90 else 0.0
        gbar = row_sum(twin, x_pub, R if clip == "same" else math.inf)
        private = row_sum(twin, x, R)
        noise = drawn(t, private)
        for k, p in enumerate(twin.parameters()):
            ghat = (private[k] + SIGMA * R * noise[k]) / B
            p.grad = alpha * scale * gbar[k] / len(x_pub) + (1 - alpha) * ghat
        other.step()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
        assert public.last_alpha == pytest.approx(alpha)


# -- the two ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_alpha_0_is_dp_sgd_to_the_last_bit(optimizer, public):
    run, plain = Run(ConstantWeight(0.0), optimizer=optimizer), Without(optimizer)
    for t in range(10):
        assert same(run.step(public=public), plain.step(t))
    other = Run(ConstantWeight(1e-6), optimizer=optimizer)
    assert not same(other.step(), Without(optimizer).step(0))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_alpha_1_knows_nothing_of_the_private_data_or_the_noise(optimizer):
    one = Run(ConstantWeight(1.0), optimizer=optimizer)
    other = Run(ConstantWeight(1.0), optimizer=optimizer, private_salt=7, seed=8)
    nearly = Run(ConstantWeight(1 - 1e-6), optimizer=optimizer, private_salt=7, seed=8)
    for _ in range(10):
        assert same(one.step(), other.step())
        assert not same(one.weights(), nearly.step())


def test_alpha_1_without_clipping_is_public_sgd():
    run = Run(ConstantWeight(1.0), clip="none")
    twin = copy.deepcopy(run.net)
    plain = OPTIMIZERS["sgd"](twin.parameters())
    for t in range(20):
        run.step()
        plain.zero_grad()
        losses(twin, batch(t, 1, 3)).mean().backward()
        plain.step()
        for p, q in zip(run.net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_at_the_ends_the_other_side_is_not_even_multiplied_by_zero():
    x = batch(0, 1, 3)
    for alpha in (0.0, 1.0):
        run = Run(ConstantWeight(alpha))
        run.public.backward(losses(run.net, x))
        private = Noised([torch.full_like(p, math.nan) for p in run.net.parameters()], 1.0, 1.0)
        out = run.public.filter(private)
        assert (out is private) == (alpha == 0)
        assert all(bool(t.isfinite().all()) for t in out.tensors) == (alpha == 1)


# -- privacy -----------------------------------------------------------------------------------


def test_epsilon_does_not_depend_on_alpha():
    spent = {}
    for alpha in (0.0, 0.4, 1.0):
        ledger = Ledger(
            plan_privacy(n=40, batch=4, steps=3, noise_multiplier=SIGMA, accountant="rdp")
        )
        run = Run(ConstantWeight(alpha), ledger=ledger)
        for _ in range(3):
            run.step()
        assert ledger.steps == 3
        spent[alpha] = ledger.epsilon()
    assert spent[0.0] == spent[0.4] == spent[1.0] > 0


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_the_noise_that_is_left_is_1_minus_alpha_of_it(alpha):
    """Empty private batches: what differs from the public part is noise, (1 - alpha) sigma R / B.
    20,301 numbers: the scale is accepted within 5 standard deviations, 2.5 %."""
    net = nn.Linear(200, 101)
    rows = PerSample(net, FlatClip(R), expected_batch=B)
    public = PublicRows(rows, ConstantWeight(alpha))
    x = torch.randn(3, 200)
    public.backward(net(x).square().sum(1))
    part = [alpha * t / 3 for t in public._sum.tensors()]
    rows.backward(net(torch.zeros(0, 200)).square().sum(1))
    released = chain(Gaussian(SIGMA), public).privatise(rows.take())
    noise = torch.cat([(a - b).flatten() for a, b in zip(released.tensors, part, strict=True)])
    expected = (1 - alpha) * SIGMA * R / B
    assert released.noise_multiplier == SIGMA
    assert released.sensitivity * SIGMA == pytest.approx(expected)
    assert float(noise.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * len(noise)))
    assert abs(float(noise.mean())) < 5 * expected / math.sqrt(len(noise))


def test_a_public_pass_touches_neither_private_sums_nor_noise_nor_ledger():
    ledger = Ledger(plan_privacy(n=40, batch=4, steps=3, noise_multiplier=SIGMA, accountant="rdp"))
    run, plain = Run(ConstantWeight(0.5), ledger=ledger), Without()
    noise = copy.deepcopy(run.chain.mechanism.state_dict())
    run.public.backward(losses(run.net, batch(0, 1, 3)))
    assert not run.rows.armed
    assert all(p.grad is None for p in run.net.parameters())
    with pytest.raises(RuntimeError, match=r"without rows\.backward"):
        run.optimizer.step()
    x = batch(0, 2, 6)
    for part in (x[:2], x[2:]):
        run.rows.backward(losses(run.net, part))
        run.public.backward(losses(run.net, batch(1, 1, 3)))
        plain.rows.backward(losses(plain.net, part))
    assert ledger.steps == 0
    assert run.chain.mechanism.state_dict() == noise
    assert same(list(run.rows.take().tensors), list(plain.rows.take().tensors))
