"""The claim about laws of loss, on planted results: its verdict is decided by the numbers."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from steelyard.plans.bound import features
from steelyard.plans.schedule_shapes import parse_shape
from steelyard.trials import horizon_cases as cases

CLAIM = Path(__file__).resolve().parents[2] / "claims" / "convex_laws.py"


@pytest.fixture
def claim():
    spec = importlib.util.spec_from_file_location("claim_convex_laws", CLAIM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CASES = tuple(  # as the claim's own, 12 times shorter
        dataclasses.replace(case, pilots=tuple(T // 12 for T in case.pilots), far=case.far // 12)
        for case in module.CASES
    )
    return module


class Planted:
    """Runs whose losses are the law's own, with the far ones multiplied and their curves bent."""

    def __init__(self, far: float = 1.0, bend: float = 0.0, diverged: float = math.inf):
        self.far, self.bend, self.diverged, self.asked = far, bend, diverged, []

    def each(self, function, settings):
        assert function.__name__ == "horizon"
        self.asked += settings
        return [self.one(**setting) for setting in settings]

    def one(self, *, task, shape, steps, reference, seed, batch, probe, logs):
        if reference >= self.diverged and seed == 1:
            return {"loss": None, "test_loss": None, "diverged": True, "seconds": 0.5}
        best = 0.2 if task == "images" else 0.1
        at = [max(1, round(steps * (i + 1) / logs)) for i in range(logs)]
        lr = reference / math.sqrt(steps) * parse_shape(shape, 0.02)(steps)
        x1, x2 = features(lr, at)
        luck = 1e-4 * (seed - 1)
        curve = 0.6 + best * 8 * x1 + 8 / best * x2 + luck
        if logs > 1:
            curve = curve * self.far + self.bend * (np.array(at) > steps / 2)
        return {
            "loss": float(curve[-1]), "test_loss": float(curve[-1]) + 0.1,
            "minibatches": float(curve[-1]), "at": at, "curve": curve.tolist(),
            "train": curve.tolist(), "diverged": False, "seconds": 0.5,
        }  # fmt: skip


def test_a_law_that_holds_and_every_run_is_asked_once(claim):
    runs = Planted()
    row = claim.run(runs)
    verdicts = {key: told for key, told in row["numbers"].items() if told in ("yes", "no")}
    assert len(verdicts) == 6
    assert set(verdicts.values()) == {"yes"}, row["numbers"]
    assert row["verdict"] == "holds"
    keys = [json.dumps(one, sort_keys=True) for one in runs.asked]
    assert len(keys) == len(set(keys))
    assert row["cost_s"] == pytest.approx(0.5 * len(keys))
    json.dumps(row, allow_nan=False)  # nothing that JSON lacks


def test_the_cases_are_8_times_longer_within_one_epoch(claim):
    for case in claim.CASES:
        assert case.far == 8 * max(case.pilots)
        assert case.far * 12 * case.batch <= {"images": 59_000, "text": 172_300}[case.task]


def test_a_far_loss_that_is_off_is_told(claim):
    row = claim.run(Planted(far=0.9))
    assert row["numbers"]["images: the loss 8 times later is predicted"] == "no"
    assert row["numbers"]["images: the rate 8 times later is chosen"] == "yes"
    assert row["verdict"] == "partly"


def test_a_second_half_that_is_bent_is_told(claim):
    row = claim.run(Planted(bend=0.3))
    assert row["numbers"]["text: the first half predicts the second"] == "no"


def test_rates_at_which_a_seed_diverged_leave_the_grid(claim):
    row = claim.run(Planted(diverged=0.4))
    assert row["verdict"] == "holds"
    (plans,) = [s for s in row["sheets"] if "chosen by" in s["columns"]]
    assert [line[4] for line in plans["rows"] if line[3] == 0.4] == ["diverged"] * 3
    json.dumps(row, allow_nan=False)


def test_the_sheets_and_panels_have_their_shape(claim):
    row = claim.run(Planted())
    for sheet in row["sheets"]:
        assert {len(line) for line in sheet["rows"]} == {len(sheet["columns"])}
    for panel in row["panels"]:
        for line in panel["lines"]:
            assert len(line["x"]) == len(line["y"]) == len(line["low"]) == len(line["high"])
            assert line["role"] in ("method", "baseline", "reference")


@pytest.mark.parametrize(
    ("passed", "said"),
    [([True, True], "holds"), ([True, False], "partly"), ([False, False], "fails")],
)
def test_the_verdict(passed, said):
    assert cases.verdict(passed) == said


def test_the_criteria_at_their_thresholds():
    class One:
        def __init__(self, **values):
            self.__dict__ |= values

    def passed(error, regret, r2):
        halves = [One(mean=One(r2=r2)), One(mean=One(r2=0.99))]
        return list(cases.criteria([One(error=error, regret=regret)], halves).values())  # type: ignore

    assert passed(-0.02, 0.01, 0.95) == [True, True, True]
    assert passed(-0.021, 0.011, 0.949) == [False, False, False]
    assert not cases.criteria([], [None])["the first half predicts the second"]
