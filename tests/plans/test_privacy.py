from __future__ import annotations

import json
import math
import re
import warnings
from itertools import pairwise
from typing import Any

import pytest

from steelyard.plans.privacy import (
    Event,
    PrivacyPlan,
    max_steps,
    plan_privacy,
    spent_epsilon,
    table,
)

SMALL: dict[str, Any] = {"n": 12_000, "batch": 1024, "steps": 300, "delta": 1e-5}


def small(**changes: Any) -> PrivacyPlan:
    inputs: dict[str, Any] = {**SMALL, "noise_multiplier": 2.0, **changes}
    return plan_privacy(**inputs)


def test_noise_for_a_budget():
    plan = plan_privacy(**SMALL, epsilon=3)
    assert plan.target_epsilon == 3.0
    assert 2.99 < plan.epsilon <= 3.0
    assert plan.noise_multiplier == pytest.approx(2.25, abs=0.01)
    assert plan.sampling_probability == 1024 / 12_000
    at = Event(
        sampling_probability=1024 / 12_000, noise_multiplier=plan.noise_multiplier, steps=300
    )
    assert plan.epsilon == spent_epsilon([at], 1e-5)
    assert plan_privacy(**SMALL, epsilon=3, accountant="rdp").noise_multiplier > 2.35


def test_budget_for_a_noise():
    plan = small()
    assert plan.target_epsilon is None
    at = Event(sampling_probability=1024 / 12_000, noise_multiplier=2.0, steps=300)
    assert plan.epsilon == spent_epsilon([at], 1e-5)
    more = max_steps(
        sampling_probability=plan.sampling_probability,
        noise_multiplier=2.0,
        epsilon=plan.epsilon,
        delta=1e-5,
    )
    assert more == plan.steps


def test_epochs_become_steps():
    def steps(**changes: Any) -> int:
        return small(steps=None, **changes).steps

    assert steps(n=60_000, epochs=5) == 293
    assert steps(n=60_000, epochs=5, sampling="unamplified") == 5 * 59
    assert steps(n=60_000, batch=1000, epochs=3) == 180
    assert steps(n=10_000, batch=100, epochs=1, sampling="unamplified") == 100
    assert steps(epochs=1e-9) == 1


def test_unamplified_plans_one_gaussian_per_pass():
    plan = small(n=60_000, steps=None, epochs=5, noise_multiplier=1.0, sampling="unamplified")
    assert plan.epsilon == pytest.approx(11.5, abs=0.06)
    assert plan.epsilon > 5 * small(n=60_000, steps=293, noise_multiplier=1.0).epsilon


def test_delta_by_default_and_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert small(delta=None).delta == pytest.approx(0.1 / 12_000)
        assert small(delta=None, n=2000).delta == 1e-5
    with pytest.warns(UserWarning, match=r"delta 0\.001 is not below 1/n = 8\.3") as heard:
        small(delta=1e-3)
    assert len(heard) == 1
    assert "\n" not in str(heard[0].message)


def test_no_noise_is_no_privacy():
    plan = small(noise_multiplier=0)
    assert plan.epsilon == math.inf
    assert plan.spent(1) == math.inf
    assert plan.to_dict()["epsilon"] is None
    assert PrivacyPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_curve_ends_at_the_plan_and_rises():
    plan = small()
    curve = plan.curve()
    assert len(curve) == 12
    assert curve[-1] == (plan.steps, plan.epsilon)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(curve))
    assert plan.curve(1) == [(plan.steps, plan.epsilon)]
    assert small(steps=3).curve()[-1][0] == 3
    assert len(small(steps=3).curve()) == 3


def test_spent_is_an_upper_bound_for_a_display():
    plan = small()
    assert plan.spent(0) == 0.0
    for step, epsilon in plan.curve():
        assert plan.spent(step) == epsilon
    for step in (1, 50, 299):
        at = Event(sampling_probability=plan.sampling_probability, noise_multiplier=2.0, steps=step)
        assert spent_epsilon([at], 1e-5) <= plan.spent(step) <= plan.epsilon
    assert plan.spent(301) == plan.spent(304) > plan.epsilon


@pytest.mark.parametrize("changes", [{}, {"noise_multiplier": None, "epsilon": 3}])
def test_round_trip_is_exact(changes):
    plan = small(**changes)
    assert PrivacyPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"n": "many"}, "many"),
        ({"n": 12_000.5}, "12000.5"),
        ({"steps": True}, "True"),
        ({"steps": 0}, "0"),
        ({"expected_batch": 20_000}, "20000"),
        ({"delta": 2.0}, "2"),
        ({"noise_multiplier": -1.0}, "-1"),
        ({"epsilon": -1.0}, "-1"),
        ({"epsilon": math.nan}, "nan"),
        ({"target_epsilon": 0}, "0"),
        ({"accountant": "moments"}, "'moments'"),
        ({"sampling": ["poisson"]}, "['poisson']"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_malformed_plans_are_refused(change, found):
    with pytest.raises(ValueError, match=re.escape(found)) as caught:
        PrivacyPlan.from_dict(small().to_dict() | change)
    assert "\n" not in str(caught.value)


def test_incomplete_plans_are_refused():
    missing = small().to_dict()
    del missing["delta"]
    with pytest.raises(ValueError, match=r"fields \['delta'\]"):
        PrivacyPlan.from_dict(missing)
    with pytest.raises(ValueError, match="found list"):
        PrivacyPlan.from_dict([])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"n": 0}, "n must be a whole number of at least 1, found 0"),
        ({"n": 10.5}, "10.5"),
        ({"batch": 0}, "found 0"),
        ({"batch": -3}, "found -3"),
        ({"batch": math.nan}, "found nan"),
        ({"batch": 12_001}, "batch 12001 is larger than the 12000 training samples"),
        ({"steps": 0}, "found 0"),
        ({"steps": 1.5}, "found 1.5"),
        ({"steps": None}, "found None and None"),
        ({"epochs": 3}, "found 300 and 3"),
        ({"steps": None, "epochs": 0}, "found 0"),
        ({"steps": None, "epochs": math.inf}, "found inf"),
        ({"steps": 10**9}, "1000000000 steps"),
        ({"noise_multiplier": None}, "found None and None"),
        ({"epsilon": 3}, "found 3 and 2.0"),
        ({"noise_multiplier": None, "epsilon": 0}, "found 0"),
        ({"noise_multiplier": None, "epsilon": -1.5}, "found -1.5"),
        ({"noise_multiplier": None, "epsilon": math.inf}, "found inf"),
        ({"noise_multiplier": None, "epsilon": "3"}, "found '3'"),
        ({"noise_multiplier": -0.5}, "found -0.5"),
        ({"noise_multiplier": math.nan}, "found nan"),
        ({"delta": 0}, "found 0"),
        ({"delta": 1}, "found 1"),
        ({"delta": math.nan}, "found nan"),
        ({"accountant": "prv"}, "'prv': choose one of pld, rdp"),
        ({"sampling": "shuffled"}, "'shuffled': choose one of poisson, unamplified"),
    ],
)
def test_errors_are_one_line_and_name_the_value(changes, found):
    with pytest.raises(ValueError, match=re.escape(found)) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


def test_table_has_one_row_per_plan():
    plans = [small(noise_multiplier=None, epsilon=e, accountant="rdp") for e in (1, 3)]
    rows = table(plans)
    assert [row["target epsilon"] for row in rows] == [1.0, 3.0]
    assert [row["noise multiplier"] for row in rows] == [p.noise_multiplier for p in plans]
    assert rows[0]["accountant"] == "rdp"
