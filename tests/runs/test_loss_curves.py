"""Curves from run folders, CSV and TensorBoard: which step a loss belongs to, and refusals."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest

from steelyard.plans.schedule_shapes import Shape
from steelyard.runs.loss_curves import read_curves
from steelyard.runs.optimizers import rate


@pytest.fixture
def run_folder(tmp_path, tiny_config):
    """`run_folder(steps=40, private=False, ...)`: a finished run as the training loop leaves it."""

    def make(name="run", *, steps=40, private=False, finished=True, every=2, edit=None, **changes):
        folder = tmp_path / name
        folder.mkdir()
        config = tiny_config.replace(
            steps=steps, epsilon=3.0 if private else None, schedule="cosine", warmup=4, **changes
        )
        plan = {"noise_multiplier": 1.2} if private else None
        settings = config.to_dict() | {"total_steps": steps, "plan": plan}
        (folder / "config.json").write_text(json.dumps(settings))
        events = [{"kind": "start", "step": 0}]
        for step in range(every, steps + 1, every):
            lr = config.lr * rate(config, step - 1, steps)
            loss = None if private else 1 + 1 / step
            events.append({"kind": "train", "step": step, "lr": lr, "loss": loss})
        for step in range(10, steps + 1, 10):
            events.append({"kind": "eval", "step": step, "split": "test", "loss": 2 + 1 / step})
        events += [{"kind": "finish", "step": steps}] if finished else []
        events = edit(events) if edit else events
        lines = [json.dumps({"time": 0.0, **event}) for event in events]
        (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make


def test_a_run_folder(run_folder, tiny_config):
    (curve,) = read_curves(run_folder())
    assert (curve.horizon, curve.split) == (40, "train")
    assert curve.peak == pytest.approx(tiny_config.lr)
    assert curve.lr == pytest.approx(tiny_config.lr * Shape(kind="cosine", warmup=0.1)(40))
    assert curve.shape == Shape(kind="cosine", warmup=0.1)
    assert curve.steps.tolist() == [step - 1 for step in range(2, 41, 2)]  # before its move
    assert curve.losses[0] == 1.5
    assert curve.final() == pytest.approx(1 + 1 / 40)
    assert curve.final(0.2) == pytest.approx(np.mean([1 + 1 / s for s in (34, 36, 38, 40)]))


def test_the_test_loss_belongs_to_the_step_it_follows(run_folder):
    (curve,) = read_curves(run_folder(), "test")
    assert curve.steps.tolist() == [10, 20, 30, 40]
    assert curve.final() == pytest.approx(2 + 1 / 40)
    assert not curve.notes


def test_a_private_run_has_its_test_loss_and_says_so(run_folder):
    (curve,) = read_curves(run_folder(private=True))
    assert curve.split == "test"
    assert curve.settings["noise"] == 1.2
    assert "private run logs no training loss" in curve.notes[0]
    with pytest.raises(ValueError, match="a private run logs none"):
        read_curves(run_folder("again", private=True), "train")


def test_averaged_weights_are_noted(run_folder):
    (curve,) = read_curves(run_folder(average=0.9), "test")
    assert "averaged" in curve.notes[0]


def test_rates_that_are_not_the_settings_are_taken_from_the_log(run_folder):
    def halved(events):
        return [e | ({"lr": e["lr"] / 2} if "lr" in e else {}) for e in events]

    (curve,) = read_curves(run_folder(edit=halved))
    assert curve.shape is None
    assert curve.peak == pytest.approx(0.25, rel=0.1)


def test_a_resumed_run_counts_once(run_folder):
    def resumed(events):
        early = [e for e in events if e["step"] <= 20 and e["kind"] == "train"]
        wrong = [{**e, "step": e["step"] + 10, "loss": 99.0} for e in early[-5:]]
        return [*early, *wrong, {"kind": "resume", "step": 20}, *events]

    (curve,) = read_curves(run_folder(edit=resumed))
    (clean,) = read_curves(run_folder("clean"))
    assert curve.losses == pytest.approx(clean.losses)


@pytest.mark.parametrize(
    ("options", "loss", "said"),
    [
        ({"finished": False}, "auto", "stopped at step 40 of 40"),
        ({}, "val", "unknown loss 'val'"),
        ({"edit": lambda events: [e for e in events if e["kind"] != "eval"]}, "test", "no test"),
        ({"edit": lambda events: [e for e in events if e["kind"] != "train"]}, "auto", "rates"),
    ],
)
def test_run_folders_that_are_refused(run_folder, options, loss, said):
    with pytest.raises(ValueError, match=said) as error:
        read_curves(run_folder(**options), loss)
    assert "\n" not in str(error.value)


def test_csv_of_several_runs(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "run,step,lr,loss,val_loss\n"
        "a,10,0.5,3,\na,20,0.25,2,4\nb,10,1.0,5,\nb,30,0.5,4,6\n"  # an empty cell: not logged
    )
    a, b = read_curves(path)
    assert (a.name, b.name) == ("a", "b")
    assert (a.horizon, b.horizon) == (20, 30)
    assert a.lr[[0, 9, 14, 19]] == pytest.approx([0.5, 0.5, 0.375, 0.25])
    assert a.steps.tolist() == [9, 19]
    assert b.losses.tolist() == [5, 4]
    a, _ = read_curves(path, "val_loss")
    assert (a.steps.tolist(), a.losses.tolist()) == ([20], [4])  # a test loss follows its step


def test_steps_from_0_are_counted_from_1(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step,rate,loss\n0,1.0,3\n1,0.5,2\n2,0.25,1\n")
    (curve,) = read_curves(path, lr="rate")
    assert curve.name == "run"
    assert curve.lr.tolist() == [1.0, 0.5, 0.25]
    assert curve.steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step,loss\n1,2\n", "no column 'lr', it has step, loss"),
        ("step,lr,loss\n", "no rows"),
        ("step,lr,loss\n1,x,2\n", "line 2 is not numbers"),
        ("step,lr,loss\n1,0.1\n", "no loss loss"),
        ("step,lr,loss\n1,0.1,nan\n2,0.1,1\n", "not finite"),
        ("step,lr,loss\n1,,1\n2,,1\n", "no learning rates"),
        ("step,lr,loss\n1,-1,1\n", "below 0"),
    ],
)
def test_csv_that_is_refused(tmp_path, text, said):
    path = tmp_path / "run.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        read_curves(path)
    assert "\n" not in str(error.value)


def test_nothing_to_read(tmp_path):
    for path in (tmp_path, tmp_path / "missing", tmp_path / "missing.csv"):
        with pytest.raises(ValueError, match="nothing to read"):
            read_curves(path)


@pytest.fixture
def tensorboard_folder(tmp_path):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(tmp_path / "tb"))
    for step in range(1, 2001):  # more than TensorBoard keeps by itself
        writer.add_scalar("train/lr", 0.5 * (1 - (step - 1) / 2000), step)
        writer.add_scalar("train/loss", 1 + 1 / step, step)
    writer.add_scalar("test/loss", 7.0, 2000)
    writer.close()
    return tmp_path / "tb"


def test_tensorboard(tensorboard_folder):
    (file,) = tensorboard_folder.iterdir()
    for source in (tensorboard_folder, file):
        (curve,) = read_curves(source)
        assert (curve.horizon, len(curve.losses)) == (2000, 2000)
        assert curve.lr == pytest.approx(0.5 * Shape(kind="linear")(2000), rel=1e-4)
        assert (curve.steps[0], curve.losses[0]) == (0, 2.0)
    (curve,) = read_curves(tensorboard_folder, "test")
    assert (curve.steps.tolist(), curve.losses.tolist()) == ([2000], [7.0])
    with pytest.raises(ValueError, match=r"no loss perplexity, it has .*train/loss"):
        read_curves(tensorboard_folder, "perplexity")


def test_tensorboard_that_is_not_installed(tensorboard_folder, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'steelyard\[track\]'"):
        read_curves(tensorboard_folder)
