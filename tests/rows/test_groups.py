from __future__ import annotations

import math

import pytest
from torch import nn

from steelyard.rows.groups import bounds, partition


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(10, 10)  # 110 parameters
        self.norm = nn.LayerNorm(10)  # 20
        self.tail = nn.Sequential(nn.Linear(10, 2), nn.Linear(2, 2, bias=False))  # 22 + 4


NAMES = dict(Model().named_parameters())
WIDE, NORM = ["wide.weight", "wide.bias"], ["norm.weight", "norm.bias"]
FIRST, LAST = ["tail.0.weight", "tail.0.bias"], ["tail.1.weight"]

TABLE = [
    ("all", [WIDE + NORM + FIRST + LAST]),
    ("layer", [WIDE, NORM, FIRST, LAST]),
    ("parameter", [[name] for name in NAMES]),
    (1, [WIDE + NORM + FIRST + LAST]),
    (2, [WIDE, NORM + FIRST + LAST]),
    (4, [WIDE, NORM, FIRST, LAST]),
    (["*.bias"], [["wide.bias", "norm.bias", "tail.0.bias"], None]),
    (["wide.*", "tail.*"], [WIDE, FIRST + LAST, NORM]),
    (["*"], [list(NAMES)]),
    (["wide", "tail"], [WIDE, FIRST + LAST, NORM]),
    (["tail.1", "tail", "*.weight"], [LAST, FIRST, ["wide.weight", "norm.weight"], None]),
]


@pytest.mark.parametrize(("groups", "expected"), TABLE, ids=lambda value: str(value)[:30])
def test_partition(groups, expected):
    found = partition(NAMES, groups)
    assert sorted(name for names in found for name in names) == sorted(NAMES)  # each exactly once
    assert len(found) == len(expected)
    for names, wanted in zip(found, expected, strict=True):
        assert wanted is None or names == wanted


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ("layers", "'layers'"),
        (0, "0 clipping blocks"),
        (5, "5 clipping blocks"),
        (["wide.wieght"], "'wide.wieght'.*did you mean 'wide.weight'"),
        (["wide.*", "wide.bias"], "'wide.bias'"),
        (["tail", "tail.1"], "'tail.1'"),
        (["wid"], "'wid'"),
    ],
)
def test_bad_groups_are_named(groups, words):
    with pytest.raises(ValueError, match=words):
        partition(NAMES, groups)


@pytest.mark.parametrize("shares", [None, [1.0, 2.0, 5.0]])
def test_shares_of_the_bound_keep_its_square(shares):
    found = bounds(3, 0.7, shares)
    assert math.isclose(sum(r * r for r in found), 0.7**2, rel_tol=1e-12)
    if shares:
        assert math.isclose((found[2] / found[0]) ** 2, 5.0, rel_tol=1e-12)
    else:
        assert len(set(found)) == 1


@pytest.mark.parametrize("shares", [[1.0], [1.0, -1.0], [1.0, 0.0], [1.0, math.inf]])
def test_bad_shares_are_refused(shares):
    with pytest.raises(ValueError, match="share"):
        bounds(2, 1.0, shares)
