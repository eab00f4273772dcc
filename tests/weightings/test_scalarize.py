"""Fixed weights by name, and weights by the losses."""

from __future__ import annotations

import math

import pytest
import torch

from steelyard.weightings.scalarize import Fixed, GradDiff, LossNormalised

EYE = torch.eye(2, dtype=torch.float64)


def test_fixed_weights_go_by_name():
    weights = Fixed({"retain": 0.2, "forget": 0.8})
    assert weights(EYE).tolist() == [0.2, 0.8]  # bare: the table's order
    assert weights.given(["forget", "retain"], torch.zeros(2))(EYE).tolist() == [0.8, 0.2]
    assert GradDiff(retain=3.0) == Fixed({"retain": 3.0, "forget": 1.0})


def test_fixed_refuses_other_rows():
    weights = Fixed({"retain": 1.0, "forget": 1.0})
    with pytest.raises(ValueError, match=r"^the rows are retain, forgt, the weights are for"):
        weights.given(["retain", "forgt"], torch.zeros(2))
    with pytest.raises(ValueError, match=r"^3 rows and 2 weights"):
        weights(torch.eye(3))
    for bad in ({}, {"a": math.nan}):
        with pytest.raises(ValueError, match=r"finite number"):
            Fixed(bad)


def test_loss_normalised():
    def weights(*losses):
        found = LossNormalised().given(["retain", "forget"], torch.tensor(losses).double())
        return found(EYE).tolist()

    assert weights(4.0, -0.5) == [0.25, 2.0]  # |F|: gradient ascent's loss is negative
    assert weights(4.0, 0.0) == [0.25, 0.0]
    assert weights(4.0, 1e-9) == [0.25, 0.0]
    assert weights(0.0, 0.0) == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"not in the Gram matrix"):
        LossNormalised()(EYE)
    with pytest.raises(ValueError, match=r"found 1"):
        LossNormalised(tiny=1)
