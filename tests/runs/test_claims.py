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
ENTRY = {
    "data": "Fashion-MNIST",
    "arm": "DP-SGD",
    "role": "baseline",
    "note": "",
    "epsilon": 3.0,
    "mean": 86.1,
    "sd": 0.2,
    "seeds": [0, 1, 2],
    "lr": 4.0,
    "values": [85.9, 86.1, 86.3],
}
ARMS = ROW | {
    "topic": "filters",
    "verdict": "within noise",
    "comparisons": [
        {
            "data": "Fashion-MNIST",
            "epsilon": 3.0,
            "method": "a filter",
            "baseline": "DP-SGD",
            "difference": 0.1,
            "error": 0.2,
            "p": 0.6,
            "finding": "within noise",
            "decides": True,
        }
    ],
    "table": [
        ENTRY,
        ENTRY
        | {"arm": "a filter", "role": "method", "note": "costs more"}
        | {"mean": 86.2, "values": [86.0, 86.2, 86.4]},
    ],
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


@pytest.fixture
def compared(folder) -> Path:
    """One claim more, `lowpass`: a comparison of arms that knows its topic, not yet measured."""
    (folder / "lowpass.py").write_text(
        f"TOPIC = 'filters'\nROW = {ARMS!r}\n\n"
        "def run(runs):\n    return {**ROW, 'setting': str(runs.cache), 'seeds': [runs.workers]}\n"
    )
    return folder


def test_a_topic_is_known_before_it_was_ever_measured(compared):
    assert claims._runnable("filters") == ["lowpass"]
    assert claims._runnable("privacy") == ["steps"]
    assert claims._runnable("lowpass") == ["lowpass"]


def test_a_claim_for_another_device_is_left_out_unless_named(compared, command_line, monkeypatch):
    import torch

    recipe = compared / "lowpass.py"
    recipe.write_text("DEVICE = 'cuda'\n" + recipe.read_text())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = []
    assert claims._runnable(None, said.append) == ["fresh", "steps"]
    assert said == ["lowpass needs a CUDA device: left out"]
    assert claims._runnable("filters") == []
    assert claims._runnable("lowpass") == ["lowpass"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert claims._runnable(None) == ["fresh", "lowpass", "steps"]
    assert json.loads(command_line("claims", "privacy", "--run", "--json").out)


def test_a_topic_without_a_result_says_what_to_run(compared, command_line):
    outcome = command_line("claims", "filters")
    assert outcome.code == 2
    assert "topic 'filters' has no result yet: steelyard claims filters --run" in outcome.error


def test_a_comparison_is_measured_shown_as_one_table_and_drawn(compared, command_line):
    outcome = command_line("claims", "filters", "--run")
    assert outcome.code == 0
    for part in (
        "86.20 ± 0.20",
        "a filter*",
        "* a filter (Fashion-MNIST): costs more",
        "DP-SGD",
        "a filter",
        "+0.10 ± 0.20, p 0.600",
        "within noise",
    ):
        assert part in outcome.out
    assert str(compared / "filters.png") in outcome.out
    assert (compared / "filters.png").read_bytes().startswith(b"\x89PNG")
    assert "| Fashion-MNIST | DP-SGD | 86.10 ± 0.20 (4) |" in (compared / "filters.md").read_text()
    row = json.loads((compared / "lowpass.json").read_text())
    assert row["cost_s"] == ROW["cost_s"]  # what the runs cost, not the time of this call
    assert row["setting"].endswith("runs/claims")
    assert row["seeds"] == [2]


def test_the_plot_is_drawn_again_only_when_measured_or_missing(compared, command_line):
    (compared / "lowpass.json").write_text(json.dumps(ARMS))
    assert command_line("claims", "filters").code == 0
    (compared / "filters.png").write_bytes(b"kept")
    assert command_line("claims", "filters").code == 0
    assert (compared / "filters.png").read_bytes() == b"kept"


def test_the_pool_is_given_to_the_recipe(compared, tmp_path, capsys):
    from rich.console import Console

    claims.show(
        "lowpass", run=True, as_json=False, console=Console(), cache=tmp_path / "kept", workers=5
    )
    row = json.loads((compared / "lowpass.json").read_text())
    assert row["setting"] == str(tmp_path / "kept")
    assert row["seeds"] == [5]


def test_rows_of_both_kinds_are_shown_together(compared, command_line):
    (compared / "lowpass.json").write_text(json.dumps(ARMS))
    outcome = command_line("claims")
    assert outcome.code == 0
    assert "[B, T]" in outcome.out
    assert "within" in outcome.out


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
        (json.dumps(ROW | {"table": [{"arm": "a"}]}), "a line of its table has no data"),
        (json.dumps(ROW | {"table": [ENTRY | {"values": [1.0]}]}), "1 values for 3 seeds"),
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
