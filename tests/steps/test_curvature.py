"""Curvature against Hessians written out, and the promise that a measurement changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard import AutoClip, FlatClip, Gaussian, PerSample, attach
from steelyard.steps.curvature import adam_preconditioner, measure

N, D, CLASSES = 7, 4, 3


def losses_of(model, x, y):
    return cross_entropy(model(x), y, reduction="none")


def data(n=N, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=random, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=random)


@pytest.fixture(scope="module")
def regression():
    """Logistic regression in float64, and its flat losses [N] of flat parameters."""
    torch.manual_seed(1)
    model = nn.Linear(D, CLASSES).double()
    x, y = data()

    def losses(flat):
        weight, bias = flat[: D * CLASSES].view(CLASSES, D), flat[D * CLASSES :]
        return cross_entropy(x @ weight.T + bias, y, reduction="none")

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    hessian = torch.func.hessian(lambda at: losses(at).mean())(flat)
    rows = torch.func.jacrev(losses)(flat)  # [N, d]
    return model, (x, y), hessian, rows


def within(found, exact, error, *, errors=3.0):
    assert 0 < error < 0.12 * abs(exact)  # else nearly anything would pass
    assert abs(found - exact) < errors * error


@pytest.mark.parametrize("probe", ["signs", "normal"])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_against_a_hessian_written_out(regression, probe, preconditioned):
    model, batch, H, rows = regression
    J, scales = torch.ones(len(H)).double(), None
    if preconditioned:
        J = torch.linspace(0.5, 3, len(H), dtype=torch.float64)
        scales = [J[: D * CLASSES].view(CLASSES, D), J[D * CLASSES :]]
    found = measure(model, losses_of, *batch, preconditioner=scales, probes=250, probe=probe)
    G = rows.mean(0)
    covariance = (rows - G).T @ (rows - G) / N
    bent = J[:, None] * H * J
    assert found.squared_gradient == pytest.approx(float(G @ (J * G)), rel=1e-10)
    assert found.gradient_curvature == pytest.approx(float(G @ bent @ G), rel=1e-10)
    within(found.trace, float(bent.trace()), found.trace_error)
    within(found.spread_curvature, float((bent @ covariance).trace()), found.spread_error)
    assert found.samples == N
    assert found.clip_factor == found.bound == 1.0


class Quadratic(nn.Module):
    """Losses (x - a_i)'H(x - a_i)/2: the Hessian is H everywhere."""

    def __init__(self, H):
        super().__init__()
        self.x = nn.Parameter(torch.ones(len(H), dtype=H.dtype))
        self.H = H

    def forward(self, a):
        return 0.5 * ((self.x - a) @ self.H * (self.x - a)).sum(1)


def test_hutchinson_on_a_known_hessian():
    torch.manual_seed(0)
    root = torch.randn(12, 12, dtype=torch.float64)
    H, a = root @ root.T, torch.randn(6, 12, dtype=torch.float64)
    for probe in ("signs", "normal"):
        found = measure(Quadratic(H), lambda m, a: m(a), a, probes=250, probe=probe)
        within(found.trace, float(H.trace()), found.trace_error)
        covariance = H @ a.T.cov(correction=0) @ H  # g_i = H(x - a_i)
        within(found.spread_curvature, float((H @ covariance).trace()), found.spread_error)
    diagonal = torch.arange(12.0).double().diag()
    found = measure(Quadratic(diagonal), lambda m, a: m(a), a, probes=2)
    assert found.trace == pytest.approx(66.0)
    assert found.trace_error < 1e-12  # signs: no variance without off-diagonal entries


def test_standard_error_is_that_of_the_estimate(regression):
    model, batch, H, _ = regression
    found = [measure(model, losses_of, *batch, probes=8, seed=s, probe="normal") for s in range(30)]
    spread = torch.tensor([one.trace for one in found]).std().item()
    assert spread == pytest.approx(sum(one.trace_error for one in found) / 30, rel=0.35)
    mean = sum(one.trace for one in found) / 30
    assert mean == pytest.approx(float(H.trace()), abs=3 * spread / 30**0.5)


@pytest.mark.parametrize("weighting", [AutoClip(0.5), FlatClip(1.0)])
def test_clip_factor_is_the_mean_of_the_rule(regression, weighting):
    model, batch, _, rows = regression
    exact = weighting(rows.norm(dim=1))
    assert len(exact.unique()) > 2
    for size in (None, 3):
        found = measure(model, losses_of, *batch, weighting=weighting, probes=2, micro_batch=size)
        assert found.clip_factor == pytest.approx(float(exact.mean()), rel=1e-6)
        assert found.bound == weighting.bound


def test_frozen_parameters_have_no_curvature(regression):
    model, batch, H, _ = regression
    frozen = copy.deepcopy(model)
    frozen.bias.requires_grad_(False)
    found = measure(frozen, losses_of, *batch, probes=250)
    part = float(H[: D * CLASSES, : D * CLASSES].trace())
    within(found.trace, part, found.trace_error)


def test_a_linear_loss_is_flat():
    found = measure(nn.Linear(D, 1).double(), lambda m, x: m(x).squeeze(1), data()[0], probes=2)
    assert found.squared_gradient > 0
    assert (found.trace, found.gradient_curvature, found.spread_curvature) == (0, 0, 0)


# -- nothing is disturbed ------------------------------------------------------------------------


def private_steps(measured: bool):
    """Two private steps of a model with dropout; a public measurement at the worst moments."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(D, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, CLASSES)
    ).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rows = PerSample(model, AutoClip(), expected_batch=N)
    attach(optimizer, rows, Gaussian(0.5, seed=1))
    found = []
    for step in range(2):
        x, y = data(seed=step)
        losses = losses_of(model, x, y)
        if measured:  # between forward and backward
            found.append(measure(model, losses_of, *data(9, 7), probes=2, weighting=AutoClip()))
        rows.backward(losses)
        if measured:  # between backward and step
            found.append(measure(model, losses_of, *data(5, 8), probes=2, micro_batch=2))
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()], torch.rand(1), found


def test_private_rows_and_generators_see_nothing():
    *plain, _ = private_steps(False)
    *watched, found = private_steps(True)
    for one, other in zip(plain[0], watched[0], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain[1], watched[1])
    assert found[0].trace != found[2].trace  # it did measure the moving parameters
    assert all(one.squared_gradient > 0 for one in found)


def test_the_rows_do_not_count_public_samples(regression):
    """28 token losses of 7 private samples stay an error, although 28 public ones were measured."""
    model = copy.deepcopy(regression[0])
    with PerSample(model, AutoClip(), expected_batch=N) as rows:
        losses = losses_of(model, *data())
        measure(model, losses_of, *data(28), probes=2)
        with pytest.raises(ValueError, match="28 losses for a batch of 7 samples"):
            rows.backward(losses.repeat(4))


def test_gradients_buffers_and_modes_stay():
    model = nn.Sequential(nn.Linear(D, CLASSES), nn.BatchNorm1d(CLASSES)).double().train()
    model[1].eval()
    model[0].weight.grad = torch.ones(CLASSES, D).double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model[1].train()
    measure(model, losses_of, *data(), probes=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[0].weight.grad.eq(1).all()
    assert model[0].bias.grad is None
    with pytest.raises(ValueError, match="BatchNorm"):  # no private phase could follow
        measure(model, losses_of, *data(), probes=2, weighting=AutoClip())


def test_the_copy_shares_the_parameters(regression):
    """No second set of weights in memory; and losses through the model itself come out the same."""
    model, batch, *_ = regression
    seen = []

    def looking(twin, x, y):
        seen.append(twin is not model and twin.weight is model.weight and twin.bias is model.bias)
        return losses_of(model, x, y)

    through_model = measure(model, looking, *batch, probes=2)
    assert seen
    assert all(seen)
    assert through_model == measure(model, losses_of, *batch, probes=2)


# -- Adam ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_preconditioner_is_what_adam_does(regression, kind):
    model, (x, y), *_ = regression
    model = copy.deepcopy(model)
    optimizer = kind(model.parameters(), lr=0.1, betas=(0.0, 0.99), eps=1e-3, weight_decay=0)
    for _ in range(3):  # with beta1 = 0 the update is lr J g
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        losses_of(model, x, y).mean().backward()
        optimizer.step()
    J = adam_preconditioner(optimizer)
    for p, old, j in zip(model.parameters(), before, J, strict=True):
        torch.testing.assert_close(old - p.detach(), 0.1 * j * p.grad)
    measure(model, losses_of, x, y, preconditioner=J, probes=2)


def test_adam_preconditioner_needs_a_step(regression):
    with pytest.raises(ValueError, match="exp_avg_sq: take a step"):
        adam_preconditioner(torch.optim.AdamW(regression[0].parameters()))
