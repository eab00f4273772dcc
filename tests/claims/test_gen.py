"""The verdict on GeN comes from the numbers: planted losses in place of trainings."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "claims" / "gen.py"


@pytest.fixture(scope="module")
def claim():
    spec = importlib.util.spec_from_file_location("steelyard_claim_gen", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


class Runs:
    """In place of the pool: the loss is a function of the setting."""

    def __init__(self, loss):
        self.loss, self.asked = loss, []

    def each(self, function, settings):
        json.dumps(settings)  # plain values
        self.asked += settings
        return [self.one(s) for s in settings]

    def one(self, s):
        loss = self.loss(s)
        return {
            "loss": loss, "accuracy": 0.8, "diverged": loss is None, "seconds": 1.0, "fits": 10,
            "rejected": 4, "forwards": 50,
        }  # fmt: skip


def bowl(s):
    """Schedules have their best rate at 10^-2.5; cosine is the best of them."""
    off = abs(math.log10(s["rate"]) + 2.5)
    return 1 + 0.1 * off + {"cosine": 0.0, "linear": 0.01}.get(s["method"], 0.02)


def test_the_tuned_schedule_is_found_between_the_decades(claim):
    best, seconds = claim.tuned(Runs(bowl))
    assert {task: schedule for task, (schedule, _) in best.items()}.keys() == {
        "images", "text", "reviews"
    }  # fmt: skip
    for schedule, rate in best.values():
        assert schedule == "cosine"
        assert rate == pytest.approx(10**-2.5, rel=0.01)
    assert seconds > 0


@pytest.mark.parametrize(
    ("good", "expected"),
    [
        ({"images": 7, "text": 6, "reviews": 6}, "holds"),
        ({"images": 7, "text": 5, "reviews": 6}, "partly"),
        ({"images": 5, "text": 0, "reviews": 5}, "fails"),
    ],
)
def test_the_verdict_counts_the_starts_within_two_percent(claim, good, expected):
    def loss(s):
        if s["method"] != claim.METHOD or "peak" in s:
            return None if s["rate"] == 1 else bowl(s)
        return 1.019 if claim.STARTS.index(s["rate"]) < good[s["task"]] else 1.021

    runs = Runs(loss)
    found = claim.run(runs)
    assert found["verdict"] == expected
    for task, count in good.items():
        assert found["numbers"][f"{task}: starts of 7 within 2 %, GeN x cosine"] == str(count)
    assert {s["seed"] for s in runs.asked} == {0, 1, 2, claim.TUNING_SEED}
    panel = found["panels"][0]
    constant = next(line for line in panel["lines"] if line["name"] == "constant")
    assert constant["y"][-1] is None
    assert found["sheets"][0]["rows"][6][1] == "diverged (3 of 3)"
