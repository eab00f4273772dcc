"""Verdicts: the paired difference is computed by hand, and Holm's procedure decides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from steelyard.runs.arms import Arm, Cell
from steelyard.runs.verdict import (
    BETTER,
    NOISE,
    WORSE,
    Comparison,
    compare,
    findings,
    paired,
    result,
    verdict,
)

ONE = Comparison(data="d", epsilon=3.0, method="m", baseline="b", difference=1.0, error=0.1, p=0.01)


def cell(
    name: str, values, *, score=80.0, epsilon: float | None = 3.0, role="method", data="d"
) -> Cell:
    arm = Arm(name=name, rates=(1.0, 2.0, 4.0), role=role, private=epsilon is not None)
    search = {1.0: score - 1, 2.0: score, 4.0: score - 1}
    return Cell(
        arm=arm, data=data, epsilon=epsilon, search=search, values=dict(enumerate(values)),
        seconds=10.0,
    )  # fmt: skip


def test_the_paired_difference_by_hand():
    mean, error, p = paired([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])  # differences 1, 2, 3
    assert mean == 2.0
    assert error == pytest.approx(1 / math.sqrt(3))
    # Student's t with two degrees of freedom has the tail 1/2 - t / (2 sqrt(t^2 + 2))
    t = mean / error
    assert p == pytest.approx(1 - t / math.sqrt(t * t + 2), rel=1e-6)


def test_without_spread_the_sign_decides():
    assert paired([1.0, 2.0], [1.0, 2.0]) == (0.0, 0.0, 1.0)
    assert paired([2.0, 3.0], [1.0, 2.0]) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="two pairs"):
        paired([1.0], [2.0])


def test_differences_that_are_common_to_a_seed_cancel():
    _, _, together = paired([80.1, 82.1, 84.11], [80.0, 82.0, 84.0])
    assert together < 0.01  # unpaired, the spread of 2 points would hide 0.1


@pytest.mark.parametrize(
    ("ps", "signs", "expected"),
    [
        ((0.01,), (1,), [BETTER]),
        ((0.06,), (1,), [NOISE]),
        ((0.01,), (-1,), [WORSE]),
        ((0.03, 0.02), (1, 1), [BETTER, BETTER]),  # 0.02 < 0.05 / 2, then 0.03 < 0.05
        ((0.03, 0.03), (1, 1), [NOISE, NOISE]),  # neither is below 0.05 / 2
        ((0.001, 0.04, 0.04), (1, 1, -1), [BETTER, NOISE, NOISE]),
    ],
)
def test_holm(ps, signs, expected):
    found = [replace(ONE, p=p, difference=float(s)) for p, s in zip(ps, signs, strict=True)]
    assert findings(found) == expected


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ((1, 1), "holds"),
        ((1, 0), "partly"),
        ((1, -1), "partly"),
        ((0, 0), "within noise"),
        ((0, -1), "fails"),
    ],
)
def test_the_verdict_of_a_claim(effects, expected):
    found = [
        replace(ONE, difference=float(effect), p=0.001 if effect else 0.5, epsilon=float(at))
        for at, effect in enumerate(effects)
    ]
    assert verdict(found) == expected


def test_nothing_compared_is_no_verdict():
    with pytest.raises(ValueError, match="nothing was compared"):
        verdict([])


def test_the_method_is_chosen_by_the_search_and_the_baseline_by_the_test_set():
    cells = [
        cell("m1", (85.0, 86.0, 87.0), score=70.0),  # better on the test set: not looked at
        cell("m2", (84.0, 85.0, 86.5), score=71.0),
        cell("b1", (80.0, 81.0, 82.0), score=99.0, role="baseline"),
        cell("b2", (83.0, 83.5, 85.0), score=10.0, role="baseline"),
    ]
    (one,) = compare(cells, ("m1", "m2"), ("b1", "b2"))
    assert (one.method, one.baseline) == ("m2", "b2")
    assert one.difference == pytest.approx(4 / 3)


def test_a_baseline_without_privacy_counts_at_every_epsilon():
    cells = [
        cell("m", (80.0, 81.0, 82.0), epsilon=1.0),
        cell("m", (90.0, 91.0, 92.5), epsilon=8.0),
        cell("private", (70.0, 71.0, 72.0), epsilon=1.0, role="baseline"),
        cell("private", (85.0, 86.0, 87.0), epsilon=8.0, role="baseline"),
        cell("public", (81.0, 82.0, 84.0), epsilon=None, role="baseline"),
    ]
    low, high = compare(cells, ("m",), ("private", "public"))
    assert (low.epsilon, low.baseline) == (1.0, "public")
    assert (high.epsilon, high.baseline) == (8.0, "private")
    assert low.difference < 0 < high.difference


def test_data_sets_are_not_mixed():
    cells = [
        cell("m", (80.0, 81.0, 82.0)),
        cell("b", (70.0, 71.0, 73.0), role="baseline"),
        cell("m", (50.0, 51.0, 52.0), data="e"),
        cell("b", (60.0, 61.0, 63.0), data="e", role="baseline"),
    ]
    first, second = compare(cells, ("m",), ("b",))
    assert (first.data, second.data) == ("d", "e")
    assert first.difference > 0 > second.difference


def test_an_unknown_arm_is_refused():
    with pytest.raises(ValueError, match="no arm is called 'x': there are m"):
        compare([cell("m", (1.0, 2.0, 3.0))], ("m",), ("x",))


def test_the_fields_of_a_row():
    cells = [
        cell("m", (84.0, 85.0, 86.1)),
        cell("b", (80.0, 81.0, 82.0), role="baseline"),
        cell("c", (70.0, 75.0, 85.0), role="baseline"),
    ]
    deciding = compare(cells, ("m",), ("b",))
    row = result(cells, deciding, also=[*deciding, *compare(cells, ("m",), ("c",))])
    assert row["verdict"] == "holds"
    assert row["baselines"] == ["b", "c"]
    assert row["seeds"] == [0, 1, 2]
    assert row["cost_s"] == 30.0
    assert list(row["numbers"]) == ["d, epsilon 3: m minus b", "d, epsilon 3: m minus c"]
    assert row["numbers"]["d, epsilon 3: m minus b"].startswith("+4.03 +- 0.03 points, p below")
    assert row["numbers"]["d, epsilon 3: m minus b"].endswith(": better")
    assert [one["decides"] for one in row["comparisons"]] == [True, False]
    assert [entry["arm"] for entry in row["table"]] == ["m", "b", "c"]


def test_a_rate_at_an_end_is_told():
    cells = [cell("m", (84.0, 85.0, 86.0)), cell("b", (80.0, 81.0, 82.5), role="baseline")]
    cells[0].search[8.0] = 99.0
    row = result(cells, compare(cells, ("m",), ("b",)))
    assert row["numbers"]["best rate at an end of its grid"] == "m (d, epsilon 3.0)"
