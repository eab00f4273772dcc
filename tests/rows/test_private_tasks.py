"""Private rows in one step: clipped, noised, charged, debiased, and only then weighed."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard import Ledger, PerSample, attach, chain, plan_privacy
from steelyard.filters.doppler import Doppler
from steelyard.filters.gaussian import Gaussian
from steelyard.objectives.pdu import PrimalDual
from steelyard.rows.private_tasks import PrivateTasks
from steelyard.rows.task_noise import PrivateTask, PublicTask
from steelyard.runs.ledger import BudgetExceeded
from steelyard.steps.gen import GeN
from steelyard.types import Clipped
from steelyard.weightings.blur import Blur
from steelyard.weightings.clip import AutoClip, FlatClip
from steelyard.weightings.ngdiff import NGDiff
from steelyard.weightings.scalarize import Fixed, LossNormalised

X = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (30,), generator=torch.Generator().manual_seed(1))
RETAIN, FORGET = slice(0, 18), slice(18, 30)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def tasks_of(sigma=0.0, **options):
    options = {"sampling_probability": 0.1} | options
    return {
        "retain": PrivateTask(
            clip=FlatClip(0.4), noise_multiplier=sigma, expected_batch=16, **options
        ),
        "forget": PrivateTask(
            clip=AutoClip(0.7), noise_multiplier=2 * sigma, expected_batch=8, **options
        ),
    }


def make(model, sigma=0.0, weighting=None, *, seed=None, filters=(), ledger=None, **options):
    rows = PerSample(model, FlatClip(1.0), expected_batch=16)
    private = PrivateTasks(rows, weighting or NGDiff(), tasks_of(sigma, **options), seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attach(optimizer, private, chain(private.noise, *filters), ledger=ledger)
    return private, optimizer


def losses(model, part, sign=1.0):
    return sign * cross_entropy(model(X[part]), Y[part], reduction="none")


def step(model, private, optimizer, forget=FORGET):
    private.backward(retain=losses(model, RETAIN), forget=lambda: losses(model, forget, -1.0))
    optimizer.step()
    optimizer.zero_grad()


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def naive_rows(model):
    """Clip every sample's own gradient, add up, divide by the constant."""
    found = []
    for part, sign, clip, batch in (
        (RETAIN, 1.0, FlatClip(0.4), 16),
        (FORGET, -1.0, AutoClip(0.7), 8),
    ):
        total = 0.0
        for i in range(part.start, part.stop):
            loss = losses(model, slice(i, i + 1), sign)[0]
            g = flat(torch.autograd.grad(loss, list(model.parameters())))
            total = total + g * clip(g.norm())
        found.append(total / batch)
    return found


def test_without_noise_it_is_the_naive_loop_over_samples():
    model, twin = net(), net()
    private, optimizer = make(model)
    for _ in range(30):
        step(model, private, optimizer)
        r, f = naive_rows(twin)
        u = 0.1 * (r / r.norm() + f / f.norm())
        with torch.no_grad():
            start = 0
            for p in twin.parameters():
                p -= u[start : start + p.numel()].view_as(p)
                start += p.numel()
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()))
    r, f = (float(g.norm()) for g in naive_rows(twin))  # one small step later than the record's
    assert private.record.norms == pytest.approx({"retain": r, "forget": f}, rel=0.1)
    assert private.record.losses == {}  # private losses are not in the record


def test_micro_batches_add_up():
    one, many = net(), net()
    private, optimizer = make(one)
    step(one, private, optimizer)
    private, optimizer = make(many)
    for part_r, part_f in ((slice(0, 7), slice(18, 19)), (slice(7, 18), slice(19, 30))):
        private.backward(retain=losses(many, part_r), forget=losses(many, part_f, -1.0))
    optimizer.step()
    torch.testing.assert_close(flat(one.parameters()), flat(many.parameters()))


def test_each_row_gets_the_noise_of_its_own_sensitivity():
    """Released - clean of each task alone, by fixed weights; and of both, independent."""
    d = sum(p.numel() for p in net().parameters())
    taus = {"retain": 3.0 * 0.4 / 16, "forget": 6.0 * 0.7 / 8}
    seen = {}
    for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, -1.0)):
        model, noise = net(), []
        table = Fixed(dict(zip(taus, weights, strict=True)))
        private, optimizer = make(model, 3.0, table, seed=5)
        clean = sum(w * g for w, g in zip(weights, naive_rows(model), strict=True))
        optimizer.param_groups[0]["lr"] = 1e-30  # the parameters stay
        for _ in range(60):
            private.backward(retain=losses(model, RETAIN), forget=losses(model, FORGET, -1.0))
            optimizer.step()
            noise.append(flat(p.grad for p in model.parameters()) - clean)
            optimizer.zero_grad()
        seen[weights] = torch.stack(noise)
        std = math.hypot(*(w * t for w, t in zip(weights, taus.values(), strict=True)))
        assert float(seen[weights].std()) == pytest.approx(std, rel=4 / math.sqrt(2 * 60 * d))
    apart = seen[1.0, 0.0].flatten(), seen[0.0, 1.0].flatten()
    assert abs(float(torch.corrcoef(torch.stack(apart))[0, 1])) < 4 / math.sqrt(60 * d)


def test_the_release_says_what_noise_is_left_in_it():
    for weights, sigma in (({"retain": 2.0, "forget": 1.0}, 3.0), ({"retain": 1, "forget": 1}, 0)):
        private, _ = make(net(), sigma, Fixed(weights))
        tensors = [torch.zeros(3), torch.zeros(2)]
        released = private.noise.privatise(Clipped([*tensors, *[t.clone() for t in tensors]], 1.0))
        std = math.hypot(weights["retain"] * sigma * 0.4 / 16, 2 * sigma * 0.7 / 8)
        assert released.noise_multiplier * released.sensitivity == pytest.approx(std)


# -- accounting ------------------------------------------------------------------------------------


def test_every_release_is_charged():
    plan = plan_privacy(n=240, batch=24, steps=5, noise_multiplier=1.5, delta=1e-5)
    ledger, model = Ledger(plan), net()
    private, optimizer = make(model, 1.5, ledger=ledger)
    step(model, private, optimizer)
    charged = [(key, count) for key, count in ledger._history]
    assert charged == [((1.5, 0.1), 1), ((3.0, 0.1), 1)]
    own, ledger = net(), Ledger(plan)
    private, optimizer = make(own, 1.5, ledger=ledger, sampling_probability=0.2)
    step(own, private, optimizer, forget=slice(18, 18))  # an empty batch is charged too
    assert [key for key, _ in ledger._history] == [(1.5, 0.2), (3.0, 0.2)]
    with pytest.raises(ValueError, match="probes"):
        GeN(optimizer)  # attach has marked it private
    said = " ".join(ledger.report()["assumptions"])
    assert "retain (noise multiplier 1.5, each of its samples with probability 0.2), forget" in said


def test_what_two_releases_a_step_cost_is_what_was_planned():
    plan = plan_privacy(n=240, batch=24, steps=2 * 5, noise_multiplier=1.5, delta=1e-5)
    ledger, model = Ledger(plan), net()
    rows = PerSample(model, FlatClip(1.0), expected_batch=16)
    tasks = {
        name: dataclasses.replace(task, noise_multiplier=1.5)
        for name, task in tasks_of(1.5).items()
    }
    private = PrivateTasks(rows, NGDiff(), tasks)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attach(optimizer, private, private.noise, ledger=ledger)
    for _ in range(5):
        step(model, private, optimizer)
    assert ledger.epsilon() == pytest.approx(plan.epsilon)


def test_a_fixed_order_of_batches_is_refused():
    """The ledger counts one pass over one order; two tasks may visit a sample twice in it."""
    plan = plan_privacy(
        n=240, batch=24, steps=5, noise_multiplier=1.5, delta=1e-5, sampling="unamplified"
    )
    with pytest.raises(ValueError, match="accounting is for poisson sampling"):
        make(net(), 1.5, ledger=Ledger(plan))


def test_a_private_task_without_noise_is_charged_as_such():
    plan = plan_privacy(n=240, batch=24, steps=5, noise_multiplier=1.5, delta=1e-5)
    ledger, model = Ledger(plan), net()
    private, optimizer = make(model, 0.0, ledger=ledger)
    step(model, private, optimizer)
    assert ledger.epsilon() == math.inf


def test_a_budget_with_room_for_one_release_pays_for_none():
    plan = plan_privacy(n=240, batch=24, steps=5, noise_multiplier=1.5, delta=1e-5)
    one = plan_privacy(n=240, batch=24, steps=1, noise_multiplier=1.5, delta=1e-5).epsilon
    model = net()
    ledger = Ledger(dataclasses.replace(plan, target_epsilon=1.0001 * one))
    private, optimizer = make(model, 1.5, ledger=ledger)
    before = flat(model.parameters()).clone()
    with pytest.raises(BudgetExceeded):
        step(model, private, optimizer)
    assert ledger.steps == 0
    assert torch.equal(flat(model.parameters()), before)


def test_seeds_give_different_noise_to_each_row_and_states_resume():
    model = net()
    private, optimizer = make(model, 1.0, seed=3, filters=[Doppler.first_order(0.9)])
    assert private.noise.seeded
    assert not make(net(), 1.0)[0].noise.seeded
    step(model, private, optimizer)
    state = private.noise.state_dict()
    roots = [one["root"] for one in state["noises"].values()]
    assert roots[0] != roots[1]
    other, _ = make(net(), 1.0, seed=9)
    other.noise.load_state_dict(state)
    zeros = [torch.zeros(4), torch.zeros(4)]
    a = private.noise.privatise(Clipped([t.clone() for t in zeros], 1.0)).tensors
    b = other.noise.privatise(Clipped(zeros, 1.0)).tensors
    assert torch.equal(a[0], b[0])
    with pytest.raises(ValueError, match="not the noise of the tasks retain, forget"):
        other.noise.load_state_dict({"kind": "gaussian"})


# -- refusals --------------------------------------------------------------------------------------


def test_the_tasks_noise_is_for_their_rows_and_their_rows_for_it():
    """Else one task's gradient would get the noise of another sensitivity, without a word."""
    model = net()
    rows = PerSample(model, FlatClip(100.0), expected_batch=16)
    one = {"retain": tasks_of(1.0)["retain"]}
    private = PrivateTasks(rows, NGDiff(), one)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"write attach\(optimizer, private, private.noise\)"):
        attach(optimizer, rows, private.noise)
    wrong = attach(optimizer, private, Gaussian(1.0))
    private.backward(retain=losses(model, RETAIN))
    before = flat(model.parameters()).clone()
    with pytest.raises(RuntimeError, match="by nothing else than their own mechanism"):
        optimizer.step()
    assert torch.equal(flat(model.parameters()), before)
    assert all(p.grad is None for p in model.parameters())
    wrong.detach()
    right = attach(optimizer, private, private.noise)
    private.backward(retain=losses(model, RETAIN))
    optimizer.step()
    right.detach()
    assert not private.noise.connected


def test_samples_of_one_forward_pass_are_not_mistaken_for_two_tasks():
    """Losses of a part of a batch would be paired with other samples' inputs."""
    model = net()
    private, _ = make(model)
    both = cross_entropy(model(X), Y, reduction="none")
    with pytest.raises(ValueError, match="18 losses for a batch of 30 samples"):
        private.backward(retain=both[RETAIN], forget=-both[FORGET])
    assert not private.armed


def test_refusals():
    model = net()
    private, optimizer = make(model)
    with pytest.raises(ValueError, match=r"^the tasks are retain, forget, found losses for retain"):
        private.backward(retain=losses(model, RETAIN))
    with pytest.raises(RuntimeError, match=r"without rows\.backward"):
        optimizer.step()
    private.backward(retain=losses(model, RETAIN), forget=losses(model, FORGET) * math.nan)
    with pytest.raises(FloatingPointError, match=r"of forget is not finite"):
        optimizer.step()
    for wrong in (LossNormalised(), Blur(metric="optimizer"), PrimalDual()):
        with pytest.raises(ValueError, match="private tasks release gradients only"):
            make(net(), weighting=wrong)
    for none in ({}, {"retain": PublicTask(expected_batch=4)}):
        with pytest.raises(ValueError, match="no private task"):
            PrivateTasks(PerSample(net(), FlatClip(1.0), expected_batch=1), NGDiff(), none)
    fine = tasks_of(1.0)["retain"]
    for bad in (
        {"noise_multiplier": -1}, {"sampling_probability": 1.5}, {"sampling_probability": 0.0},
        {"expected_batch": 0}, {"expected_batch": -8}, {"expected_batch": math.inf},
        {"expected_batch": math.nan},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="found"):
            dataclasses.replace(fine, **bad)
    with pytest.raises(TypeError, match="sampling_probability"):  # no default can be right
        PrivateTask(clip=FlatClip(1.0), noise_multiplier=1.0, expected_batch=4)
    with pytest.raises(ValueError, match="expected batch must be positive, found 0"):
        PublicTask(expected_batch=0)
