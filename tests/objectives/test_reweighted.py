"""WGA and SatImp: weights by hand, without a gradient of their own."""

from __future__ import annotations

import math

import pytest
import torch

from steelyard.objectives import GA, WGA, SatImp
from steelyard.objectives.tokens import Tokens, logits, token_nll


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


class Table(torch.nn.Module):
    def __init__(self, p):
        super().__init__()
        self.z = torch.nn.Parameter(torch.tensor(p, dtype=torch.float64).log())

    def forward(self, tokens):
        return self.z.expand(tokens.shape[0], -1, -1)


@pytest.fixture
def one() -> Tokens:
    """The answer "0 1" behind one token: with the table below p_t = 0.9 and 0.2."""
    ids = torch.tensor([[0, 0, 1]])
    return Tokens(ids, torch.tensor([[-100, 0, 1]]), torch.ones_like(ids))


TABLE = [[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]]


def test_by_hand(one):
    model = Table(TABLE)
    expected = (0.9**2 * math.log(0.9) + 0.2**2 * math.log(0.2)) / 2
    assert float(WGA(power=2)(model, one).detach()) == pytest.approx(expected, abs=1e-12)
    expected = (0.9**5 * 0.1 * math.log(0.9) + 0.2**5 * 0.8 * math.log(0.2)) / 2
    assert float(SatImp()(model, one).detach()) == pytest.approx(expected, abs=1e-12)


def test_weights_carry_no_gradient(one):
    """d/dz = weight (onehot - p): with a gradient through the weights it would be another one."""
    for objective, weights in (
        (WGA(power=2), (0.9**2, 0.2**2)),
        (SatImp(), (0.9**5 * 0.1, 0.2**5 * 0.8)),
    ):
        model = Table(TABLE)
        (g,) = torch.autograd.grad(objective(model, one), [model.z])
        expected = torch.tensor(
            [
                [0.1 * weights[0], -0.1 * weights[0]],
                [-0.8 * weights[1], 0.8 * weights[1]],
                [0.0, 0.0],
            ]
        ).double()
        torch.testing.assert_close(g, expected / 2)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_wga_descends_the_likelihood_itself(power, new_model, forget):
    """The step is that of the token mean of p_t^q / q."""
    model = new_model()
    nll, mask = token_nll(logits(model, forget), forget.labels)
    likelihood = ((-power * nll).exp() / power).where(mask, 0.0).sum(1) / mask.sum(1)
    torch.testing.assert_close(
        gradient(WGA(power=power)(model, forget), model), gradient(likelihood.mean(), model)
    )


def test_without_weights_both_are_gradient_ascent(new_model, forget):
    model = new_model()
    expected = gradient(GA()(model, forget), model)
    for objective in (WGA(power=0), SatImp(saturation=0, importance=0)):
        torch.testing.assert_close(gradient(objective(model, forget), model), expected)


def test_values_stay_within_their_bounds(new_model, forget):
    for spread in (1.0, 10.0, 60.0):
        model = new_model(spread=spread)
        for objective, bound in ((WGA(power=2), 1 / (2 * math.e)), (SatImp(), 1 / (5 * math.e))):
            values = objective.per_sample(model, forget)
            assert bool((values <= 0).all())
            assert bool((values >= -bound).all())


def test_a_certain_token_is_no_nan(one):
    model = Table([[1.0, 1e-300], [0.5, 0.5], [0.5, 0.5]])
    for importance in (0.5, 1.0):
        loss = SatImp(importance=importance)(model, one)
        assert loss.isfinite()
        assert gradient(loss, model).isfinite().all()


def test_exponents_must_not_be_negative():
    with pytest.raises(ValueError, match="power=-1: use 0 or more"):
        WGA(power=-1)
    with pytest.raises(ValueError, match="importance=nan: use 0 or more"):
        SatImp(importance=math.nan)
