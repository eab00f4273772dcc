"""Killed, interrupted, damaged: a resumed run ends with the weights of the one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steelyard.runs.events import read_events

# the default CNN on the embedded data, small enough for a test
SETTINGS = ("--batch", 48, "--noise-seed", 5, "--device", "cpu", "--no-baseline")
SETTINGS += ("--accountant", "rdp", "--evaluate-every", 20)
# the console script, without the report (seconds, and tested elsewhere)
SCRIPT = """
import sys
from pathlib import Path
import steelyard.report.page
steelyard.report.page.write_report = lambda folder: Path(folder) / "report.html"
from steelyard.cli import main
main()
"""


@contextmanager
def process(*arguments: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """`steelyard train ...` as a process of its own, gone at the end."""
    started = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "train", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def last_step(run: Path) -> int:
    try:
        events = read_events(run / "events.jsonl")
    except ValueError:
        return -1
    return max((e["step"] for e in events if e["kind"] == "train"), default=-1)


def wait_for_step(
    started: subprocess.Popen[str], run: Path, step: int, *, resumes: int = 0
) -> None:
    deadline = time.monotonic() + 120
    while last_step(run) < step or resumes_of(run) < resumes:
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def resumes_of(run: Path) -> int:
    events = run / "events.jsonl"
    found = read_events(events) if events.exists() else []
    return sum(event["kind"] == "resume" for event in found)


def killed_at(tmp_path: Path, arguments: tuple[object, ...], steps: list[int]) -> None:
    """Begin the run `cut`, kill it soon after the first of `steps`, resume, kill again, ..."""
    moment, run = random.Random(7), tmp_path / "cut"
    for number, step in enumerate(steps):
        begin = (*arguments, "--out", "cut") if number == 0 else ("--resume", "cut")
        with process(*begin, cwd=tmp_path) as started:
            wait_for_step(started, run, step, resumes=number)
            time.sleep(moment.uniform(0, 0.03))
            started.send_signal(signal.SIGKILL)
            assert started.wait() == -signal.SIGKILL
            assert not (run / "result.json").exists()


def test_sigkill_at_random_steps(command_line, tmp_path, outcome_of):
    arguments = (*SETTINGS, "--steps", 45, "--checkpoint-every", 3)
    assert command_line("train", *arguments, "--out", "whole").code == 0
    steps = sorted(random.Random(0).sample(range(1, 35), 2))
    killed_at(tmp_path, arguments, steps)
    outcome = command_line("train", "--resume", "cut")
    assert outcome.code == 0
    assert "cut: going on after step" in outcome.err
    assert outcome_of(tmp_path / "cut") == outcome_of(tmp_path / "whole")
    assert resumes_of(tmp_path / "cut") == 2


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_sigkill_many_times(command_line, tmp_path, every, seed, outcome_of):
    options = ("--optimizer", "adamw", "--lr", 0.003, "--average", 0.9, "--schedule", "cosine")
    arguments = (*SETTINGS, *options, "--steps", 80, "--checkpoint-every", every)
    assert command_line("train", *arguments, "--out", "whole").code == 0
    killed_at(tmp_path, arguments, sorted(random.Random(seed).sample(range(1, 70), 4)))
    with process("--resume", "cut", cwd=tmp_path) as started:
        _, err = started.communicate(timeout=120)
    assert started.returncode == 0, err
    assert outcome_of(tmp_path / "cut") == outcome_of(tmp_path / "whole")


def test_ctrl_c_saves_and_says_how_to_go_on(command_line, tmp_path, outcome_of):
    arguments = (*SETTINGS, "--steps", 45, "--checkpoint-every", 40)
    assert command_line("train", *arguments, "--out", "whole").code == 0
    with process(*arguments, "--out", "cut", cwd=tmp_path) as started:
        wait_for_step(started, tmp_path / "cut", 4)
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "Traceback" not in err
    saved = read_events(tmp_path / "cut" / "events.jsonl")[-1]
    assert saved["kind"] == "interrupt"
    step = saved["step"]
    assert err.splitlines()[-1] == (
        f"interrupted; saved at step {step}; go on with: steelyard train --resume cut"
    )
    assert out == ""
    ledger = json.loads((tmp_path / "cut" / "ledger.json").read_text())
    assert ledger["steps"] == step  # what was spent is on record even if nobody goes on
    outcome = command_line("train", "--resume", "cut")
    assert outcome.code == 0
    assert f"cut: going on after step {step} of 45" in outcome.err
    assert outcome_of(tmp_path / "cut") == outcome_of(tmp_path / "whole")
