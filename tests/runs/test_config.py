"""Settings are checked when they are made, and go through JSON unchanged."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from steelyard.runs.config import OPTIMIZERS, SCHEDULES, TrainConfig, parse_groups

GOOD = {"model": "cnn", "data": "x", "steps": 3}


def test_steps_or_epochs_but_one_of_them():
    assert TrainConfig(**GOOD).epochs is None
    assert TrainConfig(model="cnn", data="x", epochs=0.5).steps is None
    with pytest.raises(ValueError, match="one of --epochs and --steps, found neither"):
        TrainConfig(model="cnn", data="x")
    with pytest.raises(ValueError, match="found --epochs 2 and --steps 3"):
        TrainConfig(**GOOD, epochs=2)


@pytest.mark.parametrize("name", ["steps", "batch", "micro_batch", "lr", "length", "epsilon"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_what_must_be_positive(name, value):
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ValueError, match=f"^{flag} must be positive, found {value}") as error:
        TrainConfig(**(GOOD | {name: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["momentum", "average"])
@pytest.mark.parametrize("value", [-0.1, 1, math.nan])
def test_what_must_be_a_fraction(name, value):
    with pytest.raises(ValueError, match=rf"--{name} must be in \[0, 1\), found {value}"):
        TrainConfig(**GOOD, **{name: value})


@pytest.mark.parametrize("name", ["weight_decay", "warmup", "seed", "noise_seed"])
@pytest.mark.parametrize("value", [-1, math.nan, 2**63, math.inf])
def test_what_must_not_be_negative(name, value):
    if value == 2**63 and "seed" not in name:
        TrainConfig(**GOOD, **{name: value})
        return
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ValueError, match=f"{flag} must be 0 or more .*, found {value}"):
        TrainConfig(**GOOD, **{name: value})


@pytest.mark.parametrize("name", ["evaluate_every", "checkpoint_every"])
def test_events_need_a_step_between_them(name):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be at least 1 step"):
        TrainConfig(**GOOD, **{name: 0})


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [
        ("optimizer", "admw", "adamw"),
        ("schedule", "cosin", "cosine"),
        ("accountant", "pdl", "pld"),
        ("adapter", "loar", "lora"),
        ("tracker", "tensorbord", "tensorboard"),
    ],
)
def test_a_typo_is_told_what_was_meant(name, typed, meant):
    with pytest.raises(ValueError, match=f"unknown --{name} '{typed}': did you mean '{meant}'"):
        TrainConfig(**GOOD, **{name: typed})


def test_every_choice_is_taken():
    for optimizer in OPTIMIZERS:
        for schedule in SCHEDULES:
            TrainConfig(**GOOD, optimizer=optimizer, schedule=schedule)


def test_private_is_having_a_budget():
    assert TrainConfig(**GOOD).private
    assert not TrainConfig(**GOOD, epsilon=None).private


def test_replace_checks_again():
    config = TrainConfig(**GOOD)
    assert config.replace(lr=0.5).lr == 0.5
    with pytest.raises(ValueError, match="--lr"):
        config.replace(lr=-1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]


def test_through_json_and_back():
    config = TrainConfig(**GOOD, epsilon=None, average=0.9, noise_seed=2**40, delta=1e-6)
    saved = json.loads(json.dumps(config.to_dict() | {"command": "steelyard train", "new": 1}))
    assert TrainConfig.from_dict(saved) == config
    assert TrainConfig.from_dict({k: v for k, v in saved.items() if k != "clip"}).clip == "auto-s"


@pytest.mark.parametrize("spoiled", [{"lr": "fast"}, {"data": None, "steps": []}])
def test_what_is_no_settings_is_one_line(spoiled):
    with pytest.raises(ValueError, match="these are not the settings of a run") as error:
        TrainConfig.from_dict(GOOD | spoiled)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"not the settings of a run: .*'model'"):
        TrainConfig.from_dict({"steps": 3, "data": "x"})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("all", "all"),
        ("layer", "layer"),
        ("4", 4),
        ("head.*", ["head.*"]),
        ("a,b", ["a", "b"]),
        ("w[12]", ["w[12]"]),
        ("0.weight", ["0.weight"]),
    ],
)
def test_groups_as_typed(typed, meant):
    assert parse_groups(typed) == meant
