from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steelyard.types import RowWeighting
from steelyard.weightings.clip import (
    CLIPS,
    AutoClip,
    FlatClip,
    GlobalClip,
    NormalizedClip,
    parse_clip,
)

NORMS = torch.tensor([0.0, 0.25, 0.5, 1.0, 4.0], dtype=torch.float64)

# computed by hand from the papers' formulas, R = 0.5
TABLE = [
    (FlatClip(0.5), [1.0, 1.0, 1.0, 0.5, 0.125]),
    (AutoClip(0.5, stability=0.0), [0.0, 2.0, 1.0, 0.5, 0.125]),
    (AutoClip(0.5), [50.0, 0.5 / 0.26, 0.5 / 0.51, 0.5 / 1.01, 0.5 / 4.01]),
    (NormalizedClip(0.5, stability=0.25), [2.0, 1.0, 0.5 / 0.75, 0.4, 0.5 / 4.25]),
    (GlobalClip(0.5), [1.0, 1.0, 1.0, 0.0, 0.0]),
    (FlatClip(math.inf), [1.0] * 5),
    (GlobalClip(math.inf), [1.0] * 5),
]


@pytest.mark.parametrize(("weighting", "expected"), TABLE, ids=lambda v: repr(v)[:40])
def test_weights(weighting, expected):
    assert isinstance(weighting, RowWeighting)
    found = weighting(NORMS)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert weighting(NORMS.float()).dtype == torch.float32
    assert weighting(NORMS[:0]).shape == (0,)


@pytest.mark.parametrize("name", CLIPS)
@given(
    bound=st.floats(1e-3, 1e3),
    norm=st.one_of(st.just(0.0), st.floats(2.0**-90, 2.0**99, width=32)),
)
def test_no_row_passes_the_bound(name, bound, norm):
    weight = CLIPS[name](bound)(torch.tensor([norm]))
    assert weight.isfinite().all()
    assert weight.min() >= 0
    assert float(weight.double() * norm) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", CLIPS)
def test_a_group_keeps_the_rule_and_takes_its_share(name):
    rule = CLIPS[name](2.0)
    share = rule.with_bound(0.5)
    assert type(share) is type(rule)
    assert (rule.bound, share.bound) == (2.0, 0.5)
    torch.testing.assert_close(share(NORMS), CLIPS[name](0.5)(NORMS))


def test_stability_is_not_scaled_with_the_share():
    assert AutoClip(1.0, stability=0.3).with_bound(0.1) == AutoClip(0.1, stability=0.3)


def test_automatic_clipping_only_scales_with_the_bound():
    for name in ("auto-s", "auto-v", "normalized"):
        torch.testing.assert_close(CLIPS[name](3.0)(NORMS), 3 * CLIPS[name](1.0)(NORMS))


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("rule", [FlatClip, AutoClip, NormalizedClip, GlobalClip])
def test_a_bound_must_be_positive(rule, bound):
    with pytest.raises(ValueError, match=f"bound must be positive, found {bound}"):
        rule(bound)


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
def test_a_stability_must_be_finite(bad):
    with pytest.raises(ValueError, match=f"stability.*found {bad}"):
        AutoClip(1.0, stability=bad)


def test_automatic_clipping_needs_a_finite_bound():
    with pytest.raises(ValueError, match="finite bound, found inf"):
        AutoClip(math.inf)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flat", FlatClip(1.0)),
        ("flat:0.5", FlatClip(0.5)),
        ("flat:inf", FlatClip(math.inf)),
        ("auto-s", AutoClip(1.0)),
        ("auto-v:2", AutoClip(2.0, stability=0.0)),
        ("normalized", NormalizedClip(1.0)),
        ("global:3e-1", GlobalClip(0.3)),
    ],
)
def test_parse(text, expected):
    found = parse_clip(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flt", "unknown clipping 'flt': choose one of flat, "),
        ("", "unknown clipping ''"),
        ("flat:x", "'flat:x': not a number.*flat:1.0"),
        ("flat:0", "'flat:0'.*must be positive"),
        ("flat:nan", "must be positive"),
        ("auto-s:inf", "finite bound"),
        ("auto-v:-1", "must be positive"),
    ],
)
def test_parse_errors_name_the_value_and_the_fix(text, words):
    with pytest.raises(ValueError, match=words):
        parse_clip(text)
