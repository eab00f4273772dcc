"""Hi-DLR on exact quadratics: the identities of its fits."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from steelyard.steps.hidlr import HiDLR
from steelyard.steps.quadratic import Policy

WIDE = Policy(clip=(1e-6, 1e6), least_snr=0.0)


def test_uncoupled_groups_get_their_own_optimum(bowl, one_fit, exact):
    one = bowl(coupling=0.0)
    b, A = exact(one, 0.01)
    rate, decision = one_fit(one, rescale=False)
    assert np.allclose(list(decision.multipliers.values()), b / A.diagonal(), rtol=1e-9)
    assert np.allclose(list(rate.rates.values()), 0.01 * b / A.diagonal(), rtol=1e-9)
    # uncoupled: the rescale changes nothing
    assert one_fit(bowl(coupling=0.0))[1].rescale == pytest.approx(1, rel=1e-9)
    assert one_fit(bowl(coupling=0.0))[1].diagonal == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_full_solves_the_coupled_system(ridge, bowl, one_fit, exact):
    b, A = exact(bowl(), 0.01)
    expected = np.linalg.solve(A + ridge * A.diagonal().mean() * np.eye(3), b)
    _, decision = one_fit(bowl(), full=True, ridge=ridge)
    assert (expected > 0).all()
    assert np.allclose(list(decision.multipliers.values()), expected, rtol=1e-8)
    assert decision.rescale == 1


def test_full_never_leaves_the_clip(Bowl, one_fit, exact):
    """Two groups that are one, of opposite gradients: the free optimum of one is negative."""
    H = np.array([[1.0, 0.95], [0.95, 1.0]])
    one = Bowl(H, [1.0, 0.2], [1, 1])
    b, A = exact(one, 0.01)
    assert np.linalg.solve(A, b)[1] < 0
    _, decision = one_fit(one, full=True)
    s = np.array(list(decision.multipliers.values()))
    assert s[1] == pytest.approx(1e-6)
    assert s[0] == pytest.approx((b[0] - A[0, 1] * s[1]) / A[0, 0], rel=1e-9)


def test_the_overshoot_of_six_coupled_groups_and_its_repair(Bowl, one_fit):
    """Trap 1: the diagonal step raises the loss by 10.7, the rescaled one lowers it by 0.50."""
    H, g = np.ones((6, 6)) + 0.05 * np.eye(6), np.ones(6)

    def fall(**options) -> float:
        one = Bowl(H, g, [1] * 6)
        one_fit(one, 1.0, **options)
        return one.loss().item()

    assert fall(rescale=False) == pytest.approx(10.7, abs=0.05)
    assert fall(full=True) == pytest.approx(-0.496, abs=1e-3)
    assert fall() == pytest.approx(-0.496, abs=1e-3)  # the default for K > 2
    _, decision = one_fit(Bowl(H, g, [1] * 6))
    assert decision.diagonal == pytest.approx(6 * 1.05 / (36 + 0.3), rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_the_rescaled_step_never_raises_a_quadratic(seed, bowl, one_fit):
    one = bowl(seed, (2, 1, 3, 2), coupling=1.0)
    before = one.loss().item()
    _, decision = one_fit(one, lr=10.0 ** np.random.default_rng(seed).uniform(-3, 1))
    assert all(p.accepted for p in decision.parabolas.values())
    assert one.loss().item() < before


def test_merged_groups_are_gen_and_order_means_nothing(bowl, one_fit, exact):
    merged = bowl()
    merged.groups = {"all": merged.parts}
    _, decision = one_fit(merged)
    b, A = exact(bowl(), 0.01)
    assert decision.multipliers["all"] == pytest.approx(b.sum() / A.sum(), rel=1e-9)

    turned = bowl()
    turned.groups = dict(reversed(turned.groups.items()))
    for options in ({}, {"full": True}):
        first, second = one_fit(bowl(), **options)[1], one_fit(turned, **options)[1]
        turned = bowl()
        turned.groups = dict(reversed(turned.groups.items()))
        for name, multiplier in first.multipliers.items():
            assert second.multipliers[name] == pytest.approx(multiplier, rel=1e-10)


def test_the_loss_in_other_units_changes_nothing(bowl, one_fit):
    plain = one_fit(bowl(), rescale=True)[1].multipliers
    # SGD's step grows with the loss: the learning rate in the other units is a thousandth
    scaled = one_fit(bowl(scale=1e3), lr=1e-5, rescale=True)[1].multipliers
    for name, multiplier in plain.items():
        assert scaled[name] == pytest.approx(multiplier, rel=1e-9)


@pytest.mark.parametrize(
    ("curvature", "words"), [(0.0, "is within 8 x noise"), (-2.0, "curvature is not positive")]
)
def test_no_curvature_no_change(curvature, words, Bowl):
    one = Bowl(np.diag([1.0, curvature]), [1.0, 1.0], [1, 1])
    policy = Policy(clip=(1e-6, 1e6))
    rate = HiDLR(one.sgd(), one.groups, bootstrap=0, every=1, smoothing=0.0, policy=policy)
    one.backward()
    decision = rate.step(lambda: one.loss() + 1)
    assert decision.multipliers["g1"] == 1
    assert decision.multipliers["g0"] == pytest.approx(100)
    assert words in decision.parabolas["g1"].reason


def test_a_nan_in_one_group_is_its_own_affair(bowl):
    one = bowl(coupling=0.0)
    rate = HiDLR(one.sgd(), one.groups, bootstrap=0, every=1, smoothing=0, policy=WIDE)
    one.backward()
    home = one.parts[1].detach().clone() - 0.01 * one.parts[1].grad
    start = one.parts[1].detach().clone()

    def loss():
        inside = torch.equal(one.parts[1], start) or torch.equal(one.parts[1], home)
        return one.loss() if inside else one.loss() * math.nan

    decision = rate.step(loss)
    assert decision.multipliers["g1"] == 1
    assert decision.parabolas["g1"].reason == "a probe loss is not finite"
    assert decision.parabolas["g0"].accepted
    assert decision.parabolas["g2"].accepted


def test_groups_that_do_not_move_are_left_alone(bowl):
    one = bowl(coupling=0.0)
    one.parts[1].requires_grad_(False)
    rate = HiDLR(one.sgd(), one.groups, bootstrap=0, every=1)
    one.backward()
    one.parts[2].grad = None
    decision = rate.step(one.loss)
    assert list(decision.parabolas) == ["g0"]
    assert rate.forwards == 5 + 2
    assert list(rate.rates) == ["g0", "g2"]
    assert rate.rates["g2"] == 0.01


def test_decay_lies_outside_the_smoothing(bowl):
    """With the decay at 1/5, rates go on to be found as without it; the step is 1/5 of them."""
    found = []
    for decay in (None, lambda t: 0.2):
        one = bowl(coupling=0.0)
        optimizer = one.sgd()
        rate = HiDLR(
            optimizer, one.groups, bootstrap=0, every=1, smoothing=0, policy=WIDE, decay=decay
        )
        one.backward()
        start = one.w
        rate.step(one.loss)
        found.append((np.array(list(rate.rates.values())), one.w - start))
        ratio = optimizer.param_groups[0]["lr"] / rate.rates["g0"]
        assert ratio == pytest.approx(1.0 if decay is None else 0.2)
    assert np.allclose(found[0][0], found[1][0], rtol=1e-8)
    assert torch.allclose(0.2 * found[0][1], found[1][1], rtol=1e-8)


def test_forwards_and_traces():
    """4K + 1 evaluations, and the two of the rescale; parameters bit for bit where nothing is
    believed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    groups = {"in": [*model[0].parameters()], "bn": [*model[1].parameters()],
              "head": [*model[3].parameters()]}  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    never = Policy(least_r2=2.0)
    rate = HiDLR(optimizer, groups, model=model, bootstrap=0, every=1, policy=never)
    twin, x = copy.deepcopy(model), torch.randn(16, 4)
    same = torch.optim.Adam(twin.parameters(), lr=1e-3)
    calls = 0

    def losses():
        nonlocal calls
        calls += 1
        return model(x).square().mean(1)

    for fit in range(3):
        buffers = copy.deepcopy(dict(model.named_buffers()))
        for net, opt in ((model, optimizer), (twin, same)):
            opt.zero_grad()
            torch.manual_seed(fit)
            net(x).square().mean().backward()
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        state = torch.get_rng_state()
        calls = 0
        decision = rate.step(losses)
        assert calls == 4 * 3 + 1 + (2 if fit == 0 else 0)  # the first fit asks twice if x is fixed
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
        assert model.training
        same.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q)
        assert set(decision.multipliers.values()) == {1.0}
    assert rate.forwards == 3 * 13 + 2
