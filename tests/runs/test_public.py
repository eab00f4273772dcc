"""Public samples in a run: told apart from the private ones, drawn, charged for nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from steelyard.data import Table
from steelyard.data.split import keys
from steelyard.runs.config import TrainConfig
from steelyard.runs.events import read_events
from steelyard.runs.preview import plan_for
from steelyard.runs.public import PublicBatches
from steelyard.runs.separate import separate

CONFIG = TrainConfig(model="mlp", data="x", steps=10, batch=8, public_part=0.25)


def table(n: int = 200, seed: int = 0) -> Table:
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(n, 3)).astype(np.float32), np.arange(n) % 2
    return Table(
        name="x",
        kind="features",
        train_x=x,
        train_y=y.astype(np.int64),
        test_x=x[:10] + 1,
        test_y=y[:10].astype(np.int64),
        classes=("a", "b"),
        source="made up",
        licence="none",
    )


# -- told apart ----------------------------------------------------------------------------------


def test_a_public_part_and_the_rest_are_the_whole_and_disjoint():
    whole = table()
    private, public = separate(CONFIG, whole)
    assert public is not None
    own, other = set(keys(private.train_x)), set(keys(public.train_x))
    assert not own & other
    assert own | other == set(keys(whole.train_x))
    assert 30 <= len(other) <= 70  # a quarter of 200, by content
    assert public.train_y is not None
    where = {key: int(label) for key, label in zip(keys(whole.train_x), whole.train_y, strict=True)}
    for key, label in zip(keys(public.train_x), public.train_y, strict=True):
        assert where[key] == label


def test_one_private_sample_more_moves_no_other():
    whole = table()
    assert isinstance(whole.train_x, np.ndarray)
    assert whole.train_y is not None
    less = dataclasses.replace(whole, train_x=whole.train_x[1:], train_y=whole.train_y[1:])
    parts = [
        [set(keys(part.train_x)) for part in separate(CONFIG, one) if part is not None]
        for one in (whole, less)
    ]
    gone = keys(whole.train_x)[0]
    assert parts[1] == [part - {gone} for part in parts[0]]


def test_a_share_that_leaves_nobody_is_refused():
    with pytest.raises(ValueError, match="leaves 0 public ones"):
        separate(CONFIG.replace(public_part=1e-6), table())


def test_other_classes_other_shapes_and_common_rows_are_refused(tmp_path, monkeypatch):
    config = CONFIG.replace(public_part=None, public_data="other")
    whole = table()

    def beside(other: Table) -> None:
        monkeypatch.setattr("steelyard.runs.separate.load", lambda *_, **__: other)
        separate(config, whole)

    stranger = table(seed=1)
    beside(stranger)
    with pytest.raises(ValueError, match="features of 3 classes, the private data features of 2"):
        beside(dataclasses.replace(stranger, classes=("a", "b", "c")))
    assert isinstance(stranger.train_x, np.ndarray)
    assert isinstance(stranger.test_x, np.ndarray)
    narrow = dataclasses.replace(
        stranger, train_x=stranger.train_x[:, :2], test_x=stranger.test_x[:, :2]
    )
    with pytest.raises(ValueError, match="rows of another shape"):
        beside(narrow)
    with pytest.raises(ValueError, match="private training rows"):
        beside(whole)
    assert isinstance(whole.test_x, np.ndarray)
    tested = np.concatenate([stranger.train_x[:-10], whole.test_x])
    with pytest.raises(ValueError, match="test rows"):
        beside(dataclasses.replace(stranger, train_x=tested))


# -- drawn ---------------------------------------------------------------------------------------


def test_every_public_sample_once_per_pass():
    batches = PublicBatches(20, 5, seed=3)
    passes = [torch.cat([batches.draw() for _ in range(4)]).tolist() for _ in range(2)]
    assert [sorted(one) for one in passes] == [list(range(20))] * 2
    assert passes[0] != passes[1]


def test_what_is_held_back_is_never_trained_on():
    batches = PublicBatches(40, 6, seed=3, hold_back=True)
    held = set(batches.held.tolist())
    assert len(held) == 4
    drawn = {i for _ in range(30) for i in batches.draw().tolist()}
    assert drawn == set(range(40)) - held


def test_batches_go_on_where_they_were():
    whole, half = PublicBatches(20, 6, seed=3), PublicBatches(20, 6, seed=3)
    for _ in range(5):
        whole.draw()
        half.draw()
    again = PublicBatches(20, 6, seed=3)
    again.load_state_dict(half.state_dict())
    for _ in range(4):
        assert torch.equal(whole.draw(), again.draw())


# -- charged -------------------------------------------------------------------------------------


def test_only_the_private_steps_are_planned():
    config = CONFIG.replace(public_first=0.3, epsilon=3.0)
    plan, steps = plan_for(config, 100)
    assert steps == 10
    assert plan is not None
    assert plan.steps == 7
    assert plan.n == 100
    alone, _ = plan_for(config.replace(public_first=0.0, steps=7), 100)
    assert plan == alone


def test_all_public_is_not_private():
    with pytest.raises(ValueError, match=r"--public-first must be in \[0, 1\), found 1"):
        CONFIG.replace(public_first=1.0, epsilon=3.0)
    assert plan_for(CONFIG.replace(public_first=1.0, epsilon=None), 100) == (None, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"public_weight": "0.5", "public_part": None}, "give --public-data or --public-part"),
        ({"public_first": 0.1, "public_part": None}, "--public-first needs"),
        ({"public_data": "y"}, "give one"),
        ({"public_part": 1.5}, r"--public-part must be in \[0, 1\), found 1.5"),
        ({"public_weight": "0.5", "epsilon": None}, "--public-weight works on privatised"),
        ({"filters": ["doppler:0.9"], "epsilon": None}, "--filter works on privatised"),
        ({"at_switch": "reset"}, "unknown --at-switch 'reset'"),
        ({"public_stop": "never"}, "unknown --public-stop 'never'"),
        ({"public_lr": 0.0}, "--public-lr must be positive, found 0.0"),
        ({"public_batch": 0}, "--public-batch must be positive, found 0"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.replace(**changes)


# -- a run ---------------------------------------------------------------------------------------

PHASES = {
    "public_part": 0.3,
    "public_first": 0.4,
    "public_batch": 6,
    "optimizer": "adamw",
    "lr": 0.01,
    "steps": 10,
}


def test_a_run_with_two_phases(new_training, carry_out, tmp_path):
    training = new_training(public_lr=0.02, **PHASES)
    assert training.public_steps == 4
    carry_out(training, tmp_path)
    assert training.step == 10
    assert training.ledger.steps == 6
    events = read_events(tmp_path / "events.jsonl")
    trained = [event for event in events if event["kind"] == "train"]
    assert [event["lr"] for event in trained] == [0.02] * 4 + [0.01] * 6
    assert [event["loss"] is None for event in trained] == [False] * 4 + [True] * 6
    assert [event["epsilon"] == 0 for event in trained] == [True] * 4 + [False] * 6
    (phase,) = [event for event in events if event["kind"] == "phase"]
    assert phase["step"] == 4
    assert "reset-m" in phase["name"]
    state = training.optimizer.state_dict()["state"]
    assert {int(one["step"]) for one in state.values()} == {10}  # the counter went on


@pytest.mark.parametrize("at_switch", ["reset-m", "reset-all"])
@pytest.mark.parametrize("stop", [2, 4, 5, 8])
def test_resume_in_any_phase_is_bit_for_bit(new_training, carry_out, tmp_path, stop, at_switch):
    options = PHASES | {
        "at_switch": at_switch,
        "filters": ["disk:0.7", "doppler:0.5"],
        "public_weight": "optimal",
        "noise_seed": 3,
    }
    whole = new_training(**options)
    carry_out(whole, tmp_path / "whole")
    half = new_training(**options)
    steps, half.steps = half.steps, stop
    carry_out(half, tmp_path / "half")
    resumed = new_training(**options)
    assert resumed.resume(tmp_path / "half") == []
    assert (resumed.step, resumed.steps) == (stop, steps)
    carry_out(resumed, tmp_path / "half")
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.ledger.state_dict() == resumed.ledger.state_dict()


@pytest.mark.parametrize("stop", ["validation", "curvature"])
def test_public_statistics_end_the_phase_early(
    new_training, carry_out, tmp_path, monkeypatch, stop
):
    options = PHASES | {"public_first": 0.9, "steps": 200, "lr": 1.0, "public_stop": stop}
    monkeypatch.setattr(  # a landscape that falls at once and stays there
        "steelyard.runs.public.PublicPhase._value",
        lambda self, model, seen=[]: seen.append(0) or (9.0 if len(seen) == 1 else 1.0),
    )
    training = new_training(**options)
    private = training.plan.steps
    carry_out(training, tmp_path)
    assert training.public_steps < 180
    assert training.steps == training.public_steps + private
    assert training.ledger.steps == private


def test_public_only_without_privacy_never_touches_the_private_samples(
    new_training, carry_out, tmp_path
):
    options = PHASES | {"public_first": 1.0, "epsilon": None}
    one = new_training(**options)
    carry_out(one, tmp_path / "one")
    other = new_training(**options)
    other.problem.train_x.fill_(float("nan"))
    carry_out(other, tmp_path / "other")
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.ledger is None
