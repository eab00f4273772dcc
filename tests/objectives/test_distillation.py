"""KL, UNDIAL and CE-U: zero gradients where they must be, and targets without the answer."""

from __future__ import annotations

import pytest
import torch

from steelyard.objectives import CEU, KL, UNDIAL, Reference
from steelyard.objectives.tokens import Tokens, logits, token_nll


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


class Table(torch.nn.Module):
    """A model whose logits are a table [T, V], the same for every row."""

    def __init__(self, z):
        super().__init__()
        self.z = torch.nn.Parameter(z)

    def forward(self, tokens):
        return self.z[: tokens.shape[1]].expand(tokens.shape[0], -1, -1)


@pytest.fixture
def one() -> Tokens:
    ids = torch.tensor([[0, 1, 2, 1]])
    return Tokens(ids, torch.tensor([[-100, 1, 2, 1]]), torch.ones_like(ids))


def test_kl_by_hand_and_its_direction(one):
    p, p0 = torch.tensor([[0.25, 0.25, 0.5]] * 4), torch.tensor([[0.5, 0.25, 0.25]] * 4)
    model, reference = Table(p.double().log()), Reference(Table(p0.double().log()))
    # sum p0 log(p0 / p) = 0.5 log 2 + 0 + 0.25 log(1/2) = 0.25 log 2
    expected = 0.25 * torch.tensor(2.0).double().log()
    torch.testing.assert_close(KL()(model, one, reference), expected)
    skewed = Table(torch.tensor([[0.9, 0.05, 0.05]] * 4).double().log())
    forth = KL()(skewed, one, reference)
    back = KL()(reference.model, one, Reference(skewed))
    assert abs((forth - back).item()) > 0.1


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_kl_is_zero_with_zero_gradient_at_the_reference(positions, new_model, moved, forget):
    model = new_model()
    reference = Reference.of(model)
    loss = KL(positions=positions)(model, forget, reference)
    assert abs(float(loss.detach())) < 1e-12
    assert gradient(loss, model).norm() < 1e-10
    moved(model)
    loss = KL(positions=positions)(model, forget, reference)
    assert float(loss.detach()) > 1e-2
    assert gradient(loss, model).norm() > 1e-3


def test_kl_over_all_positions_is_the_public_form_where_nothing_is_padded(
    new_model, moved, forget, padded
):
    """open-unlearning: kl_div of the flattened logits, 'batchmean'; with padding it shrinks."""
    model = new_model()
    reference = Reference.of(model)
    moved(model)

    def public(tokens):
        log_p, log_p0 = (
            torch.log_softmax(z, -1).flatten(0, 1)
            for z in (logits(model, tokens), reference.logits(tokens))
        )
        kl = torch.nn.functional.kl_div(log_p, log_p0, reduction="batchmean", log_target=True)
        return kl.item()

    one = forget.rows(slice(2, 3))
    ours = KL(positions="all")
    assert ours(model, one, reference).item() == pytest.approx(public(one), rel=1e-10)
    wide = padded(one, 6)
    assert ours(model, wide, reference).item() == pytest.approx(public(one), rel=1e-10)
    assert abs(public(wide) / public(one) - 1) > 0.05


def test_undial_with_kappa_zero_is_at_rest_at_the_reference(new_model, forget):
    model = new_model()
    reference = Reference.of(model)
    assert gradient(UNDIAL(kappa=0)(model, forget, reference), model).norm() < 1e-10
    assert gradient(UNDIAL(kappa=3)(model, forget, reference), model).norm() > 1e-3


def test_undial_by_hand(one):
    """Equal logits, kappa = log 2: targets (2, 1, 2)/5 where 1 is the answer, (2, 2, 1)/5 for 2."""
    reference = Reference(Table(torch.zeros(4, 3, dtype=torch.float64)))
    model = Table(torch.tensor([[0.5, 0.25, 0.25]] * 4).double().log())
    two = torch.tensor(2.0).double().log()
    first = 0.4 * two + 0.2 * 2 * two + 0.4 * 2 * two
    second = 0.4 * two + 0.4 * 2 * two + 0.2 * 2 * two
    expected = (2 * first + second) / 3
    torch.testing.assert_close(UNDIAL(kappa=float(two))(model, one, reference), expected)


def test_undial_moves_the_answer_to_its_target(one):
    reference = Reference(Table(torch.zeros(4, 3, dtype=torch.float64)))
    model = Table(torch.zeros(4, 3, dtype=torch.float64))
    for _ in range(400):
        (g,) = torch.autograd.grad(UNDIAL(kappa=10)(model, one, reference), [model.z])
        with torch.no_grad():
            model.z.sub_(5 * g)
    p = model.z.softmax(-1)
    assert p[0, 1] < 1e-2
    assert p[1, 2] < 1e-2
    torch.testing.assert_close(p[0, 0], p[0, 2])


def test_ceu_has_a_target_without_the_answer(one):
    """Logit gradient p - q: at the answer p_y - 0, elsewhere p_v - p_v / (1 - p_y)."""
    p = torch.tensor([[0.2, 0.5, 0.3]] * 4).double()
    model = Table(p.log())
    (g,) = torch.autograd.grad(CEU(skip=0)(model, one), [model.z])
    torch.testing.assert_close(g[0], torch.tensor([0.2 - 0.4, 0.5, 0.3 - 0.6]).double() / 3)
    torch.testing.assert_close(g[1], torch.tensor([0.2 - 2 / 7, 0.5 - 5 / 7, 0.3]).double() / 3)
    assert not g[3].any()


def test_ceu_has_the_gradient_of_unlikelihood(new_model, forget):
    model = new_model()
    nll, mask = token_nll(logits(model, forget), forget.labels)
    unlikely = -torch.log1p(-(-nll).exp().where(mask, 0.0))
    per_sample = unlikely.sum(1) / mask.sum(1)
    torch.testing.assert_close(
        gradient(CEU(skip=0)(model, forget), model), gradient(per_sample.mean(), model)
    )


def test_ceu_leaves_the_first_tokens_alone(new_model, forget):
    model = new_model()
    later = forget.labels.clone()
    for row, first in enumerate((3, 1, 2)):  # where the answers begin
        later[row, first] = -100
    rest = Tokens(forget.input_ids, later, forget.attention_mask)
    torch.testing.assert_close(
        CEU(skip=1).per_sample(model, forget), CEU(skip=0).per_sample(model, rest)
    )
    with pytest.raises(ValueError, match=r"rows \[1\] have no answer token behind the first 2"):
        CEU(skip=2)(model, forget)
    with pytest.raises(ValueError, match="skip=-1: use 0 or more"):
        CEU(skip=-1)
