"""PDU's flattening loss, and the multiplier that follows the retain loss."""

from __future__ import annotations

import math

import pytest
import torch

from steelyard.objectives import CE, PDU, PrimalDual
from steelyard.objectives.tokens import Tokens
from steelyard.rows.tasks import Tasks
from steelyard.types import Stateful, Weighting


class Table(torch.nn.Module):
    def __init__(self, z):
        super().__init__()
        self.z = torch.nn.Parameter(torch.tensor(z, dtype=torch.float64))

    def forward(self, tokens):
        return self.z.expand(tokens.shape[0], -1, -1)


@pytest.fixture
def one() -> Tokens:
    """A prompt of two tokens, an answer of one, one token of padding."""
    ids = torch.tensor([[0, 0, 1, 0]])
    labels = torch.tensor([[-100, -100, 1, -100]])
    return Tokens(ids, labels, torch.tensor([[1, 1, 1, 0]]))


def test_by_hand(one):
    model = Table([[9.0, 0.0, 0.0], [4.0, 1.0, 1.0], [6.0, 3.0, 0.0], [100.0, 0.0, 0.0]])
    assert PDU()(model, one).item() == pytest.approx((4 - 2) ** 2)
    expected = ((9 - 3) ** 2 + (4 - 2) ** 2 + (6 - 3) ** 2) / 3
    assert PDU(positions="all")(model, one).item() == pytest.approx(expected)


def test_it_ends_at_the_uniform_distribution(new_model, forget):
    model = new_model("own")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        PDU()(model, forget).backward()
        optimizer.step()
    assert PDU()(model, forget).item() < 1e-2
    assert CE()(model, forget).item() == pytest.approx(math.log(24), abs=0.1)


def test_the_multiplier_follows_the_retain_loss():
    """lambda <- max(0, lambda + step (R - eps)), for 100 losses, beside the formula written out."""
    dual = PrimalDual(epsilon=0.4, initial=2.0, step=0.5)
    losses = torch.rand(100, generator=torch.Generator().manual_seed(0)).tolist()
    expected, floors = 2.0, 0
    for loss in losses:
        expected = max(0.0, expected + 0.5 * (loss - 0.4))
        floors += expected == 0
        assert dual.update(loss) == pytest.approx(expected, abs=1e-12)
    assert dual.updates == 100
    low = PrimalDual(epsilon=0.4, initial=0.1, step=1.0)
    assert low.update(0.0) == 0.0
    assert low.update(0.0) == 0.0  # it does not run up a debt below zero
    assert low.update(torch.tensor(0.9)) == pytest.approx(0.5)


def test_warm_up_changes_nothing():
    dual = PrimalDual(epsilon=0.0, initial=7.0, warmup=2)
    assert [dual.update(1.0) for _ in range(4)] == [7.0, 7.0, 8.0, 9.0]


def test_it_weighs_named_rows_in_tasks(new_model, forget):
    """.grad = w_F grad F + lambda grad R with the lambda from before the step's own update."""
    model = new_model()
    dual = PrimalDual(epsilon=0.1, initial=3.0, step=2.0, forget=0.5)
    tasks = Tasks(model.parameters(), dual)
    parameters = list(model.parameters())
    for _ in range(3):
        multiplier = dual.multiplier
        retain, flat = CE()(model, forget), PDU()(model, forget)
        expected = torch.autograd.grad(0.5 * flat + multiplier * (retain - 0.1), parameters)
        record = tasks.backward(
            forget=PDU().per_sample(model, forget), retain=CE().per_sample(model, forget)
        )
        for p, g in zip(parameters, expected, strict=True):
            torch.testing.assert_close(p.grad, g, atol=1e-8, rtol=1e-6)
        assert record.weights == {"forget": 0.5, "retain": multiplier}
        assert dual.multiplier == pytest.approx(
            max(0.0, multiplier + 2 * (retain.item() - 0.1)), abs=1e-9
        )


def test_per_epoch_the_step_does_not_update(new_model, forget):
    model = new_model()
    dual = PrimalDual(initial=3.0, per="epoch")
    Tasks(model.parameters(), dual).backward(
        retain=CE()(model, forget), forget=PDU()(model, forget)
    )
    assert (dual.multiplier, dual.updates) == (3.0, 0)
    dual.update(1.3)
    assert dual.multiplier == pytest.approx(4.0)


def test_it_resumes():
    dual = PrimalDual(epsilon=0.2, initial=1.0, warmup=1)
    dual.update(0.5)
    other = PrimalDual(epsilon=0.2, initial=1.0, warmup=1)
    other.load_state_dict(dual.state_dict())
    assert other.update(0.7) == dual.update(0.7) == pytest.approx(1.5)
    assert isinstance(dual, Weighting)
    assert isinstance(dual, Stateful)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="step=-1: use 0 or more"):
        PrimalDual(step=-1)
    with pytest.raises(ValueError, match="per='hour': use 'step' or 'epoch'"):
        PrimalDual(per="hour")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="the retain loss is nan"):
        PrimalDual().update(math.nan)
    with pytest.raises(ValueError, match="the rows are a, b: PDU weighs"):
        PrimalDual().given(["a", "b"], torch.zeros(2))
    with pytest.raises(ValueError, match="by their names"):
        PrimalDual()(torch.eye(2))
