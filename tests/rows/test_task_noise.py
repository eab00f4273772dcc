"""The noise of private tasks: the Gram matrix without it, public tasks, weights that are none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard import Ledger, PerSample, PrivateTask, PrivateTasks, PublicTask, attach, plan_privacy
from steelyard.rows.task_noise import debiased
from steelyard.weightings.clip import FlatClip
from steelyard.weightings.ngdiff import NGDiff
from steelyard.weightings.scalarize import Fixed

X = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (30,), generator=torch.Generator().manual_seed(1))
RETAIN, FORGET = slice(0, 18), slice(18, 30)
BOUND, SIGMA, BATCH = 0.7, 3.0, 8
SECRET = PrivateTask(
    clip=FlatClip(BOUND), noise_multiplier=SIGMA, expected_batch=BATCH, sampling_probability=0.1
)


def made(weighting=None, ledger=None, retain=None):
    """Model, rows, optimizer; retain rows are public unless said otherwise."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    tasks = {"retain": retain or PublicTask(expected_batch=18), "forget": SECRET}
    rows = PerSample(model, FlatClip(1.0), expected_batch=1)  # neither of them is used
    private = PrivateTasks(rows, weighting or NGDiff(), tasks)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attach(optimizer, private, private.noise, ledger=ledger)
    return model, private, optimizer


def losses(model, part, sign=1.0):
    return sign * cross_entropy(model(X[part]), Y[part], reduction="none")


def released(model, private, optimizer):
    """What one step has put into `.grad`."""
    private.backward(retain=losses(model, RETAIN), forget=losses(model, FORGET, -1.0))
    optimizer.step()
    return flat(p.grad for p in model.parameters())


def flat(tensors):
    return torch.cat([t.detach().reshape(-1).clone() for t in tensors])


# -- the Gram matrix -------------------------------------------------------------------------------


def test_debiasing_removes_the_noise_from_the_diagonal():
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(2, 400, dtype=torch.float64, generator=g)
    tau = torch.tensor([0.8, 0.3], dtype=torch.float64)
    raw, clean = [], []
    for _ in range(400):
        noised = rows + tau[:, None] * torch.randn(2, 400, dtype=torch.float64, generator=g)
        raw.append(noised @ noised.T)
        clean.append(debiased(raw[-1], tau, 400))
    truth = rows @ rows.T
    raw, clean = torch.stack(raw).mean(0), torch.stack(clean).mean(0)
    torch.testing.assert_close(clean, truth, rtol=0.01, atol=3.0)
    assert float(raw[0, 0] - truth[0, 0]) == pytest.approx(400 * 0.64, rel=0.05)


def test_a_row_below_its_noise_gets_a_bounded_weight():
    tau, d = torch.tensor([1.0, 0.0], dtype=torch.float64), 100
    matrix = torch.tensor([[90.0, 40.0], [40.0, 4.0]], dtype=torch.float64)  # less than d tau^2
    found = debiased(matrix, tau, d)
    assert found[0, 0] == pytest.approx(math.sqrt(200))
    assert found[1, 1] == 4
    assert found[0, 1] == pytest.approx(math.sqrt(math.sqrt(200) * 4))  # a cosine of 1, not more
    untouched = torch.tensor([[9.0, -2.0], [-2.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(debiased(untouched, 0 * tau, d), untouched)


# -- public tasks ----------------------------------------------------------------------------------


def test_a_public_task_is_neither_noised_nor_clipped_nor_charged():
    plan = plan_privacy(n=260, batch=26, steps=5, noise_multiplier=SIGMA, delta=1e-5)
    ledger = Ledger(plan)
    model, private, optimizer = made(Fixed({"retain": 1.0, "forget": 0.0}), ledger)
    clean = flat(torch.autograd.grad(losses(model, RETAIN).mean(), list(model.parameters())))
    torch.testing.assert_close(released(model, private, optimizer), clean)
    assert private.record.norms["retain"] == pytest.approx(float(clean.norm()))
    assert ledger._history == [((SIGMA, 0.1), 1)]
    assert any("without noise: retain" in said for said in ledger.report()["assumptions"])
    assert private.noise.noise_multiplier == SIGMA


def test_the_private_one_beside_it_is_clipped_and_noised():
    model, private, optimizer = made(Fixed({"retain": 0.0, "forget": 1.0}))
    clean = 0.0
    for i in range(FORGET.start, FORGET.stop):
        loss = losses(model, slice(i, i + 1), -1.0)[0]
        g = flat(torch.autograd.grad(loss, list(model.parameters())))
        clean = clean + g * min(1.0, BOUND / float(g.norm())) / BATCH
    optimizer.param_groups[0]["lr"] = 1e-30  # the parameters stay
    noise = torch.stack([released(model, private, optimizer) - clean for _ in range(60)])
    error = 4 / math.sqrt(2 * noise.numel())
    assert float(noise.std()) == pytest.approx(SIGMA * BOUND / BATCH, rel=error)
    assert float(noise.mean(0).std()) < 2 * SIGMA * BOUND / BATCH / math.sqrt(60)


# -- weights ---------------------------------------------------------------------------------------


def test_weights_that_are_none_are_refused():
    for wrong in (lambda gram: torch.ones(3), lambda gram: torch.tensor([1.0, math.nan])):
        model, private, optimizer = made(wrong)
        before = flat(model.parameters())
        with pytest.raises(ValueError, match="it must give one finite number for each"):
            released(model, private, optimizer)
        assert torch.equal(flat(model.parameters()), before)


def test_the_weighting_sees_no_losses_and_only_released_rows():
    seen = {}

    class Curious:
        def given(self, names, losses):
            seen["losses"] = losses
            return self

        def __call__(self, gram):
            seen["gram"] = gram.clone()
            return torch.ones(2)

    model, private, optimizer = made(Curious(), retain=SECRET)
    optimizer.param_groups[0]["lr"] = 1e-30  # the same rows twice
    released(model, private, optimizer)
    assert torch.isnan(seen["losses"]).all()
    first = seen["gram"]
    torch.testing.assert_close(first, private.record.gram)
    released(model, private, optimizer)
    assert (seen["gram"] != first).any()  # other noise
