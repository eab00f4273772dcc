from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.runs.events import Events, read_events


def log(path: Path, *events: tuple[str, int]) -> None:
    with Events(path) as out:
        for kind, step in events:
            out.emit(kind, step)


def history(path: Path) -> list[tuple[str, int]]:
    return [(event["kind"], event["step"]) for event in read_events(path)]


def test_every_line_is_an_object_with_time_kind_and_step(tmp_path):
    path = tmp_path / "out" / "events.jsonl"
    with Events(path) as out:
        out.emit("train", 3, lr=0.1, loss=None, phase="warm-up", private=True)
    (line,) = path.read_text().splitlines()
    event = json.loads(line)
    assert list(event)[:3] == ["time", "kind", "step"]
    assert event["time"] > 1.7e9
    del event["time"]
    assert event.pop("private") is True
    assert event == {"kind": "train", "step": 3, "lr": 0.1, "loss": None, "phase": "warm-up"}


def test_numbers_become_what_json_has(tmp_path):
    fields = {
        "nan": float("nan"),
        "inf": [1.0, -float("inf"), {"deep": np.float32("nan")}],
        "numpy": [np.float64(0.5), np.int64(2), np.bool_(True), np.arange(2)],
        "torch": [torch.tensor(0.5), torch.tensor(3), torch.ones(2), torch.tensor(float("inf"))],
        "path": Path("checkpoints") / "step-00000003",
    }
    with Events(tmp_path / "e") as out:
        out.emit("eval", np.int64(4), **fields)
    (event,) = read_events(tmp_path / "e")
    assert event["step"] == 4
    assert event["nan"] is None
    assert event["inf"] == [1.0, None, {"deep": None}]
    assert event["numpy"] == [0.5, 2, True, [0, 1]]
    assert event["torch"] == [0.5, 3, [1.0, 1.0], None]
    assert event["path"] == "checkpoints/step-00000003"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"a": {"b": object()}}, "'eval.a.b' is a object"),
        ({"time": 0}, "field name 'time' of a 'eval' event is taken"),
    ],
)
def test_a_bad_field_writes_nothing(tmp_path, fields, says):
    with Events(tmp_path / "e") as out, pytest.raises(ValueError, match=says):
        out.emit("eval", 1, **fields)
    assert (tmp_path / "e").read_bytes() == b""


# --- torn lines ----------------------------------------------------------------------------------


def test_a_torn_last_line_is_cut_wherever_it_tore(tmp_path):
    path = tmp_path / "e"
    log(path, ("start", 0), ("train", 1))
    whole = path.read_bytes()
    last = whole.index(b"\n") + 1
    for end in range(last, len(whole) + 1):
        path.write_bytes(whole[:end])
        complete = end >= len(whole) - 1  # only its line end is missing, or nothing
        expected = [("start", 0), *([("train", 1)] if complete else [])]
        assert history(path) == expected
        Events(path).close()
        assert path.read_bytes() == (whole if complete else whole[:last])
        log(path, ("train", 2))
        assert history(path) == [*expected, ("train", 2)]


def test_what_a_power_cut_leaves_is_cut(tmp_path):
    path = tmp_path / "e"
    log(path, ("start", 0))
    good = path.read_bytes()
    path.write_bytes(good + b"\0" * 100)
    Events(path).close()
    assert path.read_bytes() == good


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "e"
    log(path, ("start", 0), ("train", 1))
    first, second, _ = path.read_bytes().split(b"\n")
    for bad in (first[:-5], b"", b"[1]", b'{"kind": "train"}', b"\xff"):
        path.write_bytes(b"\n".join((first, bad, second, b"")))
        with pytest.raises(ValueError, match="line 2 is not an event: the file was damaged"):
            read_events(path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read '.*none': No such file or directory"):
        read_events(tmp_path / "none")
    with pytest.raises(ValueError, match="cannot write"):
        Events(tmp_path)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """A limit on the file's size takes half of a line, then fails: as a full disk does."""
    path = tmp_path / "e"
    log(path, ("start", 0))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Events(path) as out:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
            with pytest.raises(ValueError, match=r"cannot write '.*': File too large"):
                out.emit("train", 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        out.emit("train", 1)
    assert history(path) == [("start", 0), ("train", 1)]


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    path = tmp_path / "e"
    script = (
        "import os, sys; from steelyard.runs.events import Events\n"
        "out = Events(sys.argv[1])\n"
        "for step in range(50): out.emit('train', step, text='x' * 1000)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    assert history(path) == [("train", step) for step in range(50)]


# --- resuming ------------------------------------------------------------------------------------


def test_what_is_done_again_after_a_resume_replaces_what_was_done(tmp_path):
    path = tmp_path / "e"
    with Events(path) as out:
        out.emit("start", 0)
        for step in (10, 20, 30):
            out.emit("train", step, value="first")
            out.emit("eval", step, split="test", value="first")
        out.emit("interrupt", 30)
    with Events(path) as out:
        out.resume(20, "checkpoints/step-00000020")
        out.emit("train", 30, value="second")
        out.emit("finish", 30)
    assert len(path.read_text().splitlines()) == 11  # nothing was rewritten
    events = read_events(path)
    (resume,) = (event for event in events if event["kind"] == "resume")
    assert resume["step"] == 20
    assert resume["from"] == "checkpoints/step-00000020"
    assert resume["replaced"] == 3  # train 30, eval 30, interrupt 30
    assert history(path) == [
        *[("start", 0), ("train", 10), ("eval", 10), ("train", 20), ("eval", 20)],
        *[("resume", 20), ("train", 30), ("finish", 30)],
    ]
    assert [event["value"] for event in events if event["kind"] == "train"] == [
        *("first", "first", "second"),
    ]


def test_a_finished_run_that_goes_on_has_one_finish(tmp_path):
    path = tmp_path / "e"
    log(path, ("start", 0), ("train", 5), ("finish", 5))
    with Events(path) as out:
        out.resume(5, "c")
        out.emit("train", 6)
        out.emit("finish", 6)
    assert history(path) == [
        *[("start", 0), ("train", 5), ("resume", 5), ("train", 6), ("finish", 6)],
    ]


def test_a_repeated_measurement_of_one_step_counts_once(tmp_path):
    path = tmp_path / "e"
    with Events(path) as out:
        for value, split in ((1, "test"), (2, "train"), (3, "test")):
            out.emit("eval", 7, split=split, value=value)
        for name in ("a", "b", "a"):
            out.emit("phase", 7, name=name)
    events = read_events(path)
    assert [event.get("value") for event in events] == [2, 3, None, None]
    assert [event.get("name") for event in events] == [None, None, "b", "a"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0, 1)), max_size=4))
def test_any_interruptions_read_as_an_uninterrupted_run(tmp_path, crashes):
    """A run of 12 steps, killed after some step and resumed from a checkpoint at or before it."""
    path = tmp_path / "e"
    path.unlink(missing_ok=True)
    step = 0
    for stop, back in (*crashes, (12, 1.0)):
        with Events(path) as out:
            if step:
                out.resume(step, "c")
            for now in range(step + 1, max(stop, step) + 1):
                out.emit("train", now)
        step = int(back * max(stop, step))
    steps = [event["step"] for event in read_events(path) if event["kind"] == "train"]
    assert steps == list(range(1, 13))


# --- trackers ------------------------------------------------------------------------------------


class Noted:
    def __init__(self) -> None:
        self.seen: list = []

    def log(self, step, numbers):
        self.seen.append((step, dict(numbers)))

    def close(self):
        self.seen.append("closed")


def test_trackers_get_the_numbers_of_measurements_only(tmp_path):
    tracker = Noted()
    with Events(tmp_path / "e", [tracker]) as out:
        out.emit("start", 0, n=100)
        out.emit("train", 1, lr=0.1, loss=None, epsilon=np.float64(0.5), note="x", private=True)
        out.emit("eval", 1, split="test", accuracy=0.8, loss=float("nan"), n=10)
        out.emit("checkpoint", 1, path="c")
    assert tracker.seen == [
        (1, {"train/lr": 0.1, "train/epsilon": 0.5}),
        (1, {"test/accuracy": 0.8, "test/n": 10.0}),
        "closed",
    ]
    out.close()  # a second time does nothing
    assert tracker.seen[-1] == "closed"
    assert len(tracker.seen) == 3


def test_the_descriptor_is_not_leaked(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    if before is None:
        pytest.skip("no /proc on this system")
    for _ in range(5):
        Events(tmp_path / "e").close()
    assert len(os.listdir("/proc/self/fd")) == before
