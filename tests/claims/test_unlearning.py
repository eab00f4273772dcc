"""The verdict on NGDiff and BLUR comes from the numbers: planted fronts in place of runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from steelyard.report import sheets
from steelyard.runs.claims import FIELDS, VERDICTS
from steelyard.trials.forgetting_claim import OURS, Measured, judge

PATH = Path(__file__).parents[2] / "claims" / "unlearning.py"


@pytest.fixture(scope="module")
def claim():
    spec = importlib.util.spec_from_file_location("steelyard_claim_unlearning", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_benchmark(claim, monkeypatch, tmp_path):
    monkeypatch.setattr(claim, "lume_folder", lambda: tmp_path)


class Planted:
    """Every run has two looks: the target, and one of the retain quality 1 whose forget quality is
    the hypervolume. `fronts`: by method, else 0.5; a rate that is not the middle one loses `slope`,
    a weight that is not 1 loses 0.2. `rising`: share of steps, by (method, optimizer)."""

    def __init__(self, fronts=None, slope=0.1, rising=None):
        self.fronts, self.slope, self.rising = fronts or {}, slope, rising or {}
        self.asked = []

    def each(self, function, settings):
        json.dumps(settings)  # plain values
        self.asked += [(function.__name__, one) for one in settings]
        return [getattr(self, function.__name__)(**one) for one in settings]

    def build(self, **_):
        return {"seconds": 10.0, "steps": 100, "parameters": 1000}

    def scores(self):
        names = [f"{a} {b}" for a in ("forget", "retain") for b in ("regurgitation", "knowledge")]
        return dict.fromkeys([*names, "auc", "utility", "aggregate"], 0.5)

    def reference(self, **_):
        return {"target": self.scores(), "reference": self.scores(), "seconds": 1.0}

    def forget(
        self, *, method, rate, weight, benchmark, slopes=False, automatic=False, generate=False,
        optimizer="adamw", **_,
    ):  # fmt: skip
        name = "auto" if automatic else method
        middle = rate in (8e-4, 0.1)
        front = self.fronts.get(name, 0.5) - self.slope * (not middle) - 0.2 * (weight != 1)
        front += 0.01 * benchmark["seed"]
        found = {
            "trajectory": [[0, 0.0, 0.0, 0.0, 1.0], [4, 1.0, 1.0, front, 1.0]],
            "seconds": 1.0, "diverged": False, "reached": None, "raised": 0.1, "rate": rate,
            "raised_first_order": self.rising.get((method, optimizer), 0.0) if slopes else None,
        }  # fmt: skip
        return found | ({"scores": self.scores()} if generate else {})


BEST = {"ngdiff": 0.7, "auto": 0.7, "blur": 0.7, "blur-adam": 0.7}
AUTO = "NGDiff with its automatic rate"


def test_all_sentences_hold(claim):
    runs = Planted(BEST, rising={("blur", "adamw"): 0.3})  # of plain BLUR under AdamW none is said
    found = claim.run(runs)
    assert found["verdict"] == "holds"
    assert set(FIELDS) - {"command"} <= set(found)
    assert found["verdict"] in VERDICTS
    assert found["numbers"]["LUME"] == "not here: no files"
    text = "generated: front of NGDiff minus that of the same losses over all fixed weights"
    assert found["numbers"][text] == "+0.200 ± 0.000"
    page = sheets.markdown({"unlearning": found | {"command": ""}}, "unlearning")
    assert "| blur | 0.0008 | 10.0 % | 30.0 % |" in page
    assert "| ngdiff | 3 | 0.710 ± 0.010 | +0.200 ± 0.000 |" in page
    assert len(found["panels"]) == 2
    names = [line["name"] for line in found["panels"][0]["lines"]]
    assert names[:4] == OURS
    assert "graddiff" in names


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"npo": 0.719}, []),  # within the margin
        (
            {"npo": 0.73},
            ["NGDiff minus the best", f"{AUTO} minus the best", "BLUR minus", "metric minus"],
        ),
        (
            {"graddiff": 0.73},
            [
                "front of NGDiff minus that of the same losses",
                "rates, NGDiff minus the same losses",
                "front of NGDiff minus the best",
                f"front of {AUTO} minus that of the same losses",
                f"rates, {AUTO} minus the same losses",
                f"front of {AUTO} minus the best",
                "BLUR minus",
                "metric minus",
            ],
        ),
        ({"lossnorm": 0.73, "ngdiff": 0.8, "auto": 0.8}, ["BLUR minus", "metric minus"]),
        (
            {"lossnorm": 0.719, "ngdiff": 0.69},
            ["blindly, NGDiff", "front of NGDiff minus the best"],
        ),
        (
            {"lossnorm": 0.719, "auto": 0.69},
            [f"blindly, {AUTO}", f"front of {AUTO} minus the best"],
        ),
        ({"blur": 0.47}, ["BLUR minus"]),
        ({"blur-adam": 0.47}, ["metric minus"]),
        ({"pdu": 0.99}, []),  # weighs by a rule of its own: in the table, no scalar method
    ],
)
def test_a_better_front_is_told(claim, change, fails):
    measured = Measured(Planted(BEST | change), claim.SMALL_PART)
    wrong = [text for text, one in judge(measured).items() if not one.holds]
    assert len(wrong) == len(fails)
    assert all(any(part in text for text in wrong) for part in fails), wrong


def test_the_blind_cell_is_a_mean_over_rates_and_weights(claim):
    """Not the best cell: what a wrong rate and a wrong weight cost counts by its share."""
    measured = Measured(Planted(BEST | {"lossnorm": 0.69}), claim.SMALL_PART)
    assert measured.best_mean == "lossnorm"
    assert measured.best_front == "lossnorm"
    assert measured.grids["npo"].over_cells[0] == pytest.approx(0.5 - 2 / 3 * 0.1 - 2 / 3 * 0.2)
    assert measured.grids["npo"].over_rates[0] == pytest.approx(0.5 - 2 / 3 * 0.1)


@pytest.mark.parametrize("who", [("blur", "sgd"), ("blur-adam", "adamw")])
def test_a_single_rising_step_is_a_failure(claim, who):
    found = claim.run(Planted(BEST, rising={who: 1e-3}))
    assert found["verdict"] == "partly"
    assert sum(text.endswith("0.10 %") for text in found["numbers"].values()) == 1


def test_none_held_is_a_failure(claim):
    low = dict.fromkeys(BEST, 0.1)
    found = claim.run(Planted(low, rising={("blur", "sgd"): 0.5, ("blur-adam", "adamw"): 0.5}))
    assert found["verdict"] == "fails"


def test_methods_share_the_grid_and_weights_go_to_those_that_have_one(claim):
    runs = Planted()
    Measured(runs, claim.SMALL_PART)
    cells = {}
    for name, one in runs.asked:
        if name == "forget" and not one.get("generate") and one.get("optimizer") != "sgd":
            key = one["method"], one.get("automatic", False)
            cells.setdefault(key, set()).add((one["rate"], one["weight"]))
    assert len(cells) == 19
    assert {len(own) for own in cells.values()} == {3, 9}
    assert {rate for own in cells.values() for rate, _ in own} == set(claim.SMALL_PART.rates)
    assert len(cells["npo", False]) == 9
    assert len(cells["ngdiff", False]) == len(cells["lossnorm", False]) == 3
    assert {one["benchmark"]["seed"] for name, one in runs.asked if name == "forget"} == {0, 1, 2}


def test_the_second_benchmark_is_measured_where_its_files_are(claim, tmp_path):
    (tmp_path / "forget.jsonl").write_text("")
    found = claim.run(Planted(BEST))
    assert "LUME" not in found["numbers"]
    assert any(text.startswith("LUME: ") for text in found["numbers"])
    assert len(found["sheets"]) == 6


def test_a_part_can_have_fewer_methods_and_no_texts():
    import dataclasses

    from steelyard.trials.forgetting_claim import row

    spec = importlib.util.spec_from_file_location(
        "claim_smollm2", PATH.with_stem("unlearning_smollm2")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runs = Planted({"ngdiff": 0.7, "blur": 0.47})
    found = module.run(runs)
    assert found["verdict"] == "partly"
    assert {text for text, told in found["numbers"].items() if told.startswith("+")} == {
        "SmolLM2: front of NGDiff minus that of the same losses over all fixed weights",
        "SmolLM2: a cell taken blindly, NGDiff minus the best scalar method (graddiff)",
        "SmolLM2: mean over the rates, NGDiff minus the same losses at their best weight",
        "SmolLM2: front of NGDiff minus the best scalar method's (graddiff)",
    }
    assert found["baselines"] == ["graddiff"]
    assert [sheet["title"].split(": ")[1] for sheet in found["sheets"]] == [
        "hypervolumes", "steps that raised the forget objective"
    ]  # fmt: skip
    assert {name for name, _ in runs.asked} == {"build", "forget"}
    assert all(one["benchmark"]["device"] == "cuda" for name, one in runs.asked if name == "forget")
    both = row([Measured(runs, dataclasses.replace(module.PART, name="A"))], claim="", topic="")
    assert all(text.startswith("A: ") for text in both["numbers"])
