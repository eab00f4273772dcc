"""Operations counted from shapes against counts by hand, and against torch's counter."""

from __future__ import annotations

import pytest
from lib.engines import OURS, Settings
from lib.floors import Product, floors, measured, products
from torch import nn


def test_by_hand(linear):
    first, second = products(linear)
    assert first == Product(L=1, m=6, n=5, needs_input=False, trains=True)
    assert second == Product(L=1, m=10, n=6, needs_input=True, trains=True)
    assert first.plain == 2 * 2 * 30  # forward and weight gradient
    assert second.plain == 3 * 2 * 60
    assert first.ghost == first.least == 2 * 11
    wide = Product(L=64, m=10, n=6, needs_input=True, trains=True)
    assert wide.least == 4 * 60  # rows are cheaper than 2 * 64^2 * 16
    assert wide.mixopt == 0
    long = Product(L=2, m=10, n=6, needs_input=True, trains=True)
    assert long.least == long.mixopt == 2 * 4 * 16
    frozen = Product(L=2, m=10, n=6, needs_input=True, trains=False)
    assert (frozen.least, frozen.mixopt, frozen.plain) == (0, 0, 2 * 2 * 2 * 60)


def test_frozen_layers_have_no_weight_gradient(linear):
    def model() -> nn.Module:
        built = linear.model()
        built[0].requires_grad_(False)
        return built

    first, second = products(type(linear)(name="", about="", model=model, batch=linear.batch))
    assert (first.trains, first.needs_input) == (False, False)
    assert (second.trains, second.needs_input) == (True, False)  # nothing below it is trained


def test_the_counts_are_torch_s(small):
    """All products of the plain step but attention's are those of the shapes."""
    engine = OURS["plain"].make(small, Settings())
    counted = len(small.build()[2]) * sum(p.plain for p in products(small))
    attention = 0
    if small.name == "text":  # 2 heads, T = 6, 4 numbers a head; forward 2 products, backward 5
        attention = 4 * 2 * (2 + 5) * 2 * 6 * 6 * 4
    assert measured(engine.step) == counted + attention


def test_ratios_are_to_the_plain_step(linear):
    plain, ours = (OURS[name].make(linear, Settings()) for name in ("plain", "steelyard"))
    for _ in range(4):
        ours.step()
    found = floors(linear, plain, ours)
    whole = 4 * (2 * 60 + 3 * 120)
    assert found.plain_gflop == pytest.approx(whole / 1e9)
    assert found.least == pytest.approx(1 + 4 * (2 * 11 + 2 * 16) / whole)
    assert found.measured >= 1
