"""`plan lr` as its words: the test of the law comes first; JSON; the picture; no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from steelyard.runs.plan_commands import register

PILOTS = Path(__file__).parents[1] / "plans" / "data" / "pilots.csv"
COMMON = ["lr", str(PILOTS), "--steps", "15000", "--loss", "test_loss"]


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    app = typer.Typer()
    app.command("other")(lambda: None)
    register(app)
    return lambda *arguments: CliRunner().invoke(app, [*COMMON, *arguments])


def test_the_error_on_held_out_runs_comes_before_the_plan(plan):
    out = plan("--target", "0.38").output
    order = [
        "held out: the runs of 3,750 steps, from runs of up to 1,880 steps",
        "0.2-3750",
        "Largest error on what was held out: 3.3%, lines (taken); 21.8%, law.",
        "0.0% above the best one",
        "At 15,000 steps",
        "best peak rate 0.00163",
        "predicted loss 0.3485 (0.327 to 0.37)",
        "A loss of 0.38 takes about 4,595 steps.",
        "note: the best rate is at or past the largest tried",
    ]
    places = [out.index(text) for text in order]
    assert places == sorted(places)


def test_json(plan):
    record = json.loads(plan("--json", "--schedule", "cosine", "--at-least", "400").output)
    assert next(iter(record)) == "held_out"
    assert len(record["held_out"]) == 5
    assert record["method"] == "lines"
    assert record["largest_error"]["lines"] < 0.05
    assert record["rate"] == pytest.approx(0.2 / 15000**0.5, rel=0.01)
    assert record["schedule"] == "cosine"
    assert record["required_steps"] is None
    named = json.loads(plan("--json", "--held-out", "0.2-3750", "--held-out", "0.1-3750").output)
    assert [held["name"] for held in named["held_out"]] == ["0.1-3750", "0.2-3750"]


def test_the_picture_is_a_new_file(plan, tmp_path):
    path = tmp_path / "lines.png"
    assert plan("--plot", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    again = plan("--plot", str(path))
    assert "exists already" in str(again.exception)


def test_a_wrong_schedule_is_one_line(plan):
    found = plan("--schedule", "cosin")
    assert isinstance(found.exception, ValueError)
    assert "unknown schedule 'cosin'" in str(found.exception)


def test_planning_loads_no_torch():
    code = f"""
import sys, typer
from steelyard.runs.plan_commands import register
app = typer.Typer()
app.command("other")(lambda: None)
register(app)
app({COMMON!r}, standalone_mode=False)
assert not {{"torch", "matplotlib", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Largest error" in done.stdout
