"""Regret and tau from planted drops."""

from __future__ import annotations

import pytest

from steelyard.trials.subset_scores import Truth, ends, tau


def truth() -> Truth:
    found = Truth()
    drops = {"a": (1.0, 3.0), "b": (2.0, 1.0), "a+b": (2.5, 2.5), "c": (None, 9.0)}
    shares = {"a": 0.1, "b": 0.2, "a+b": 0.3, "c": 0.6}
    for name, values in drops.items():
        for drop in values:
            found.add((name, 0), 0.1, {"drop": drop, "share": shares[name]})
    found.add(("", 4), 0.2, {"drop": 8.0, "share": 0.05})
    return found


def test_the_best_is_the_best_on_average_within_the_budget_and_no_lora():
    assert truth().within(0.3) == ["a", "b", "a+b"]
    assert truth().best(0.25) == "a"  # 2.0 against 1.5, though b wins at the first seed
    assert truth().best(0.3) == "a+b"
    assert truth().best(1.0) == "c"


def test_regret_is_relative_to_the_best_and_may_be_negative_at_a_seed():
    assert truth().regret(2.0, 0.3, 0) == pytest.approx(0.2)
    assert truth().regret(truth().drop("b", 0), 0.25, 0) == pytest.approx(-1.0)
    assert truth().regret(truth().drop("", 1), 0.25, 1) == 1.0  # nothing was chosen


def test_a_diverged_run_has_no_drop_and_full_subsets_cannot_be_extended():
    assert truth().all("c") == [0.0, 9.0]
    assert truth().full(0.25) == ["a", "b"]
    assert truth().full(0.3) == ["a+b"]
    assert truth().largest(0.25) == "b"


def test_tau_and_ends():
    assert tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert ends([truth()], (0.1, 0.15, 0.2)) == "4 of 5 at the lowest, 1 at the highest"
