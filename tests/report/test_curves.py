from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.report.curves import accuracy_range, panels
from steelyard.report.read import read_run


def _by_key(folder, target=None):
    return {panel.key: panel for panel in panels(read_run(folder), target)}


@given(st.lists(st.floats(min_value=0, max_value=100), min_size=1))
def test_the_accuracy_axis_holds_all_values_and_exaggerates_none(values):
    low, high = accuracy_range(values)
    assert low <= min(values)
    assert max(values) <= high <= 100
    assert high - low >= 40
    assert low == 0 or min(values) >= 60


def test_private_and_not_private_share_a_chart_in_epochs(make_run):
    panel = _by_key(make_run(baseline=True))["accuracy"]
    assert [(line.label, line.role) for line in panel.lines] == [
        ("private", "private"),
        ("not private", "plain"),
    ]
    assert panel.clock == "epoch"
    # 352 steps of 1024 and 1407 steps of 128, of 12,000 samples
    assert [line.ends[1][0] for line in panel.lines] == pytest.approx([30.04, 15.01], abs=0.01)


def test_time_is_in_steps_where_epochs_are_unknown(make_run):
    folder = make_run()
    path = folder / "events.jsonl"
    path.write_text(path.read_text().replace('"expected_batch"', '"another"'))
    panel = _by_key(folder)["accuracy"]
    assert panel.clock == "step"
    assert panel.lines[0].ends[1][0] == 352


def test_values_are_those_of_the_events(make_run):
    folder = make_run()
    events = read_run(folder).of_kind("eval")
    found = _by_key(folder)
    accuracy = [100 * event["accuracy"] for event in events]
    assert [y for _, y in found["accuracy"].lines[0].points] == pytest.approx(accuracy)
    assert [y for _, y in found["loss"].lines[0].points] == [event["loss"] for event in events]


def test_epsilon_is_charted_under_its_budget_for_private_runs_only(make_run):
    panel = _by_key(make_run(), target=3.0)["epsilon"]
    assert panel.mark == (3.0, "budget")
    assert panel.low == 0 < 3.0 < panel.high
    assert panel.lines[0].ends[1][1] == 2.993
    assert "epsilon" not in _by_key(make_run("other", private=False))


def test_a_language_model_has_no_accuracy_chart(make_run):
    assert set(_by_key(make_run(language=True))) == {"loss", "epsilon"}


def test_a_loss_that_is_not_finite_leaves_a_gap(make_run):
    lost = {"time": 9.0, "kind": "eval", "step": 400, "loss": None, "accuracy": 0.1, "n": 2000}
    line = _by_key(make_run(extra=[lost]))["loss"].lines[0]
    assert math.isnan(line.points[-1][1])
    assert line.ends[1][1] == pytest.approx(0.6215, abs=1e-3)


def test_no_evaluation_no_chart(make_run):
    folder = make_run(private=False)
    path = folder / "events.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert panels(read_run(folder)) == []


def test_the_description_tells_both_ends(make_run):
    text = _by_key(make_run(baseline=True), 3.0)["accuracy"].description
    assert "private: from 30.4 % at epoch 1.451 to 83.0 % at epoch 30.04" in text
    assert "not private: from" in text
    assert "budget: 3" in _by_key(make_run("other"), 3.0)["epsilon"].description
