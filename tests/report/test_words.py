from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.report.read import read_run
from steelyard.report.summary import summarize
from steelyard.report.words import best_guess, lead, meaning, not_protected, notices, release


def _notices(folder):
    run = read_run(folder)
    return [(notice.level, notice.title) for notice in notices(run, summarize(run))]


def test_a_good_run_has_no_notice(make_run):
    assert _notices(make_run(baseline=True)) == []


@pytest.mark.parametrize(
    ("options", "level", "title"),
    [
        ({"private": False}, "danger", "Nothing is protected."),
        ({"change": {"ledger": {"noise_seeded_by_user": True}}}, "danger", "seeded by the user"),
        ({"change": {"ledger": {"epsilon": None}}}, "danger", "Nothing is protected."),
        ({"change": {"ledger": {"epsilon": 3.2}}}, "danger", "overspent"),
        ({"change": {"ledger": {"delta": 1e-3}}}, "danger", "δ is too large."),
        ({"complete": False}, "note", "not finished"),
    ],
)
def test_every_limit_is_told(make_run, options, level, title):
    found = _notices(make_run(**options))
    assert any(one == level and title in text for one, text in found)


def test_a_missing_ledger_is_grave_at_the_end_and_noted_before(make_run):
    for complete, level in ((True, "danger"), (False, "note")):
        folder = make_run(f"run-{complete}", complete=complete)
        (folder / "ledger.json").unlink()
        assert any(one == level and "no ledger" in text for one, text in _notices(folder))


@given(st.floats(min_value=0, max_value=50), st.floats(min_value=0, max_value=0.1))
def test_best_guess_is_the_optimal_test_of_the_worst_mechanism(epsilon, delta):
    """Randomised response: with delta the truth is told, else it is kept with odds e^epsilon."""
    expected = delta + (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    assert best_guess(epsilon, delta) == pytest.approx(expected, rel=1e-12)


def test_meaning_has_the_numbers_of_the_run(make_run):
    text = meaning(summarize(read_run(make_run())))
    assert "at most 20.0 times" in text
    assert "δ = 10⁻⁵" in text
    assert "95.3\u202f%" in text
    assert not text.startswith("As long as nobody learns the seed")


def test_meaning_is_conditional_where_the_noise_was_seeded(make_run):
    folder = make_run(change={"ledger": {"noise_seeded_by_user": True}})
    assert meaning(summarize(read_run(folder))).startswith("As long as nobody learns the seed")


def test_lead_compares_private_with_not_private(make_run):
    text = lead(summarize(read_run(make_run(baseline=True))))
    assert "26,010 parameters" in text
    assert "12,000 samples" in text
    assert "83.0 ± 1.6" in text
    assert "89.9 ± 1.3" in text
    assert "6.9 percentage points higher" in text


def test_an_unfinished_run_is_not_compared_point_by_point(make_run):
    text = lead(summarize(read_run(make_run(complete=False, baseline=True))))
    assert "for 176 of 352 steps" in text
    assert "percentage points" not in text


def test_release_tells_the_mechanism(make_run):
    run = read_run(make_run())
    text = " ".join(release(run, summarize(run)))
    for fact in ("q = 0.0853", "352 steps", "σ = 0.823", "PLD", "add or remove one sample"):
        assert fact in text
    assert "at least" not in text
    change = {"ledger": {"sampling": "unamplified", "history": [{"steps": 1}, {"steps": 2}]}}
    run = read_run(make_run("other", change=change))
    text = " ".join(release(run, summarize(run)))
    assert "no credit" in text
    assert "σ = at least 0.823" in text
    assert "Poisson" not in text


def test_the_twin_is_named_among_what_is_not_protected(make_run):
    def named(folder):
        return [what for what, _ in not_protected(read_run(folder))]

    assert "The run without privacy" in named(make_run(baseline=True))
    alone = named(make_run("alone"))
    assert "The run without privacy" not in alone
    assert {"The test set", "The search for settings", "The design of the model"} <= set(alone)
