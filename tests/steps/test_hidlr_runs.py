"""Runs of Hi-DLR: against the paper's box, against GeN, resumed, private, refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from steelyard import FlatClip, Gaussian, PerSample, attach
from steelyard.steps.gen import GeN
from steelyard.steps.hidlr import HiDLR
from steelyard.steps.private_probe import PrivateProbe


def test_one_group_is_gen():
    """100 steps of momentum SGD, same rates and parameters as GeN's five points."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    other = copy.deepcopy(net)
    x, y = torch.randn(32, 4).double(), torch.randn(32, 1).double()
    make = {HiDLR: net, GeN: other}
    rates = {}
    for method, model in make.items():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.8)
        rates[method] = method(optimizer, every=3, bootstrap=4)
    for t in range(100):
        at = torch.arange(16) + (t % 2) * 16
        for method, model in make.items():
            model.zero_grad()
            (model(x[at]) - y[at]).square().mean().backward()
            fresh = 31 - at
            rates[method].step(
                lambda model=model, fresh=fresh: (model(x[fresh]) - y[fresh]).square().mean(1)
            )
    (found,) = rates[HiDLR].rates.values()
    assert found == pytest.approx(rates[GeN].rates[0], rel=1e-10)
    assert found != pytest.approx(0.003, rel=0.1)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-12)


def test_the_step_taken_is_that_of_the_new_rates(bowl):
    """AdamW with weight decay and momentum: its displacement times new over old rate."""
    one, twin = bowl(3), bowl(3)
    make = dict(lr=0.01, weight_decay=0.1)  # noqa: C408
    rate = HiDLR(
        torch.optim.AdamW(one.parts, **make), one.groups, bootstrap=0, every=2, smoothing=0.5
    )
    plain = torch.optim.AdamW([{"params": [p]} for p in twin.parts], **make)
    for _ in range(6):
        one.backward()
        twin.backward()
        decision = rate.step(one.loss)
        if decision is not None:
            assert set(decision.multipliers.values()) != {1.0}
        for group, eta in zip(plain.param_groups, rate.rates.values(), strict=True):
            group["lr"] = eta
        plain.step()
        assert torch.allclose(one.w, twin.w, rtol=1e-12, atol=1e-14)


def test_the_box_for_100_steps(bowl):
    """The paper's box, written with plain loops, on a noisy coupled quadratic."""
    one, twin = bowl(5), bowl(5)
    rate = HiDLR(one.sgd(0.02), one.groups, bootstrap=0, every=4, shrink_after=100)
    eta = [0.02] * 3
    rng = np.random.default_rng(0)
    for t in range(100):
        shift = torch.as_tensor(0.3 * rng.normal(size=9))  # this step's batch
        fresh = torch.as_tensor(0.3 * rng.normal(size=9))
        for place in (one, twin):
            place.backward()
            for part, noise in zip(place.parts, shift.split([3, 2, 4]), strict=True):
                part.grad += noise
        rate.step(lambda fresh=fresh: one.loss() + fresh @ torch.cat(one.parts))

        with torch.no_grad():
            w = [p.clone() for p in twin.parts]
            delta = [-e * p.grad for e, p in zip(eta, twin.parts, strict=True)]

            def loss(c, w=w, delta=delta, fresh=fresh):
                at = torch.cat([a + ck * d for a, ck, d in zip(w, c, delta, strict=True)])
                return float(0.5 * at @ twin.H @ at - twin.g @ at + fresh @ at)

            new = list(eta)
            if t % 4 == 3:
                s, L0 = [1.0] * 3, loss([0, 0, 0])
                for k in range(3):
                    y = {
                        c: loss([c if j == k else 0 for j in range(3)]) - L0 for c in (-2, -1, 1, 2)
                    }
                    a = (4 * (y[2] + y[-2]) + y[1] + y[-1]) / 17
                    b = -(2 * (y[2] - y[-2]) + y[1] - y[-1]) / 10
                    if a > 0 and b > 0:
                        s[k] = min(max(b / a, 0.5), 2.0)
                up, down = loss(s) - L0, loss([-c for c in s]) - L0
                a, b = up + down, (down - up) / 2
                s_global = min(b / a, 2.0) if a > 0 and b > 0 else 1.0
                s_global = max(s_global, 0.5 / 3)
                new = [0.9 * e + 0.1 * sk * s_global * e for e, sk in zip(eta, s, strict=True)]
            for p, a, d, n, e in zip(twin.parts, w, delta, new, eta, strict=True):
                p.copy_(a + n / e * d)
            eta = new
        assert np.allclose(list(rate.rates.values()), eta, rtol=1e-7)
        assert torch.allclose(one.w, twin.w, rtol=1e-8, atol=1e-10)
    assert max(eta) > 1.3 * 0.02


def test_two_blocks_of_curvature_1_and_1000(Bowl):
    """E1: uncoupled blocks of different curvature; one common rate needs hundreds of steps."""

    def steps(groups: bool) -> int:
        one = Bowl(np.diag([1.0, 1.0, 1e3, 1e3]), np.zeros(4), [2, 2], start=[1e3, 1e3, 1, 1])
        groups = one.groups if groups else {"all": one.parts}
        rate = HiDLR(one.sgd(3e-4), groups, every=1)
        for t in range(400):
            if one.loss().item() < 1e-8:
                return t
            one.backward()
            rate.step(one.loss)
        return 400

    assert steps(groups=True) <= 12
    assert steps(groups=False) > 100


def test_a_rate_100_times_too_small_or_too_large_is_repaired():
    """E3: a group's own rate is found; the others' barely move."""
    for factor in (1e-2, 1e2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 3))
        x = torch.randn(512, 10)
        y = (x[:, :3] + 0.5 * x[:, 3:6] ** 2).argmax(1)
        optimizer = torch.optim.SGD(
            [{"params": model[0].parameters(), "name": "in", "lr": 0.5},
             {"params": model[2].parameters(), "name": "out", "lr": 0.5 * factor}]
        )  # fmt: skip
        rate = HiDLR(optimizer, model=model)
        random = torch.Generator().manual_seed(1)
        for _ in range(40):
            batch, fresh = torch.randint(512, (2, 128), generator=random)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            rate.step(
                lambda model=model, x=x[fresh], y=y[fresh]: nn.functional.cross_entropy(
                    model(x), y, reduction="none"
                )
            )
        assert 0.05 < rate.rates["out"] < 10


def test_many_groups_take_turns(bowl):
    one = bowl(sizes=(1,) * 12, coupling=0.0)
    rate = HiDLR(one.sgd(), one.groups, at_once=5, bootstrap=0, smoothing=0.5)
    seen = []
    while len(seen) < 5:
        one.backward()
        if (decision := rate.step(one.loss)) is not None:
            assert decision.step % 20 == 0  # Phi = 4 x 5
            seen.append([int(name[1:]) for name in decision.parabolas])
    assert [n for turn in seen for n in turn] == [k % 12 for k in range(25)]


def test_a_resumed_run_goes_on_bit_for_bit(bowl):
    def run(steps: int, stop: int | None) -> torch.Tensor:
        one = bowl(7)

        def make():
            optimizer = torch.optim.Adam(one.parts, lr=1e-3)
            return optimizer, HiDLR(optimizer, one.groups, bootstrap=3, every=4)

        optimizer, rate = make()
        for t in range(steps):
            if t == stop:
                saved = copy.deepcopy((optimizer.state_dict(), rate.state_dict()))
                optimizer, rate = make()
                optimizer.load_state_dict(saved[0])
                rate.load_state_dict(saved[1])
            one.backward()
            rate.step(one.loss)
        return one.w

    assert torch.equal(run(20, None), run(20, 9))
    assert not torch.equal(run(20, None), run(19, None))


def test_refusals(bowl):
    one = bowl()
    make = one.sgd
    with pytest.raises(ValueError, match="2 trainable parameters are of the optimizer in no group"):
        HiDLR(make(), {"a": [one.parts[0]]})
    with pytest.raises(ValueError, match="is in 'a' and in 'b'"):
        HiDLR(make(), {"a": one.parts, "b": [one.parts[0]]})
    with pytest.raises(ValueError, match="1 trainable parameters are not in the optimizer"):
        HiDLR(torch.optim.SGD(one.parts[:2], lr=0.1), one.groups)
    scheduled = make()
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    with pytest.raises(ValueError, match="scheduler has this optimizer"):
        HiDLR(scheduled, one.groups)
    with pytest.raises(ValueError, match="not proportional to its learning rate"):
        HiDLR(torch.optim.Rprop(one.parts), one.groups)
    with pytest.raises(ValueError, match="smoothing is in"):
        HiDLR(make(), one.groups, smoothing=1.0)
    with pytest.raises(ValueError, match="found 0, 8, 20"):
        HiDLR(make(), one.groups, every=0)
    rate = HiDLR(optimizer := make(), one.groups)
    one.backward()
    with pytest.raises(ValueError, match="a fit is due"):
        rate.step()
    torch.manual_seed(0)
    batches = iter(range(10))
    with pytest.raises(ValueError, match="draw the batch outside"):
        rate.step(lambda: one.loss() + next(batches) + 1)
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match="scheduler"):
        rate.step(one.loss)
    with pytest.raises(ValueError, match="not a saved Hi-DLR"):
        rate.load_state_dict({"a": 1})
    state = rate.state_dict() | {"groups": ["x", "y"]}
    with pytest.raises(ValueError, match="the saved Hi-DLR has the groups x, y"):
        rate.load_state_dict(state)


def test_private_steps_need_a_word_on_the_probes():
    """Public probes are free; private ones are charged per fit, twice with the rescale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    groups = {"a": [model[0].weight], "b": [model[0].bias], "c": [*model[2].parameters()]}
    x = torch.randn(8, 4)

    def losses():
        return model(x).square().sum(1)

    class Charges:
        noise_seeded_by_user = False

        def __init__(self):
            self.paid = []

        def charge(self, *, noise_multiplier, sampling_probability):
            self.paid.append((noise_multiplier, sampling_probability))

    optimizer, ledger = torch.optim.SGD(model.parameters(), lr=0.1), Charges()
    with PerSample(model, FlatClip(1.0), expected_batch=8) as rows:
        attached = attach(optimizer, rows, Gaussian(1.0))
        with pytest.raises(ValueError, match="the optimizer is private"):
            HiDLR(optimizer, groups)
        probes = PrivateProbe(
            Gaussian(0.5), bound=10.0, expected_batch=8, sampling_probability=0.1, ledger=ledger
        )
        for options, charged in (({"probes_are": "public"}, 0), ({"private": probes}, 2)):
            rate = HiDLR(optimizer, groups, **options)
            ledger.paid.clear()
            rows.backward(losses())
            decision = rate.step(losses)
            optimizer.zero_grad()
            assert set(decision.parabolas) == {"a", "b", "c"}
            assert ledger.paid == [(0.5, 0.1)] * charged
        attached.detach()
