"""Two methods, tested on what they did not see: errors, regret, and the choice between them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steelyard.plans.bound import constants
from steelyard.plans.forecast import (
    HeldOut,
    Pilot,
    better,
    hold_out,
    largest_error,
    law_of,
    lines_of,
    regret,
)
from steelyard.plans.schedule_shapes import Shape

COSINE, CONSTANT = Shape(kind="cosine", warmup=0.02), Shape(kind="constant")


def pilot(reference, steps, loss=None, shape=COSINE, noise=0.0):
    """A run that follows the law Linf = 1, D = 2, G = 0.5, unless its loss is given."""
    peak, c = reference / math.sqrt(steps), constants(shape, steps)
    x1, x2 = c.q1_squared / (steps * peak), c.q2_squared * peak
    law = 1 + 4 * x1 + 0.25 * x2
    return Pilot(
        name=f"{reference:g}-{steps}",
        steps=steps,
        peak=peak,
        x1=x1,
        x2=x2,
        loss=(law if loss is None else loss) + noise,
    )


def grid(**options):
    return [pilot(r, T, **options) for T in (300, 600, 1200, 2400) for r in (1.0, 3.0, 9.0)]


def test_a_pilot_knows_its_schedule():
    for shape in (COSINE, CONSTANT, Shape(kind="wsd")):
        assert pilot(1.0, 500, shape=shape).follows(shape)
        assert not pilot(1.0, 500, shape=shape).follows(Shape(kind="linear", warmup=0.5))
    assert not pilot(1.0, 500, shape=CONSTANT).follows(COSINE)


def test_both_methods_predict_what_follows_the_law():
    pilots = grid()
    hidden = [p for p in pilots if p.steps == 2400]
    held = hold_out(
        pilots, hidden, {"lines": lambda r: lines_of(r, COSINE), "law": lambda r: law_of(r, COSINE)}
    )
    assert [h.name for h in held] == ["1-2400", "3-2400", "9-2400"]
    assert largest_error(held, "law") < 1e-8
    assert largest_error(held, "lines") < 1e-3  # the constants move a little with T
    assert regret(held, "law") == regret(held, "lines") == 0
    assert better(held, ["lines", "law"]) == "law"


def test_what_is_hidden_is_not_seen():
    """A wrong loss of a hidden run changes no prediction, and is the error that is reported."""
    pilots = [*grid()[:9], pilot(3.0, 2400, loss=3.0)]
    (held,) = hold_out(pilots, pilots[9:], {"law": lambda r: law_of(r, COSINE)})
    assert held.predicted["law"] == pytest.approx(pilot(3.0, 2400).loss)
    assert held.error("law") == pytest.approx(pilot(3.0, 2400).loss / 3 - 1)
    assert math.isnan(held.error("lines"))


def test_best_of_both():
    steps = 10_000
    law, lines = law_of(grid(), COSINE), lines_of(grid(), COSINE)
    assert law.best(steps).rate == pytest.approx(4 * constants(COSINE, steps).best_peak)
    found = lines.best(steps)
    assert found.rate == pytest.approx(3 / math.sqrt(steps))  # the nearest of those tried
    assert found.loss == pytest.approx(pilot(3.0, steps).loss, rel=1e-3)
    assert found.loss >= law.best(steps).loss
    for forecast in (law, lines):
        T = forecast.required_steps(1.1)
        assert forecast.best(T).loss == pytest.approx(1.1, rel=1e-3)
        with pytest.raises(ValueError, match="no horizon"):
            forecast.required_steps(0.9)


def test_references_whose_lines_cannot_be_told_apart_are_the_rates_interval():
    rng = np.random.default_rng(0)
    runs = [
        pilot(r, T, loss=2 + 5 / math.sqrt(T) + far + 0.01 * rng.normal())
        for T in (300, 600, 1200, 2400)
        for r, far in ((1.0, 0.5), (3.0, 0.0), (9.0, 0.001))
    ]
    best = lines_of(runs, COSINE).best(10_000)
    assert best.rate_interval == pytest.approx((0.03, 0.09))


def test_lines_take_only_runs_of_the_planned_schedule():
    mixed = [*grid(), *grid(shape=CONSTANT)]
    assert lines_of(mixed, COSINE).lines == lines_of(grid(), COSINE).lines
    assert lines_of(grid(shape=CONSTANT), COSINE) is None
    assert law_of(mixed, COSINE).law.distance == pytest.approx(2)
    assert math.isnan(lines_of(grid(), COSINE).predict(pilot(5.0, 500)))
    assert law_of(grid()[:2], COSINE) is None


def held(measured, **predicted):
    return HeldOut(name="", steps=100, peak=0.1, measured=measured, predicted=predicted)


def test_regret_is_what_the_choice_costs():
    runs = [held(1.0, a=2.0, b=1.5), held(1.2, a=1.0, b=1.6), held(1.1, a=1.5)]
    assert regret(runs, "a") == pytest.approx(0.2)
    assert regret(runs, "b") == 0
    assert math.isnan(regret(runs[:1], "a"))
    assert largest_error(runs, "a") == pytest.approx(1.0)
    assert better(runs, ["a", "b"]) == "b"  # 1.0 and 0.17 against 0.5 and 0.33
    assert better([held(1.0, a=2.0)], ["b", "a"]) == "a"  # the other said nothing
    assert better([], ["b", "a"]) == "b"
