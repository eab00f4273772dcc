"""The committed comparisons: fair by construction, arms as labelled, baselines trained once."""

from __future__ import annotations

import importlib.util
import math
from itertools import pairwise
from pathlib import Path

import pytest

from steelyard.runs import common_arms as common
from steelyard.runs.arms import Job, Outcome
from steelyard.runs.claims import _check
from steelyard.runs.common_arms import CIFAR, FASHION, REVIEWS
from steelyard.runs.config import TrainConfig
from steelyard.runs.pool import key_of

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("coupling", "dicesgd", "disk", "doppler", "pretraining")


def module(name: str):
    spec = importlib.util.spec_from_file_location(f"claim_{name}", ROOT / "claims" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class Fake:
    """Every run gives the same but for the seed; the jobs are kept by their keys."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}

    def __call__(self, jobs):
        self.jobs |= {key_of(job): job for job in jobs}
        return [
            Outcome(
                accuracy=80 - abs(math.log2(job.config.lr)) / 10 + math.sin(job.config.seed),
                seconds=1.0,
            )
            for job in jobs
        ]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_a_valid_row(name):
    fake = Fake()
    row = module(name).run(fake) | {"command": "-"}
    _check(row, Path(f"{name}.json"))
    assert row["topic"] == module(name).TOPIC == "privacy"
    assert row["comparisons"]
    assert all(len(entry["seeds"]) >= 3 for entry in row["table"])
    assert {entry["role"] for entry in row["table"]} >= {"method", "baseline"}
    for job in fake.jobs.values():
        config = job.config
        assert config.delta == 1e-5
        assert config.device == "cpu"


def test_shared_arms_are_trained_once():
    once, fake = {}, Fake()
    for name in ("disk", "doppler"):
        fake = Fake()
        module(name).run(fake)
        once[name] = set(fake.jobs)
    shared = [fake.jobs[key].config for key in once["disk"] & once["doppler"]]
    assert {(one.filters, one.momentum) for one in shared} == {((), 0.0), ((), 0.9)}
    assert {one.data for one in shared} == {"fashion-mnist", "rotten-tomatoes", "cifar10"}


@pytest.mark.parametrize("setting", [FASHION, REVIEWS, CIFAR], ids=lambda s: s.base.data)
def test_a_grid_stands_around_its_middle(setting):
    rates = setting.rates(4.0)
    assert len(rates) == setting.size
    assert 4.0 in rates
    assert all(high / low == 2 for low, high in pairwise(rates))
    assert common.momentum(setting).rates == tuple(
        pytest.approx(rate / 10) for rate in common.dp_sgd(setting).rates
    )


def test_the_moving_average_of_a_gain_is_a_first_order_filter():
    assert common.ema(FASHION, 0.7).changes == {"filters": ("doppler:0.3",)}
    assert common.ema(FASHION, 0.7).role == "baseline"


def test_dice_with_the_noise_of_dp_sgd_is_charged_for_it():
    from steelyard.plans.privacy import plan_privacy

    arms = {arm.name: arm for arm in module("dicesgd").arms(FASHION)}
    bare = arms["DiceSGD, R = 1, DP-SGD's noise"]
    assert bare.epsilon_of is not None
    really = bare.epsilon_of(3.0)
    assert f"costs epsilon {really:.1f}" in bare.note
    assert "not DP-equivalent" in bare.note
    plan = plan_privacy(n=60_000, batch=1024, epochs=5, epsilon=really, delta=1e-5)
    drawn = plan.noise_multiplier * math.sqrt(3)  # what DiceSGD adds at that budget
    assert drawn == pytest.approx(common.noise_multiplier(FASHION, 3.0), rel=1e-3)


def test_public_training_is_free_and_the_switch_is_named():
    pretraining = module("pretraining")
    arms = {arm.name: arm for arm in pretraining.arms(pretraining.IMAGES, (0.1,), ("keep",))}
    configs = {
        name: pretraining.IMAGES.base.replace(**arm.changes, epsilon=None if not arm.private else 3)
        for name, arm in arms.items()
    }
    assert configs["DPCP 0.1, keep"].at_switch == "keep"
    assert configs["DPCP 0.1, keep"].public_first == 0.1
    assert configs["only public (10 %)"].public_first == 1.0
    assert not configs["only public (10 %)"].private
    assert configs["only private (90 %)"].public_part == 0.1
    assert configs["no privacy"].public_part is None
    assert {one.steps for one in configs.values()} == {293}
    assert {one.optimizer for one in configs.values()} == {"adamw"}


def test_a_setting_is_told_once():
    text = common.told((FASHION, REVIEWS, FASHION))
    assert text.count("Fashion-MNIST") == 1
    assert "not charged" in text
    assert isinstance(FASHION.base, TrainConfig)
