from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from steelyard.runs import trackers
from steelyard.runs.trackers import find_tracker


def test_none_is_none(tmp_path):
    assert find_tracker("none", tmp_path, "run") is None


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown tracker 'wandb': choose one of none, auto"):
        find_tracker("wandb", tmp_path, "run")


@pytest.mark.parametrize("choice", ["tensorboard", "trackio"])
def test_asking_for_a_missing_tracker_names_the_fix(tmp_path, monkeypatch, choice):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"'steelyard\[track\]'") as caught:
        find_tracker(choice, tmp_path, "run")
    assert choice in str(caught.value)
    assert "\n" not in str(caught.value)
    assert find_tracker("auto", tmp_path, "run") is None


def test_tensorboard_has_the_numbers_and_forgets_what_is_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed_at, steps, value in ((None, (1, 2, 3), 1.0), (1, (2, 3), 2.0)):
        tracker = find_tracker("auto", tmp_path, "run", resumed_at=resumed_at)
        assert isinstance(tracker, trackers.TensorBoard)
        for step in steps:
            tracker.log(step, {"train/lr": value * step})
        tracker.close()
    points = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/lr")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 4.0), (3, 6.0)]


def test_trackio_is_called_as_documented(tmp_path, monkeypatch):
    """A stand-in with the signatures of trackio 0.2, which is not part of the test machine."""
    calls = []
    module = ModuleType("trackio")

    def init(project, name=None, space_id=None, dataset_id=None, config=None, resume="never"):
        calls.append(("init", project, name, resume))

    def log(metrics, step=None):
        calls.append(("log", metrics, step))

    vars(module).update(init=init, log=log, finish=lambda: calls.append(("finish",)))
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "trackio" or None)
    tracker = find_tracker("auto", tmp_path, "run-1", resumed_at=5)
    assert tracker is not None
    tracker.log(6, {"train/lr": 0.1})
    tracker.close()
    assert calls == [
        ("init", "steelyard", "run-1", "allow"),
        ("log", {"train/lr": 0.1}, 6),
        ("finish",),
    ]
