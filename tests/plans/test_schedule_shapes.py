"""Shapes against their formulas, one step at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steelyard.plans.schedule_shapes import KINDS, Shape, parse_shape


def value(kind, t, T, W=0):
    """s_t by hand; t from 1."""
    if t <= W:
        return t / W
    u = (t - W - 1) / (T - W)
    decay = max(T - W - round(0.8 * (T - W)), 1)
    return {
        "linear": 1 - u,
        "cosine": (1 + math.cos(math.pi * u)) / 2,
        "wsd": min(1, (T - t + 1) / decay),
        "constant": 1,
        "inverse-sqrt": math.sqrt(max(W, 1) / t),
        "cyclic": (1 + math.cos(math.pi * ((4 * u) % 1))) / 2,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("T", "warmup"), [(1, 0.0), (7, 0.0), (200, 0.05), (1000, 0.02)])
def test_values(kind, T, warmup):
    shape = Shape(kind=kind, warmup=warmup)
    expected = [value(kind, t, T, round(warmup * T)) for t in range(1, T + 1)]
    assert shape(T) == pytest.approx(expected, abs=1e-12)
    assert [shape.factor(t, T) for t in (1, T)] == pytest.approx([expected[0], expected[-1]])
    assert shape(T).min() > 0
    assert shape(T).max() <= 1


def test_behind_the_end():
    for kind in ("linear", "cosine", "wsd", "cyclic"):
        assert Shape(kind=kind).factor(101, 100) == pytest.approx(0, abs=1e-12)
        assert Shape(kind=kind).factor(500, 100) == pytest.approx(0, abs=1e-12)
    assert Shape(kind="constant").factor(500, 100) == 1
    assert Shape(kind="inverse-sqrt").factor(400, 100) == pytest.approx(1 / 20)
    assert Shape(kind="cyclic", low=0.1).factor(101, 100) == pytest.approx(0.1)


def test_warm_up_stretches_with_the_horizon():
    short, long = Shape(kind="cosine", warmup=0.1)(100), Shape(kind="cosine", warmup=0.1)(1000)
    assert short.argmax() == 9
    assert long.argmax() == 99
    assert np.interp(0.5, np.linspace(0, 1, 100), short) == pytest.approx(
        np.interp(0.5, np.linspace(0, 1, 1000), long), abs=0.01
    )


def test_names_parse():
    assert parse_shape("wsd:0.6", 0.02) == Shape(kind="wsd", stable=0.6, warmup=0.02)
    assert parse_shape("cyclic:7") == Shape(kind="cyclic", cycles=7)
    for text in ("linear", "wsd:0.6", "cyclic:7"):
        assert str(parse_shape(text)) == text
    for text in ("lineal", "linear:3", "wsd:x", "wsd:1.5", "cyclic:0", "cyclic:1.5"):
        with pytest.raises(ValueError, match=r"schedule|stable|cycles"):
            parse_shape(text)


@pytest.mark.parametrize("changes", [{"warmup": 1.0}, {"warmup": -0.1}, {"low": 2}, {"cycles": 0}])
def test_refusals(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Shape(kind="cyclic", **changes)
