"""NPO and SimNPO: by hand, at p = p0, and gradient ascent as beta goes to 0."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from steelyard.objectives import GA, NPO, Reference, SimNPO
from steelyard.objectives.tokens import Tokens


class Fixed(torch.nn.Module):
    """A model that predicts the same distribution everywhere: log p by hand."""

    def __init__(self, *p: float):
        super().__init__()
        self.z = torch.nn.Parameter(torch.tensor(p, dtype=torch.float64).log())

    def forward(self, tokens):
        return self.z.expand(*tokens.shape, -1)


@pytest.fixture
def two() -> Tokens:
    """Answers "1 2" and "2", each behind one token."""
    ids = torch.tensor([[0, 1, 2], [0, 2, 0]])
    labels = torch.tensor([[-100, 1, 2], [-100, 2, -100]])
    return Tokens(ids, labels, torch.tensor([[1, 1, 1], [1, 1, 0]]))


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_npo_by_hand(two):
    """p(y) = 1/8 and 1/2 under p, 1/16 and 1/4 under p0: ratios of 2, so 2/beta log(1 + 2^beta)."""
    model, p0 = Fixed(0.25, 0.25, 0.5), Fixed(0.5, 0.25, 0.25)
    got = NPO(beta=0.5).per_sample(model, two, Reference(p0))
    expected = 4 * math.log(1 + 2**0.5)
    assert got.tolist() == pytest.approx([expected, expected], abs=1e-12)
    halves = NPO(beta=1.0).per_sample(p0, two, Reference(model))  # the other way round
    assert halves.tolist() == pytest.approx([2 * math.log(1.5)] * 2, abs=1e-12)


def test_simnpo_by_hand(two):
    """NLL/len(y) = (2 + 1)/2 log 2 and log 2; beta 2, margin log 2: sigmoids of log 2 and of 0."""
    model = Fixed(0.25, 0.25, 0.5)
    got = SimNPO(beta=2.0, margin=math.log(2)).per_sample(model, two)
    assert got.tolist() == pytest.approx([math.log(1.5), math.log(2)], abs=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_at_the_reference_is_two_over_beta_log_two(beta, new_model, forget):
    model = new_model()
    got = NPO(beta=beta).per_sample(model, forget, Reference.of(model))
    assert got.tolist() == pytest.approx([2 / beta * math.log(2)] * 3, abs=1e-10)


def test_npo_becomes_summed_gradient_ascent(new_model, moved, forget):
    model = new_model()
    reference = Reference.of(model)
    moved(model)

    def compare(beta, over):
        a = gradient(NPO(beta=beta)(model, forget, reference), model)
        b = gradient(GA(over=over)(model, forget), model)
        return float(torch.cosine_similarity(a, b, dim=0)), float(a.norm() / b.norm())

    cosine, ratio = compare(1e-5, "sum")
    assert cosine > 0.999999
    assert ratio == pytest.approx(1, abs=1e-3)
    assert compare(1e-5, "mean")[0] < 0.999  # the sum is the right limit, not the token mean
    assert compare(3.0, "sum")[0] < 0.999  # and beta matters


def test_npo_slows_down_where_ascent_does_not(new_model, forget):
    """As log p(y) falls below log p0(y), the gradient of NPO fades: factor 2 sig(beta ratio)."""
    model = new_model()
    reference = Reference.of(model)
    one = forget.rows(slice(0, 1))
    for _ in range(10):
        grads = torch.autograd.grad(GA(over="sum")(model, one), list(model.parameters()))
        norm = torch.stack([g.norm() for g in grads]).norm()
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= g / norm
    nll = GA(over="sum")(model, one)  # = log p(y)
    ratio = (nll - GA(over="sum")(copy.deepcopy(reference.model), one)).item()
    assert ratio < -5
    ours = gradient(NPO(beta=1.0)(model, one, reference), model)
    ascent = gradient(GA(over="sum")(model, one), model)
    torch.testing.assert_close(ours, 2 / (1 + math.exp(-ratio)) * ascent)


def test_both_are_finite_far_from_the_reference(two):
    model, p0 = Fixed(1.0, 1e-300, 1e-300), Fixed(0.2, 0.4, 0.4)
    for objective in (NPO(beta=10.0), SimNPO(beta=10.0)):
        for a, b in ((model, p0), (p0, model)):
            loss = objective(a, two, Reference(b))
            assert loss.isfinite()
            assert gradient(loss, a).isfinite().all()


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_must_be_positive(beta):
    for objective in (NPO, SimNPO):
        with pytest.raises(ValueError, match="use a number above 0"):
            objective(beta=beta)
