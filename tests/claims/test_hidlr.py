"""The verdict on Hi-DLR comes from the numbers: planted losses and rates in place of trainings."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "claims" / "hidlr.py"


@pytest.fixture(scope="module")
def claim():
    spec = importlib.util.spec_from_file_location("steelyard_claim_hidlr", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


class Planted:
    """fixed: a bowl around rate 0.03, whose bottom the wrong ratio lifts; Hi-DLR ends at `loss` and
    with rates `factor` from those of the right start."""

    def __init__(self, loss=1.0, factor=1.0):
        self.loss, self.factor, self.asked = loss, factor, []

    def each(self, function, settings):
        json.dumps(settings)  # plain values
        self.asked += settings
        return [self.one(**s) for s in settings]

    def one(self, *, method, rate, steps, group=None, scale=1.0, **_):
        wrong = scale != 1 and group is not None
        loss = 1 + abs(math.log10(rate / 0.03)) + 0.5 * wrong
        if method == "hidlr":
            loss = self.loss if wrong else 1.0
        found = 0.1 * (self.factor if wrong and method == "hidlr" else 1)
        return {
            "loss": loss, "accuracy": None, "diverged": False, "seconds": 1.0,
            "passes": 3 * steps + (300 if method == "hidlr" else 0),
            "rates": {"a": found, "b": 0.1},
        }  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "factor", "expected"),
    [
        (1.019, 2.9, "holds"),
        (1.019, 1 / 2.9, "holds"),
        (1.019, 3.1, "fails"),
        (1.019, 1 / 3.1, "fails"),
        (1.021, 1.0, "fails"),
    ],
)
def test_repaired_means_the_loss_and_the_rates(claim, loss, factor, expected):
    found = claim.run(Planted(loss, factor))
    assert found["verdict"] == expected
    first = claim.CASES[0]
    told = found["numbers"][f"{first.name}: Hi-DLR's loss against the reference"]
    assert told == f"{100 * (loss - 1):+.1f} %"
    assert [line["name"] for line in found["panels"][0]["lines"]].count("Hi-DLR") == 1


def test_some_cases_repaired_are_a_part(claim):
    good, bad = claim.Repair(0.0, 1.0), claim.Repair(0.1, 1.0)
    assert claim.verdict([good, bad]) == "partly"


def test_the_common_rate_is_tuned_beyond_the_grids_end(claim, monkeypatch):
    runs = Planted()
    text = claim.TRAININGS["text"]
    monkeypatch.setitem(
        claim.TRAININGS, "text", claim.Training(text.optimizer, text.steps, (1e-4, 3e-4, 1e-3))
    )
    best = claim.Measured(runs).tuned("text")
    assert best == pytest.approx(0.0316, rel=0.1)
    assert {s["seed"] for s in runs.asked} == {claim.TUNING_SEED}


def test_the_grid_has_hidlrs_forward_passes(claim):
    runs, case = Planted(), claim.CASES[0]
    claim.Measured(runs).grid(
        case, 0.03, claim.Group([runs.one(method="hidlr", rate=0.03, steps=600)] * 3)
    )
    assert len(runs.asked) == 3 * (5 + 1)
    passes = 3 * sum(s["steps"] for s in runs.asked) / 3
    assert passes == pytest.approx(3 * 600 + 300, rel=0.01)
