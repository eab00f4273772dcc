"""Claims: committed rows are shown, recipes run again, and what is no row is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steelyard.runs import claims

ROW = {
    "paper": "Anna and Bert 2020 [arXiv 2001.00001]",
    "claim": "a step of [B, T] is enough",
    "topic": "privacy",
    "published": "86.4 %",
    "setting": "Fashion-MNIST",
    "numbers": {"here": "86.1 +- 0.2 %"},
    "baselines": {"plain": "89.0 %"},
    "seeds": [0, 1, 2],
    "verdict": "holds",
    "cost_s": 12.5,
    "command": "steelyard claims steps --run",
}
RECIPE = f"ROW = {ROW!r}\n\ndef run():\n    return {{**ROW, 'verdict': 'partly'}}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """One measured claim, `steps`; one recipe that was never run, `fresh`."""
    where = tmp_path / "claims"
    where.mkdir()
    (where / "steps.json").write_text(json.dumps(ROW))
    (where / "steps.py").write_text(RECIPE)
    (where / "fresh.py").write_text(RECIPE.replace("'privacy'", "'speed'"))
    monkeypatch.setattr(claims, "folder", lambda: where)
    return where


@pytest.mark.parametrize("typed", [(), ("steps",), ("privacy",)])
def test_committed_rows_are_shown(typed, folder, command_line):
    outcome = command_line("claims", *typed)
    assert outcome.code == 0
    for part in ("86.4 %", "86.1", "holds", "[B, T]", "[arXiv"):
        assert part in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert json.loads(command_line("claims", *typed, "--json").out) == [ROW]


def test_a_recipe_runs_again_and_is_committed(folder, command_line):
    outcome = command_line("claims", "steps", "--run", "--json")
    assert outcome.code == 0
    (row,) = json.loads(outcome.out)
    assert row["verdict"] == "partly"
    assert row["command"] == "steelyard claims steps --run"
    assert json.loads((folder / "steps.json").read_text()) == row


def test_a_recipe_without_a_result_can_be_run(folder, command_line):
    outcome = command_line("claims", "fresh")
    assert outcome.code == 2
    assert "steelyard claims fresh --run" in outcome.error
    assert command_line("claims", "fresh", "--run").code == 0
    assert (folder / "fresh.json").exists()
    assert command_line("claims", "speed").code == 0  # by its topic


def test_all_recipes_run(folder):
    assert claims._runnable(None) == ["fresh", "steps"]
    assert claims._runnable("privacy") == ["steps"]


def test_unknown_names_are_told_what_was_meant(folder, command_line):
    outcome = command_line("claims", "privcy")
    assert outcome.code == 2
    assert "'privcy': did you mean 'privacy'?" in outcome.error


def test_an_unknown_claim_cannot_be_measured(folder):
    with pytest.raises(ValueError, match="unknown claim 'stepz': did you mean 'steps'"):
        claims.measure("stepz")


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        ("{", "steps.json is not JSON"),
        ("[]", "holds a list"),
        (json.dumps({k: v for k, v in ROW.items() if k != "seeds"}), "no seeds"),
        (json.dumps(ROW | {"verdict": "maybe"}), "'maybe' is not one of"),
    ],
)
def test_what_is_no_row_is_refused(spoiled, said, folder, command_line):
    (folder / "steps.json").write_text(spoiled)
    outcome = command_line("claims")
    assert outcome.code == 2
    assert said in outcome.error


def test_without_any_result_it_says_so(folder, command_line):
    (folder / "steps.json").unlink()
    assert "no claim has a committed result yet" in command_line("claims").out
    assert json.loads(command_line("claims", "--json").out) == []


def test_the_committed_rows_of_this_repository_are_rows():
    for row in claims.committed().values():
        assert set(claims.FIELDS) <= row.keys()
