"""When a batch is proved on: what counts as a proof, and what does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

MIXED = "depends on other samples"


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def squares(model: nn.Module, *batch: Tensor) -> Tensor:  # [B]
    return model(*batch).square().flatten(1).sum(1)


def test_a_mode_that_changes_before_the_backward_is_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 4, 2, batch_first=True, dropout=0.5))
    rows = PerSample(model, FlatClip(), expected_batch=1)
    losses = model(torch.randn(5, 6, 3))[0].flatten(1).sum(1)
    model.eval()
    with pytest.raises(RuntimeError, match=r"'1'.*mode"):
        rows.backward(losses)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("first", ["zero head", "zero losses", "not finite"])
def test_gradients_that_show_nothing_prove_nothing(first, engine):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.body(x))
            return self.head(h - h.mean(0)) + 1

    model = Centred().double()
    scale = {"zero head": 1.0, "zero losses": 0.0, "not finite": float("nan")}[first]
    if first == "zero head":
        nn.init.zeros_(model.head.weight)
    rows = PerSample(model, FlatClip(), expected_batch=1, engine=engine)
    for _ in range(2):
        rows.backward(scale * squares(model, x(5, 3)))
    nn.init.normal_(model.head.weight)
    for _ in range(6):  # and a refusal is no proof
        with pytest.raises(ValueError, match=MIXED):
            rows.backward(squares(model, x(5, 3)))


def proofs(rows: PerSample) -> list[int]:
    """Counts the batches that are proved on."""
    judge, seen = rows._adaptation.judge, [0]

    def counting(*arguments, **options):
        seen[0] += 1
        return judge(*arguments, **options)

    rows._adaptation.judge = counting  # type: ignore[method-assign]
    return seen


def test_a_settled_model_is_proved_on_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    rows = PerSample(model, FlatClip(), expected_batch=1)
    seen = proofs(rows)
    for B in (5, 6, 7, 5, 9):
        rows.backward(squares(model, x(B, 3)))
    assert seen == [1]
    rows.backward(squares(model, x(1, 3)))  # a batch of one looks like nothing else
    rows.backward(squares(model, x(1, 3)))
    assert seen == [2]


def test_a_layer_that_never_gets_a_gradient_is_proved_on_ever_less():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.on = nn.Linear(3, 4), nn.Linear(3, 4), 0.0

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.on * self.b(x)

    model = Unused().double()
    rows = PerSample(model, FlatClip(), expected_batch=1)
    seen = proofs(rows)
    for _ in range(20):
        rows.backward(squares(model, x(5, 3)))
    assert seen == [6]  # 1, 2, 3, 4, 8, 16
    model.on = 1.0
    for _ in range(5):  # the first gradient that comes makes the next batch due
        rows.backward(squares(model, x(5, 3)))
    assert seen == [7]


def test_two_forwards_before_the_layout_changes():
    """The second of them was recorded by hooks that are gone: exact all the same, no more moves."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.position = nn.Linear(3, 3), nn.Embedding(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.body(x) + self.position(torch.arange(x.shape[1])))

    model = Own().double()
    rows = PerSample(model, FlatClip(1e9), expected_batch=1, strict=True)
    for _ in range(3):
        batches = [x(5, 4, 3), x(5, 4, 3)]
        expected = torch.autograd.grad(squares(model, torch.cat(batches)).sum(), rows.parameters)
        for losses in [squares(model, batch) for batch in batches]:
            rows.backward(losses)
        torch.testing.assert_close(list(rows.take().tensors), list(expected))
    assert rows._adaptation._moves == 1


def test_vanishing_gradients_are_no_mixing():
    """Below the normal numbers, scaling by a power of two is not exact."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(300)])
    rows = PerSample(model, FlatClip(), expected_batch=1)
    for _ in range(3):
        rows.backward(squares(model, torch.randn(8, 8)))
