from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from steelyard.report.read import number, read_run


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), (0.5, 0.5), (0, 0.0), (None, None), ("3", None), (True, None), ([1], None),
     (math.nan, None), (math.inf, None), (10**400, None)],
)  # fmt: skip
def test_number_takes_finite_numbers_only(value, expected):
    assert number(value) == expected


def test_a_truncated_last_line_is_left_out(make_run):
    folder = make_run()
    path = folder / "events.jsonl"
    whole = read_run(folder).events
    path.write_bytes(path.read_bytes()[:-20])
    assert read_run(folder).events == whole[:-1]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(make_run):
    path = make_run() / "events.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:10]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"events\.jsonl.*line 3"):
        read_run(path.parent)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "events.jsonl"])
def test_a_missing_file_is_one_line_that_names_it(make_run, name):
    folder = make_run()
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "[" * 100_000])
def test_a_file_that_holds_no_object_is_one_line_that_names_it(make_run, content):
    folder = make_run()
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="no run folder"):
        read_run(tmp_path / "nowhere")


def test_what_is_not_written_yet_is_none(make_run):
    run = read_run(make_run(complete=False))
    assert run.result is None
    assert run.private
    assert run.baseline is None


def test_a_baseline_that_has_not_begun_is_none(make_run):
    folder = make_run(baseline=True)
    assert read_run(folder).baseline is not None
    (folder / "baseline" / "events.jsonl").unlink()
    assert read_run(folder).baseline is None


def test_files_of_two_runs_are_refused(make_run):
    folder = make_run(private=False)
    (folder / "ledger.json").write_text(json.dumps({"epsilon": 1.0}))
    with pytest.raises(ValueError, match="two runs"):
        read_run(folder)


def test_a_private_baseline_is_refused(make_run):
    folder = make_run()
    make_run("run/baseline", private=True)
    with pytest.raises(ValueError, match="baseline"):
        read_run(folder)


def test_steps_done_again_after_a_resume_count_once(make_run):
    again = [
        {"time": 1.0, "kind": "resume", "step": 100, "from": "step 100"},
        {"time": 2.0, "kind": "eval", "step": 102, "accuracy": 0.5, "loss": 1.0, "n": 2000},
    ]
    run = read_run(make_run(complete=False, extra=again))
    steps = [event["step"] for event in run.of_kind("eval")]
    assert steps == [17, 34, 51, 68, 85, 102]
    assert run.last_step == 102
    assert run.of_kind("eval")[-1]["accuracy"] == 0.5
