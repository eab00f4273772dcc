"""The verdict on AdaPEFT comes from the numbers: planted trainings in place of real ones."""

from __future__ import annotations

import importlib.util
import json
from itertools import combinations
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "claims" / "adapeft.py"
SIZES = {"norm": 5, "bias": 9, "head": 120, "embedding": 150, "attention": 240, "mlp": 476}
GAINS = {"norm": 3.0, "bias": 4.0, "head": 9.0, "embedding": 2.0, "attention": 8.0, "mlp": 10.0}


@pytest.fixture(scope="module")
def claim():
    spec = importlib.util.spec_from_file_location("steelyard_claim_adapeft", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Planted:
    """Drops are sums of `realised`; probes say `measured`; the rate 0.008 is the best."""

    def __init__(self, realised, measured):
        self.realised, self.measured, self.calls = realised, measured, []

    def each(self, function, settings):
        json.dumps(settings)  # plain values
        self.calls.append((function.__name__, len(settings)))
        return [getattr(self, f"_{function.__name__}")(**one) for one in settings]

    def _adapt(self, *, groups, rank, rate, seed, **_):
        names = groups.split("+") if groups else []
        drop = sum(self.realised[n] for n in names) if not rank else 1.0 + rank
        parameters = sum(SIZES[n] for n in names) if not rank else 15 * rank
        drop *= 1.0 if rate == 0.008 else 0.5
        drop *= 1 + seed / 100
        diverged = rate == 0.128
        return {
            "drop": None if diverged else drop,
            "share": parameters / 1000,
            "seconds": 1.0,
            "diverged": diverged,
        }

    def _probe(self, *, budgets, **_):
        def best(budget):
            sets = [s for k in range(7) for s in combinations(SIZES, k)]
            sets = [s for s in sets if sum(SIZES[n] for n in s) <= round(1000 * budget)]
            return "+".join(max(sets, key=lambda s: sum(self.measured[n] for n in s)))

        names = ["+".join(s) for k in range(1, 7) for s in combinations(SIZES, k)]
        rules = ("additive", "coupled", "slope", "fisher")
        said = {s: sum(self.measured[n] for n in s.split("+")) for s in names}
        return {
            "seconds": 1.0,
            "total": 1000,
            "sizes": SIZES,
            "gains": self.measured,
            "acceptance": dict.fromkeys(SIZES, 1.0),
            "choices": {rule: {str(b): best(b) for b in budgets} for rule in rules},
            "predictions": dict.fromkeys(rules, said),
        }


def test_a_right_measurement_holds(claim):
    runs = Planted(GAINS, GAINS)
    row = claim.run(runs)
    assert row["verdict"] == "holds"
    assert [name for name, _ in runs.calls] == ["adapt", "adapt", "probe", "adapt", "adapt"]
    assert runs.calls[0][1] == 3 * (63 + 5) * 5
    assert row["cost_s"] == sum(count for _, count in runs.calls)
    said = row["numbers"]["top-1 regret, mean over budgets, tasks and seeds"]
    assert said.startswith("0.0%")
    json.dumps(row, allow_nan=False)


def test_a_wrong_measurement_fails(claim):
    wrong = {name: 1 / gain**3 for name, gain in GAINS.items()} | {"bias": 0.0}
    row = claim.run(Planted(GAINS, wrong))
    assert row["verdict"] == "fails"


def test_tables_are_rectangular_and_lines_complete(claim):
    row = claim.run(Planted(GAINS, GAINS))
    assert len(row["sheets"]) == 4
    for sheet in row["sheets"]:
        assert sheet["rows"]
        assert {len(cells) for cells in sheet["rows"]} == {len(sheet["columns"])}
    for panel in row["panels"]:
        for line in panel["lines"]:
            assert len({len(line[k]) for k in ("x", "y", "low", "high")}) == 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"regret": 0.05, "tau": 0.6, "random": 0.2, "ahead": [0.1, 0.0]}, "holds"),
        ({"regret": 0.051, "tau": 0.6, "random": 0.2, "ahead": [0.1, 0.0]}, "partly"),
        ({"regret": 0.01, "tau": 0.59, "random": 0.2, "ahead": [0.1, 0.0]}, "partly"),
        ({"regret": 0.01, "tau": 0.7, "random": 0.005, "ahead": [0.1, 0.0]}, "partly"),
        ({"regret": 0.01, "tau": 0.7, "random": 0.2, "ahead": [0.1, -0.01]}, "partly"),
        ({"regret": 0.01, "tau": 0.7, "random": 0.2, "ahead": [0.0, 0.0]}, "holds"),
        ({"regret": 0.3, "tau": 0.1, "random": 0.4, "ahead": [-0.1, 0.0]}, "fails"),
    ],
)
def test_the_verdict(claim, said, expected):
    assert claim.verdict(**said) == expected
