"""Bad input on the command line: one line that names the value and the fix, code 2, no folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

QUICK = ("--accountant", "rdp", "--steps", 2)


@pytest.fixture
def bad_files(tmp_path) -> None:
    """Files that a user may well have; each is wrong in one way."""
    rows = [f"{i % 7}.5,{i % 2},{i}" for i in range(60)]
    files = {
        "nan.csv": ["a,label", "1,0", "nan,1", *(f"{i},{i % 2}" for i in range(40))],
        "inf.csv": ["a,label", "1,0", *(f"{i},{i % 2}" for i in range(40)), "inf,1"],
        "torn.csv": ["a,label", "1,0", '"2,1'],
        "torn.jsonl": ['{"text": "good", "label": 1}', '{"text": "ba'],
        "empty.csv": [],
        "gap.csv": ["a,label", *(f"{i},{7 if i % 2 else 0}" for i in range(40))],
        "good.csv": ["a,label,other", *rows],
        "unseen.csv": ["a,label,other", "1,0,2", "2,9,2"],
        "words.jsonl": [json.dumps({"text": f"word {i}", "label": i % 2}) for i in range(40)],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "dog").mkdir()
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "photos" / "dog" / "1.png").write_bytes(b"\x89PNG no more")
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": 1}], dtype=object))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")


# what is typed after `steelyard train`, and what its one line must name: the value, the fix
WRONG = {
    "data": ("--data cfar10", ["'cfar10'", "did you mean 'cifar10'", "steelyard data list"]),
    "data without a likeness": ("--data qqqq", ["'qqqq'", "steelyard data list"]),
    "model": ("--model cn", ["'cn'", "did you mean 'cnn'"]),
    "model folder": ("--model ./nosuch", ["'./nosuch'", "check the path"]),
    "model for other data": ("--model gpt --data good.csv", ["'gpt'", "use 'mlp'"]),
    "text for cnn": ("--model cnn --data words.jsonl", ["'cnn'", "words.jsonl", "use gpt"]),
    "no file": ("--data nosuch.csv", ["nosuch.csv", "no such file"]),
    "torn csv": ("--data torn.csv", ["torn.csv", "line 3", "CSV"]),
    "torn jsonl": ("--data torn.jsonl", ["torn.jsonl", "line 2", "JSON"]),
    "empty file": ("--data empty.csv", ["empty.csv", "empty"]),
    "broken image": ("--data photos", ["1.png", "not a readable image"]),
    "pickle": ("--data pickled.npz", ["pickled.npz"]),
    "label column": ("--data good.csv --label lable", ["'lable'", "did you mean 'label'"]),
    "text column": ("--data words.jsonl --text txt", ["'txt'", "did you mean 'text'"]),
    "label range": ("--data gap.csv", ["gap.csv", "label 7", "out of range", "0..1"]),
    "test label": ("--data good.csv --test unseen.csv", ["unseen.csv", "9", "training"]),
    "nan": ("--data nan.csv", ["nan.csv", "line 3", "'nan'", "finite"]),
    "inf": ("--data inf.csv", ["inf.csv", "line 43", "'inf'", "finite"]),
    "epsilon 0": ("--epsilon 0", ["--epsilon", "0", "positive", "--no-privacy"]),
    "epsilon negative": ("--epsilon -1", ["--epsilon", "-1", "positive"]),
    "epsilon nan": ("--epsilon nan", ["--epsilon", "nan"]),
    "epsilon inf": ("--epsilon inf", ["--epsilon", "inf", "--no-privacy"]),
    "delta 1": ("--delta 1", ["delta", "1", "below 1"]),
    "delta 0": ("--delta 0", ["delta", "0", "1/n"]),
    "delta nan": ("--delta nan", ["delta", "nan"]),
    "batch": ("--batch 12001", ["12001", "12000", "at most"]),
    "batch not private": ("--batch 12001 --no-privacy", ["12001", "at most 12000"]),
    "batch 0": ("--batch 0", ["--batch", "0", "positive"]),
    "micro-batch": ("--micro-batch 0", ["--micro-batch", "0"]),
    "epochs and steps": ("--epochs 3 --steps 4", ["--epochs 3", "--steps 4", "one of"]),
    "epsilon without": ("--epsilon 2 --no-privacy", ["--epsilon 2", "--no-privacy", "one"]),
    "device": ("--device banana", ["'banana'", "cpu"]),
    "device absent": ("--device cuda:77", ["'cuda:77'", "use cpu"]),
    "device meta": ("--device meta", ["'meta'", "use cpu"]),
    "clip": ("--clip flt", ["'flt'", "flat", "auto-s"]),
    "clip bound": ("--clip flat:-2", ["'flat:-2'", "positive"]),
    "clip no bound": ("--clip flat:inf", ["flat:inf", "give a bound"]),
    "groups": ("--groups foo", ["'foo'", "layer"]),
    "groups pattern": ("--groups 'head.*'", ["'head.*'", "matched no"]),
    "groups blocks": ("--groups 9", ["9", "4 layers"]),
    "optimizer": ("--optimizer admw", ["'admw'", "did you mean 'adamw'"]),
    "schedule": ("--schedule cosin", ["'cosin'", "did you mean 'cosine'"]),
    "accountant": ("--accountant rpd", ["'rpd'", "did you mean 'rdp'"]),
    "adapter": ("--adapter lore", ["'lore'", "did you mean 'lora'"]),
    "tracker": ("--tracker wandb", ["'wandb'", "tensorboard"]),
    "lr": ("--lr 0", ["--lr", "0", "positive"]),
    "momentum": ("--momentum 1", ["--momentum", "1", "[0, 1)"]),
    "average": ("--average 1.5", ["--average", "1.5", "[0, 1)"]),
    "weight decay": ("--weight-decay nan", ["--weight-decay", "nan"]),
    "warmup": ("--warmup -3", ["--warmup", "-3", "0 or more"]),
    "seed": (f"--seed {2**80}", ["--seed", str(2**80)]),
    "evaluate every": ("--evaluate-every 0", ["--evaluate-every", "0"]),
    "number": ("--steps many", ["--steps", "'many'", "--help"]),
    "number after =": ("--lr=fast", ["--lr", "'fast'", "--help"]),
    "option": ("--epsilo 3", ["--epsilo", "--epsilon", "--help"]),
    "folder there": ("--out full", ["'full'", "exists", "another --out"]),
    "folder is a file": ("--out good.csv", ["'good.csv'", "exists", "another --out"]),
    "folder under a file": ("--steps 1 --out good.csv/run", ["good.csv/run", "Not a directory"]),
    "resume nothing": ("--resume nosuch", ["'nosuch'", "no such folder", "--out"]),
    "resume no run": ("--resume full", ["'full'", "config.json", "--out"]),
    "resume with": ("--resume full --epsilon 2 --lr 1", ["--epsilon", "--lr", "drop"]),
    "resume dry": ("--resume full --dry-run", ["--dry-run", "drop"]),
    "resume elsewhere": ("--resume full --out b", ["--out", "drop"]),
}


def files_below(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(what, command_line, bad_files, tmp_path):
    typed, named = WRONG[what]
    before = files_below(tmp_path)
    arguments = typed.replace("'", "").split()
    if "--out" not in arguments and "--resume" not in arguments:
        arguments += ["--out", "new/run"]
    outcome = command_line("train", *arguments)
    assert outcome.code == 2
    assert outcome.error.startswith("steelyard: ")
    for part in named:
        assert part in outcome.error
    assert outcome.out == ""
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("trian", ["'trian'", "'train'"]),
        ("plan privacy --n 100 --batch 10 --steps 5", ["--epsilon", "--sigma"]),
        ("plan privacy --n 10 --batch 100 --steps 5 --epsilon 1", ["100", "10", "at most"]),
        ("plan privacy --batch 10", ["--n", "--help"]),
        ("plan privacy --n ten --batch 10", ["--n", "'ten'"]),
        ("data get mnits", ["'mnits'", "did you mean 'mnist'"]),
        ("report nosuch", ["nosuch", "--out"]),
        ("claims nosuch", ["'nosuch'", "steelyard claims"]),
        ("claims nosuch --run", ["'nosuch'", "steelyard claims"]),
    ],
)
def test_other_verbs_explain_in_one_line_too(typed, named, command_line):
    outcome = command_line(*typed.split())
    assert outcome.code == 2
    for part in named:
        assert part in outcome.error


def test_our_own_defects_keep_their_traceback(command_line, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("steelyard.data.catalog", broken)
    with pytest.raises(KeyError, match="a defect"):
        command_line("data", "list")


def test_ctrl_c_while_reading_the_data(command_line, features_csv, tmp_path, monkeypatch):
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steelyard.runs.settings.read_table", pressed)
    before = files_below(tmp_path)
    outcome = command_line("train", "--data", features_csv, "--out", "run")
    assert (outcome.code, outcome.error) == (130, "interrupted")
    assert files_below(tmp_path) == before


def test_too_little_memory_names_the_way_out(command_line, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("steelyard.runs.loop.Training.run", full)
    outcome = command_line("train", *QUICK, "--out", "run", "--no-baseline")
    assert outcome.code == 2
    assert "--micro-batch" in outcome.err.splitlines()[-1]


def test_a_large_delta_warns_in_one_line_and_the_run_goes_on(command_line, features_csv, tmp_path):
    outcome = command_line("train", "--data", features_csv, "--delta", 0.01, *QUICK, "--out", "run")
    assert outcome.code == 0
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("note: ")]
    assert "0.01" in warning
    assert "1/n" in warning
    assert json.loads((tmp_path / "run" / "result.json").read_text())["delta"] == 0.01


def test_no_space_at_the_start_leaves_nothing(command_line, features_csv, tmp_path, monkeypatch):
    monkeypatch.setattr("steelyard.runs.folder.free_bytes", lambda path: 1000)
    before = files_below(tmp_path)
    outcome = command_line("train", "--data", features_csv, *QUICK, "--out", "new/run")
    assert outcome.code == 2
    assert "no space left to write 'new/run'" in outcome.error
    assert "free some space" in outcome.error
    assert files_below(tmp_path) == before


def test_no_space_for_the_settings_leaves_nothing(
    command_line, features_csv, tmp_path, monkeypatch
):
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("steelyard.runs.files.os.fsync", full)
    before = files_below(tmp_path)
    outcome = command_line("train", "--data", features_csv, *QUICK, "--out", "new/run")
    assert outcome.code == 2
    assert "no space left" in outcome.error
    assert files_below(tmp_path) == before


def test_no_space_on_the_way_keeps_the_last_checkpoint(command_line, features_csv, monkeypatch):
    from steelyard.runs import checkpoint

    free, asked = checkpoint.free_bytes, []

    def filling(path: object) -> int:
        asked.append(path)
        return 1000 if len(asked) == 4 else free(path)  # the first is of step 0

    monkeypatch.setattr("steelyard.runs.checkpoint.free_bytes", filling)
    arguments = ("--accountant", "rdp", "--steps", 5, "--checkpoint-every", 1)
    outcome = command_line("train", "--data", features_csv, *arguments, "--out", "run")
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("steelyard: no space left to write 'run/checkpoints/step-00000003'")
    assert last.endswith("steelyard train --resume run")
    outcome = command_line("train", "--resume", "run")
    assert outcome.code == 0
    assert "going on after step 2 of 5" in outcome.err


def test_a_run_that_fails_in_its_first_step_leaves_nothing(
    command_line, features_csv, tmp_path, monkeypatch
):
    def mixes(*_: object) -> None:
        raise ValueError("a sample's loss depends on other samples")

    monkeypatch.setattr("steelyard.rows.per_sample.PerSample.backward", mixes)
    (tmp_path / "run").mkdir()  # empty, and the user's: it stays
    outcome = command_line("train", "--data", features_csv, *QUICK, "--out", "run")
    assert outcome.code == 2
    assert list((tmp_path / "run").iterdir()) == []
    assert command_line("train", "--data", features_csv, *QUICK, "--out", "a/b").code == 2
    assert not (tmp_path / "a").exists()


def test_a_real_process_behaves_the_same(tmp_path):
    """The console script's way in: real streams, real exit code."""
    command = [sys.executable, "-m", "steelyard.cli", "train"]
    for arguments, part in (
        (["--data", "cfar10"], "did you mean 'cifar10'"),
        (["--epsilon", "0"], "--epsilon must be positive, found 0"),
    ):
        done = subprocess.run(
            [*command, *arguments, "--out", "run"], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert part in done.stderr
        assert list(tmp_path.iterdir()) == []
