"""Interrupted and damaged runs, in this process: what is saved, what is said, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from steelyard.runs.events import read_events
from steelyard.runs.loop import Training

QUICK = ("--accountant", "rdp", "--noise-seed", 2, "--steps", 6, "--checkpoint-every", 1)


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(4)`: Ctrl-C in the fourth step of every run that begins with step 0."""

    def stop(step: int, *, private: bool = True) -> None:
        one_step = Training._one_step

        def pressed(training: Training):
            if training.step == step - 1 and (training.plan is not None) is private:
                monkeypatch.setattr(Training, "_one_step", one_step)  # once
                os.kill(os.getpid(), signal.SIGINT)
            return one_step(training)

        monkeypatch.setattr(Training, "_one_step", pressed)

    return stop


@pytest.fixture
def cut(command_line, features_csv, stop_at, tmp_path) -> Path:
    """A run `cut`, stopped after step 4, beside the same run `whole`."""
    arguments = ("--data", features_csv, *QUICK)
    assert command_line("train", *arguments, "--out", "whole").code == 0
    stop_at(4)
    assert command_line("train", *arguments, "--out", "cut").code == 130
    return tmp_path / "cut"


def test_a_damaged_newest_checkpoint_falls_back_with_a_notice(
    command_line, cut, tmp_path, outcome_of
):
    states = cut / "checkpoints" / "step-00000004" / "states.pt"
    states.write_bytes(states.read_bytes()[:-100])
    outcome = command_line("train", "--resume", "cut")
    assert outcome.code == 0
    (notice,) = [line for line in outcome.err.splitlines() if "truncated" in line]
    assert "step-00000004 is truncated: states.pt has" in notice
    assert "using step-00000003 instead" in notice
    assert "cut: going on after step 3 of 6" in outcome.err
    assert outcome_of(cut) == outcome_of(tmp_path / "whole")


def test_no_usable_checkpoint_is_one_line(command_line, cut):
    for states in cut.glob("checkpoints/*/states.pt"):
        states.write_bytes(b"")
    outcome = command_line("train", "--resume", "cut")
    assert outcome.code == 2
    assert outcome.error.startswith("steelyard: no usable checkpoint in 'cut/checkpoints'")
    assert not (cut / "result.json").exists()


def test_checkpoints_of_another_run_are_refused(command_line, cut, tmp_path):
    shutil.rmtree(cut / "checkpoints")
    shutil.copytree(tmp_path / "whole" / "checkpoints", cut / "checkpoints")
    outcome = command_line("train", "--resume", "cut")
    assert outcome.code == 2
    mine, other = (
        json.loads((tmp_path / name / "config.json").read_text())["run"]
        for name in ("cut", "whole")
    )
    assert f"belongs to run '{other}', not to '{mine}'" in outcome.error


def test_settings_that_are_none(command_line, cut):
    settings = json.loads((cut / "config.json").read_text())
    for spoiled, said in (
        ("{", "cannot be read"),
        ("[]", "no settings of a run"),
        ("{}", "no settings of a run"),
        (json.dumps(settings | {"batch": "many"}), "not the settings of a run"),
        (json.dumps(settings | {"lr": -1}), "--lr must be positive, found -1"),
        (json.dumps(settings | {"plan": {"n": 3}}), "not a privacy plan"),
    ):
        (cut / "config.json").write_text(spoiled)
        outcome = command_line("train", "--resume", "cut")
        assert outcome.code == 2
        assert said in outcome.error


def test_other_data_under_the_same_name_are_refused(command_line, cut, features_csv):
    lines = features_csv.read_text().splitlines()
    features_csv.write_text("\n".join(lines[:-40]) + "\n")
    outcome = command_line("train", "--resume", "cut")
    assert outcome.code == 2
    assert "the saved sampler drew from n=" in outcome.error


def test_no_checkpoint_yet_starts_again(command_line, cut, tmp_path, outcome_of):
    shutil.rmtree(cut / "checkpoints")
    (cut / "events.jsonl").unlink()
    outcome = command_line("train", "--resume", "cut")
    assert outcome.code == 0
    assert "cut: no checkpoint yet, starting from the first step" in outcome.err
    assert outcome_of(cut) == outcome_of(tmp_path / "whole")
    assert read_events(cut / "events.jsonl")[0]["kind"] == "start"


def test_ctrl_c_in_the_last_step_and_a_death_before_the_results(
    command_line, features_csv, stop_at, tmp_path, outcome_of
):
    arguments = ("--data", features_csv, *QUICK)
    assert command_line("train", *arguments, "--out", "whole").code == 0
    stop_at(6)
    outcome = command_line("train", *arguments, "--out", "cut", "--baseline")
    assert outcome.code == 130
    assert "saved at step 6" in outcome.err
    assert not (tmp_path / "cut" / "baseline").exists()  # Ctrl-C does not only skip to the twin
    outcome = command_line("train", "--resume", "cut")
    assert outcome.code == 0, outcome.err
    assert outcome_of(tmp_path / "cut") == outcome_of(tmp_path / "whole")
    assert (tmp_path / "cut" / "baseline" / "result.json").exists()


def test_ctrl_c_in_the_twin_goes_on_with_the_twin(
    command_line, features_csv, stop_at, tmp_path, outcome_of
):
    stop_at(3, private=False)
    arguments = ("--data", features_csv, *QUICK, "--baseline", "--out", "cut")
    outcome = command_line("train", *arguments)
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1].endswith("steelyard train --resume cut")
    private = outcome_of(tmp_path / "cut")
    outcome = command_line("train", "--resume", "cut")
    assert outcome.code == 0
    assert "cut: finished already" in outcome.err
    assert "cut/baseline: going on after step 3 of 6" in outcome.err
    assert outcome_of(tmp_path / "cut") == private
    assert "not private" in outcome.out


def test_ctrl_c_before_the_first_step_writes_nothing(
    command_line, features_csv, tmp_path, monkeypatch
):
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steelyard.runs.recipes._shape", pressed)  # between folder and first step
    outcome = command_line("train", "--data", features_csv, *QUICK, "--out", "cut")
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == (
        "interrupted before the first step; nothing was written"
    )
    assert not (tmp_path / "cut").exists()


def test_a_second_ctrl_c_is_honest_about_what_is_lost(
    command_line, features_csv, tmp_path, monkeypatch
):
    one_step = Training._one_step

    def pressed(training: Training):
        if training.step == 3:
            raise KeyboardInterrupt
        return one_step(training)

    monkeypatch.setattr(Training, "_one_step", pressed)
    outcome = command_line("train", "--data", features_csv, *QUICK, "--out", "cut")
    assert outcome.code == 130
    assert "saved at" not in outcome.err
    assert "steps since the last checkpoint are lost" in outcome.err
    assert "steelyard train --resume cut" in outcome.err
