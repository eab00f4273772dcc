"""When the public phase ends, and what the private one is charged."""

from __future__ import annotations

import json
import math

import pytest

from steelyard import Ledger, plan_privacy
from steelyard.plans.pretraining import (
    EarlyStopping,
    FixedShare,
    Flattened,
    PhasePlan,
    phase_plan,
    split_steps,
)

# -- the rules ---------------------------------------------------------------------------------


def ends(rule, values, every=10):
    """The step at which the rule says so, or None; it must not take it back."""
    said = [rule.update(every * k, value) for k, value in enumerate(values)]
    assert said == sorted(said)
    return every * said.index(True) if any(said) else None


def test_early_stopping_waits_for_patience():
    assert ends(EarlyStopping(2), [3, 2, 1.5, 1.6, 1.4, 1.5, 1.45, 1.0]) == 60
    assert ends(EarlyStopping(1), [3, 2, 2]) == 20  # no fall is no improvement
    assert ends(EarlyStopping(2), [3, 2.95, 2.91, 2.89]) is None
    assert ends(EarlyStopping(2, least=0.2), [3, 2.95, 2.91, 2.89]) == 20
    assert ends(EarlyStopping(2), [1.0, math.nan, math.nan]) == 20
    assert ends(EarlyStopping(2), [math.nan, 5, 4, 3]) is None


def test_flattened_needs_a_drop_and_the_end_of_the_fall():
    falling = [1000 * 0.5**k for k in range(12)]
    assert ends(Flattened(), falling) is None  # still falling
    assert ends(Flattened(), [1000.0] * 12) is None  # flat from the start: nothing dropped
    assert ends(Flattened(), [1000, 900, 950, 800, 850, 800]) is None
    assert ends(Flattened(), [10, 1000, 500, 100, 52, 50, 51, 49, 50]) == 70
    noisy = [1000, 400, 120, 60, 40, 44, 37, 42, 38, 41]
    assert 60 <= ends(Flattened(), noisy) <= 80
    assert ends(Flattened(tolerance=10), [1000, 400, 120, 60, 40]) == 40  # any fall is slow


def test_flattened_starts_again_after_values_that_say_nothing():
    for odd in (math.inf, math.nan, 0.0, -3.0):
        assert ends(Flattened(), [1000, 50, 50, 50, odd, 50, 50, 50]) is None
        assert ends(Flattened(), [1000, 50, 50, 50, odd, 50, 50, 50, 50]) == 80
    assert ends(Flattened(), [math.inf, 1000, 50, 50, 50, 50]) == 50


def test_uneven_steps_weigh_as_they_are():
    """A fall is measured along the steps: one far point decides, however many close ones."""
    rule = Flattened(window=3)
    for step, value in [(0, 1000.0), (1, 100.0), (2, 100.0)]:
        assert not rule.update(step, value)
    assert not rule.update(100, 60.0)  # between 2 and 100 it fell by 40 %
    assert not rule.update(101, 60.0)
    assert rule.update(102, 60.0)


def test_fixed_share():
    assert ends(FixedShare(100, 0.3), range(20)) == 30
    assert FixedShare(100, 0.0).update(0)
    rule = FixedShare(10, 1.0)
    assert not rule.update(9)
    assert rule.update(10)


RULES = [
    (lambda: EarlyStopping(2), [3, 2, 1.5, 1.6, 1.4, 1.5, 1.45, 1.0]),
    (lambda: Flattened(), [10, 1000, 500, 100, 52, 50, 51, 49, 50, 700, 9]),
    (lambda: FixedShare(100, 0.3), [1, 2, 3, 4, 5]),
]


@pytest.mark.parametrize(("make", "values"), RULES)
def test_rules_resume_at_every_step(make, values):
    whole = make()
    said = [whole.update(k * 10, v) for k, v in enumerate(values)]
    assert any(said)
    for cut in range(len(values) + 1):
        rule = make()
        for k in range(cut):
            rule.update(k * 10, values[k])
        saved = json.loads(json.dumps(rule.state_dict()))
        kept = json.dumps(saved)
        rule.update(999, 1.0)
        other = make()
        other.load_state_dict(saved)
        rest = [other.update(k * 10, values[k]) for k in range(cut, len(values))]
        assert said[:cut] + rest == said
        assert other.state_dict() == whole.state_dict()
        assert json.dumps(saved) == kept  # the state is a copy


@pytest.mark.parametrize(("make", "values"), RULES)
def test_rules_refuse_steps_out_of_order_and_foreign_states(make, values):
    rule = make()
    rule.update(5, 1.0)
    for step in (5, 4):
        with pytest.raises(ValueError, match=rf"step {step} comes after step 5"):
            rule.update(step, 1.0)
    with pytest.raises(ValueError, match="step must be a whole number"):
        rule.update(-1, 1.0)
    with pytest.raises(ValueError, match=f"not a state of {type(rule).__name__}"):
        rule.load_state_dict({"step": 3})


def test_rules_refuse_senseless_options():
    for wrong in (
        lambda: EarlyStopping(0),
        lambda: EarlyStopping(least=-1.0),
        lambda: Flattened(drop=1.0),
        lambda: Flattened(window=2),
        lambda: Flattened(tolerance=0),
        lambda: FixedShare(10, 1.5),
    ):
        with pytest.raises(ValueError, match="must"):
            wrong()


# -- steps and the plan ------------------------------------------------------------------------


def test_split_steps_follows_the_procedure():
    for total in (1, 7, 30, 100):
        for share in (0.0, 0.1, 0.25, 1 / 3, 0.5, 0.999, 1.0):
            public, private = split_steps(total, share)
            exact = sum(t < share * total - 1e-9 for t in range(total))
            assert (public, private) == (exact, total - exact)
    assert 0.07 * 100 > 7  # in floating point
    assert split_steps(100, 0.07) == (7, 93)
    for total, share in ((0, 0.5), (10, -0.1), (10, 1.1), (10, math.nan)):
        with pytest.raises(ValueError, match="must be"):
            split_steps(total, share)


SETTING = {"n_private": 5000, "batch": 250, "steps": 40, "accountant": "rdp"}


def test_only_the_private_steps_are_charged_on_the_private_n():
    plan = phase_plan(**SETTING, share=0.25, epsilon=2.0)
    assert (plan.public_steps, plan.private_steps) == (10, 30)
    assert plan.privacy == plan_privacy(n=5000, batch=250, steps=30, epsilon=2.0, accountant="rdp")
    assert plan.privacy.sampling_probability == 250 / 5000
    assert plan.privacy.delta <= 1 / 5000
    assert 1.98 < plan.epsilon <= 2.0

    ledger = Ledger(plan.privacy)
    for _ in range(plan.private_steps):
        ledger.charge(
            noise_multiplier=plan.privacy.noise_multiplier,
            sampling_probability=plan.privacy.sampling_probability,
        )
    (event,) = ledger.report()["history"]
    assert event == {
        "noise_multiplier": plan.privacy.noise_multiplier,
        "sampling_probability": 0.05,
        "steps": 30,
    }
    assert ledger.epsilon() == plan.epsilon


def test_less_noise_the_longer_the_public_phase():
    noises = [
        phase_plan(**SETTING, share=s, epsilon=2.0).privacy.noise_multiplier
        for s in (0.0, 0.25, 0.75)
    ]
    assert noises == sorted(noises, reverse=True)
    assert noises[0] > 1.05 * noises[-1]


def test_no_public_phase_and_no_private_one():
    none = phase_plan(**SETTING, share=0.0, epsilon=2.0)
    assert none.public_steps == 0
    assert none.privacy == plan_privacy(n=5000, batch=250, steps=40, epsilon=2.0, accountant="rdp")
    all_public = phase_plan(**SETTING, share=1.0, epsilon=2.0)
    assert all_public == PhasePlan(public_steps=40, privacy=None)
    assert (all_public.private_steps, all_public.epsilon) == (0, 0.0)
    assert all_public.charged()[-1] == "No private step: epsilon is 0."


def test_planned_again_after_a_switch_that_came_early():
    plan = phase_plan(**SETTING, public_steps=4, epsilon=2.0)
    assert (plan.public_steps, plan.private_steps) == (4, 36)
    assert plan.epsilon <= 2.0
    assert phase_plan(**SETTING, public_steps=40, epsilon=2.0).epsilon == 0
    with pytest.raises(ValueError, match="steps must be a whole number of at least 41"):
        phase_plan(**SETTING, public_steps=41, epsilon=2.0)


def test_other_wrong_inputs():
    for both in ({}, {"share": 0.1, "public_steps": 3}):
        with pytest.raises(ValueError, match="give share or public_steps, one"):
            phase_plan(**SETTING, epsilon=2.0, **both)
    for share in (0.5, 1.0):  # what is wrong is said without a private phase, too
        with pytest.raises(ValueError, match="give epsilon or noise_multiplier"):
            phase_plan(**SETTING, share=share)


def test_what_is_charged_in_words():
    said = phase_plan(**SETTING, share=0.25, noise_multiplier=1.0).charged()
    assert said[0].startswith("10 public steps: not charged")
    assert "30 private steps at noise multiplier 1, each sample with probability 0.05" in said[1]
    assert "250/5000: epsilon" in said[1]
    assert "Not charged" in said[2]
