from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from steelyard.plans.accounting import Event, spent_epsilon
from steelyard.plans.privacy import PrivacyPlan, max_steps, plan_privacy
from steelyard.runs import ledger as ledger_module
from steelyard.runs.ledger import BudgetExceeded, Ledger

N, BATCH, STEPS, DELTA = 12_000, 1024, 60, 1e-5


def plan(**changes: Any) -> PrivacyPlan:
    inputs: dict[str, Any] = {"n": N, "batch": BATCH, "steps": STEPS, "delta": DELTA}
    return plan_privacy(**{**inputs, "epsilon": 3.0, **changes})


def take(ledger: Ledger, steps: int, sigma: float | None = None, q: float | None = None) -> None:
    for _ in range(steps):
        ledger.charge(
            noise_multiplier=ledger.plan.noise_multiplier if sigma is None else sigma,
            sampling_probability=ledger.plan.sampling_probability if q is None else q,
        )


def take_all(ledger: Ledger, sigma: float | None = None) -> str:
    """Charge until refused; the refusal's words."""
    with pytest.raises(BudgetExceeded) as refused:
        take(ledger, 10**6, sigma)
    return str(refused.value)


def event(sigma: float, steps: int, sampling: str = "poisson", q: float = BATCH / N) -> Event:
    return Event(sampling_probability=q, noise_multiplier=sigma, steps=steps, sampling=sampling)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every epsilon that a ledger asks for, as it goes."""
    seen: list[float] = []

    def counted(*args):
        seen.append(spent_epsilon(*args))
        return seen[-1]

    monkeypatch.setattr(ledger_module, "spent_epsilon", counted)
    return seen


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_planned_charges_cost_the_planned_epsilon(accountant, evaluations):
    ledger = Ledger(plan(accountant=accountant))
    assert ledger.epsilon() == 0.0
    evaluations.clear()
    take(ledger, STEPS)
    assert len(evaluations) == 1  # the plan is verified once, then charging costs nothing
    assert ledger.steps == STEPS
    assert ledger.epsilon() == ledger.plan.epsilon <= 3.0


def test_past_the_plan_it_stops_where_the_budget_does(evaluations):
    ledger = Ledger(plan(epsilon=None, noise_multiplier=2.0))
    limited = Ledger(replace(ledger.plan, target_epsilon=2.0))
    last = max_steps(sampling_probability=BATCH / N, noise_multiplier=2.0, epsilon=2.0, delta=DELTA)
    words = take_all(limited)
    assert limited.steps == last
    assert limited.epsilon() <= 2.0 < spent_epsilon([event(2.0, last + 1)], DELTA)
    assert words.startswith(f"step {last + 1} would spend epsilon 2.0")
    assert "past the budget of 2 at delta 1e-05: " in words
    assert "\n" not in words
    take(ledger, last + 50)  # no target, no limit
    assert ledger.epsilon() > 2.0
    assert len(evaluations) < 40


def test_a_refusal_changes_nothing():
    ledger = Ledger(plan())
    take(ledger, 10)
    before, spent = copy.deepcopy(ledger.state_dict()), ledger.epsilon()
    for sigma in (0.0, 0.2):
        with pytest.raises(BudgetExceeded, match="step 11 would spend epsilon"):
            take(ledger, 1, sigma)
    for sigma, q in ((-1.0, 0.1), (math.nan, 0.1), (1.0, 0.0), (1.0, 1.5)):
        with pytest.raises(ValueError, match="found"):
            take(ledger, 1, sigma, q)
    assert ledger.state_dict() == before
    assert ledger.epsilon() == spent
    take(ledger, STEPS - 10)
    assert ledger.epsilon() == ledger.plan.epsilon


def test_other_noise_is_evaluated_exactly():
    ledger = Ledger(plan())
    sigma = ledger.plan.noise_multiplier
    take(ledger, 20)
    take(ledger, 5, 0.8 * sigma)
    take(ledger, 2, 30.0, 1.0)
    mixed = [event(sigma, 20), event(0.8 * sigma, 5), event(30.0, 2, q=1.0)]
    assert ledger.epsilon() == spent_epsilon(mixed, DELTA)
    take_all(ledger)
    left = ledger.steps - 27
    assert 20 + left < STEPS  # the dearer steps were paid for with planned ones
    assert ledger.epsilon() <= 3.0
    mixed.append(event(sigma, left + 1))
    assert spent_epsilon(mixed, DELTA) > 3.0
    with pytest.raises(BudgetExceeded):
        take(ledger, 1, 0.8 * sigma)


def test_alternating_noise_stays_cheap_and_within_budget(evaluations):
    ledger = Ledger(plan(batch=N, steps=300))
    sigma = ledger.plan.noise_multiplier

    def alternate() -> None:
        for i in range(1000):
            take(ledger, 1, sigma * (1.2 if i % 2 else 0.9))

    with pytest.raises(BudgetExceeded):
        alternate()
    low, high = ledger.steps - ledger.steps // 2, ledger.steps // 2
    both = [event(0.9 * sigma, low, q=1.0), event(1.2 * sigma, high, q=1.0)]
    assert ledger.epsilon() == pytest.approx(spent_epsilon(both, DELTA))
    assert ledger.epsilon() <= 3.0
    assert 280 < ledger.steps < 320
    assert len(evaluations) < 60


def test_unamplified_never_forgets_a_straddled_pass():
    ledger = Ledger(plan(n=1000, batch=100, steps=40, sampling="unamplified", epsilon=8.0))
    sigma = ledger.plan.noise_multiplier
    take(ledger, 40)
    assert ledger.epsilon() == ledger.plan.epsilon
    other = Ledger(ledger.plan)
    take(other, 3)
    take(other, 10, 3 * sigma)
    take(other, 4)
    parts = [
        event(s, k, "unamplified", q=0.1) for s, k in ((sigma, 3), (3 * sigma, 10), (sigma, 4))
    ]
    assert other.epsilon() == spent_epsilon(parts, DELTA)
    take_all(other, sigma)
    assert other.epsilon() <= 8.0
    switching = Ledger(ledger.plan)
    take(switching, 1)
    take(switching, 64, 100 * sigma)  # both now have steps in reserve, but in long runs

    def switch() -> None:
        for _ in range(30):
            take(switching, 1)
            take(switching, 1, 100 * sigma)

    with pytest.raises(BudgetExceeded):
        switch()
    assert switching.epsilon() <= 8.0


def test_no_noise_is_refused_by_a_target_and_infinite_without():
    with pytest.raises(BudgetExceeded, match="epsilon inf"):
        take(Ledger(plan()), 1, 0.0)
    free = Ledger(plan(epsilon=None, noise_multiplier=0.0))
    take(free, 3)
    assert free.epsilon() == math.inf
    record = json.loads(json.dumps(free.report(), allow_nan=False))
    assert record["epsilon"] is None
    assert any("no privacy guarantee" in line for line in record["assumptions"])


def test_resume_is_exact():
    ledger = Ledger(plan())
    take(ledger, 20)
    take(ledger, 3, 2.123456789012345, 0.1 + 0.2)
    ledger.note_public("learning rate")
    ledger.note_unprotected("training loss")
    ledger.noise_seeded_by_user = True
    saved = json.loads(json.dumps(ledger.state_dict()))
    assert [count for _, _, count in saved["history"]] == [20, 3]  # run-length encoded
    resumed = Ledger(PrivacyPlan.from_dict(json.loads(json.dumps(ledger.plan.to_dict()))))
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == ledger.state_dict()
    assert resumed.epsilon() == ledger.epsilon()
    assert resumed.report() == ledger.report()
    assert take_all(resumed) == take_all(ledger)
    assert resumed.state_dict() == ledger.state_dict()


def test_resume_does_not_refill_the_budget():
    ledger = Ledger(plan())
    take_all(ledger)
    resumed = Ledger(ledger.plan)
    take(resumed, 1)  # a reservation that must not survive loading
    resumed.load_state_dict(ledger.state_dict())
    with pytest.raises(BudgetExceeded):
        take(resumed, 1)
    tighter = Ledger(plan(epsilon=1.0))
    tighter.load_state_dict(ledger.state_dict())
    with pytest.raises(BudgetExceeded):
        take(tighter, 1)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"n": 60_000}, "n 60000, this run 12000"),
        ({"delta": 1e-6}, "delta 1e-06, this run 1e-05"),
        ({"sampling": "unamplified"}, "sampling unamplified, this run poisson"),
        ({"extra": 1}, "['extra']"),
        ({"history": {}}, "must be a list"),
        ({"history": [[1.0, 0.1]]}, "[1.0, 0.1]"),
        ({"history": [[1.0, 0.1, -3]]}, "-3"),
        ({"history": [[1.0, 2.0, 3]]}, "2"),
        ({"history": [["1", 0.1, 3]]}, "'1'"),
        ({"public": [1]}, "strings"),
        ({"noise_seeded_by_user": "no"}, "'no'"),
    ],
)
def test_foreign_or_malformed_states_are_refused(change, found):
    ledger = Ledger(plan())
    take(ledger, 2)
    before = copy.deepcopy(ledger.state_dict())
    with pytest.raises(ValueError, match=re.escape(found)) as caught:
        ledger.load_state_dict(before | change)
    assert "\n" not in str(caught.value)
    assert ledger.state_dict() == before


def test_report_says_what_was_assumed():
    ledger = Ledger(plan())
    take(ledger, 7)
    ledger.note_public("class names")
    ledger.note_public("class names")
    record = ledger.report()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    wanted = {
        "neighbouring_relation": "add or remove one sample",
        "sampling": "poisson",
        "q": BATCH / N,
        "sigma": ledger.plan.noise_multiplier,
        "steps": 7,
        "epsilon": ledger.epsilon(),
        "delta": DELTA,
        "accountant": "pld",
        "target": 3.0,
        "public": ["class names"],
        "unprotected": [],
    }
    assert {key: record[key] for key in wanted} == wanted
    said = " ".join(record["assumptions"])
    for words in ("Poisson", "expected batch of 1024", "12000", "floating-point", "not charged"):
        assert words in said
    assert "seed" not in said
    ledger.noise_seeded_by_user = True
    ledger.note_unprotected("training loss")
    take(ledger, 1, 9.0, 0.2)
    said = " ".join(ledger.report()["assumptions"])
    for words in ("do not know it", "without noise", "changed during the run"):
        assert words in said
    assert (ledger.report()["q"], ledger.report()["sigma"]) == (0.2, wanted["sigma"])
