"""DPO by hand, at p = p0, and its two namesakes."""

from __future__ import annotations

import math

import pytest
import torch

from steelyard.objectives import DPO, NPO, AltPO, IdkDPO, Pair, Reference
from steelyard.objectives.tokens import Tokens

NAMES = (DPO, IdkDPO, AltPO)


class Fixed(torch.nn.Module):
    """A model that predicts the same distribution everywhere."""

    def __init__(self, *p: float):
        super().__init__()
        self.z = torch.nn.Parameter(torch.tensor(p, dtype=torch.float64).log())

    def forward(self, tokens):
        return self.z.expand(*tokens.shape, -1)


def answers(*rows: list[int]) -> Tokens:
    size = max(map(len, rows))
    labels = torch.tensor([[-100, *row, *[-100] * (size - len(row))] for row in rows])
    mask = (labels != -100).long()
    mask[:, 0] = 1
    return Tokens(labels.clamp(min=0), labels, mask)


@pytest.mark.parametrize("objective", NAMES)
def test_by_hand(objective):
    """p = (.5, .25, .25), p0 = (.25, .25, .5): a token 0 doubles, 1 stays, 2 halves.

    Row 0 prefers "0 0" (ratio 4) to "2" (ratio 1/2): margin 3 log 2. Row 1 prefers "1" (ratio 1)
    to "0 1" (ratio 2): margin -log 2.
    """
    pair = Pair(answers([0, 0], [1]), answers([2], [0, 1]))
    p0 = Reference(Fixed(0.25, 0.25, 0.5))
    got = objective(beta=1.0).per_sample(Fixed(0.5, 0.25, 0.25), pair, p0)
    expected = [2 * math.log(1 + 1 / 8), 2 * math.log(1 + 2)]
    assert got.tolist() == pytest.approx(expected, abs=1e-12)
    half = objective(beta=0.5)(Fixed(0.5, 0.25, 0.25), pair, p0)
    first, second = (4 * math.log(1 + 8**-0.5), 4 * math.log(1 + 2**0.5))
    assert half.item() == pytest.approx((first + second) / 2, abs=1e-12)


@pytest.mark.parametrize("objective", NAMES)
def test_at_the_reference(objective, new_model, pair):
    model = new_model()
    loss = objective(beta=0.1).per_sample(model, pair, Reference.of(model))
    assert loss.tolist() == pytest.approx([20 * math.log(2)] * 3, abs=1e-9)


def test_a_chosen_answer_that_never_changes_leaves_npo(new_model, moved, forget, pair):
    """With the chosen answer at its reference likelihood, DPO is NPO of the rejected one."""
    p0 = Reference(Fixed(0.25, 0.25, 0.5))
    model = Fixed(0.5, 0.25, 0.25)
    rejected = answers([2, 0], [0])
    same = Pair(answers([1], [1, 1]), rejected)
    torch.testing.assert_close(
        DPO(beta=0.3).per_sample(model, same, p0), NPO(beta=0.3).per_sample(model, rejected, p0)
    )


def test_a_step_prefers_the_chosen_answer(new_model, pair):
    model = new_model()
    reference = Reference.of(model)
    losses = []
    for _ in range(20):
        loss = DPO()(model, pair, reference)
        losses.append(float(loss.detach()))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.02 * g
    assert losses[-1] < 0.5 * losses[0]


def test_beta_must_be_positive():
    for objective in NAMES:
        with pytest.raises(ValueError, match="beta=0: use a number above 0"):
            objective(beta=0)
