"""Parameters that no layer rule reaches: a module's own code answers for them, and where that is
not possible the reference engine takes over with a warning (`strict` raises).

Each model hides a trainable parameter from the layer rules in another way; the clipped sum must be
the oracle's all the same.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip


def squares(model: nn.Module, *batch: Tensor) -> Tensor:  # [B]
    return model(*batch).square().flatten(1).sum(1)


HIDING = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("hidden.py"))))
HIDDEN, BEYOND, made = HIDING.HIDDEN, HIDING.BEYOND, HIDING.made


@pytest.mark.parametrize("groups", ["all", "parameter"])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_parameters_are_found_and_exact(oracle, name, groups):
    model, x = made(name)
    truth = oracle.per_sample(model, squares, x)
    bound = sorted(oracle.norm(row) for row in truth)[2]
    rows = PerSample(model, FlatClip(bound), expected_batch=1, groups=groups, strict=True)
    lists = [rows.names] if groups == "all" else [[name] for name in rows.names]
    expected = oracle.clipped_sum(truth, lists, "flat", bound)
    for _ in range(5):  # the first batches change the layout, the last ones are past the proof
        rows.backward(squares(model, x))
        got = dict(zip(rows.names, rows.take().tensors, strict=True))
        assert oracle.relative_error(got, expected, rows.names) < 1e-12
    assert rows.engine == "book-keeping"
    rows.close()


@pytest.mark.parametrize("name", BEYOND)
def test_the_reference_engine_takes_over_and_is_exact(oracle, name):
    model, x = made(name)
    truth = oracle.per_sample(model, squares, x)
    bound = sorted(oracle.norm(row) for row in truth)[2]
    rows = PerSample(model, FlatClip(bound), expected_batch=1)
    expected = oracle.clipped_sum(truth, [rows.names], "flat", bound)
    with pytest.warns(UserWarning, match="the reference engine takes over") as said:  # noqa: PT031
        for _ in range(5):
            rows.backward(squares(model, x))
            got = dict(zip(rows.names, rows.take().tensors, strict=True))
            assert oracle.relative_error(got, expected, rows.names) < 1e-12
    assert rows.engine == "reference"
    assert len(said) == 1


@pytest.mark.parametrize("name", BEYOND)
def test_strict_raises_and_names_what_is_wrong(name):
    model, x = made(name)
    with pytest.raises(ValueError, match=r"strict"):  # noqa: PT012  # on one of the first batches
        rows = PerSample(model, FlatClip(), expected_batch=1, strict=True)
        for _ in range(5):
            rows.backward(squares(model, x))
            rows.take()


def test_a_layer_reached_only_later_is_proven_then(oracle):
    """A branch not taken in the first batches must not pass as proven."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.late, self.on = nn.Linear(3, 4), nn.Linear(3, 4), False

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return y + F.linear(x, self.late.weight) if self.on else y

    model = Late().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    rows = PerSample(model, FlatClip(0.5), expected_batch=1)
    rows.backward(squares(model, x))
    rows.take()
    model.on = True
    truth = oracle.per_sample(model, squares, x)
    rows.discard()
    expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.5)
    for _ in range(3):
        rows.backward(squares(model, x))
        got = dict(zip(rows.names, rows.take().tensors, strict=True))
        assert oracle.relative_error(got, expected, rows.names) < 1e-12
