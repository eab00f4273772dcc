"""The cost of found rates: a turn holds whole fits, and the page says who kept the limit."""

from __future__ import annotations

import math

import pytest
import rate_cost
from rate_cost import ARMS, BASE, BLOCK, FORWARD, found, measure, page


@pytest.mark.parametrize("key", ["gen-8-5h", "gen-32-3", "hidlr"])
def test_a_turn_is_a_whole_number_of_fits(key, monkeypatch):
    made = []
    for name in ("GeN", "HiDLR"):
        real = getattr(rate_cost, name)
        monkeypatch.setattr(
            rate_cost, name, lambda *a, real=real, **o: made.append(real(*a, **o)) or made[-1]
        )
    turn = found("cnn", ARMS[key])
    assert turn.steps >= BLOCK
    assert turn.steps % turn.every == 0
    turn.block()
    (rate,) = made
    rate.log.clear()
    before = rate.forwards
    turn.block()
    assert len(rate.log) == turn.steps // turn.every
    assert rate.forwards - before == len(rate.log) * turn.forwards
    assert math.isfinite(
        sum(float(p.detach().sum()) for p in rate._optimizer.param_groups[0]["params"])
    )


def test_predictions_are_of_the_times_in_the_same_rounds(monkeypatch):
    seconds = {BASE: 32 * 3.0, FORWARD: 8 * 1.0}

    def turns(steps, **_):
        return {key: [seconds.get(key, 40.0)] * 3 for key in steps}

    monkeypatch.setattr(rate_cost.timing, "take_turns", turns)
    monkeypatch.setattr(rate_cost, "ARMS", {key: ARMS[key] for key in ("gen-8-5", "gen-8-5h")})
    whole, half = measure("cnn", seconds=0.0)
    assert whole["predicted"] == pytest.approx(1 + 5 / (8 * 3))
    assert half["predicted"] == pytest.approx(1 + 0.5 * 5 / (8 * 3))
    assert whole["ratio"] == pytest.approx(40 / (32 * 3))


def test_the_page_marks_what_is_past_its_limit():
    common = {
        "workload": "mlp", "low": 1.0, "high": 1.1, "ms": 20.0, "forward_ms": 7.0, "forwards": 5,
        "predicted": 1.1, "rounds": 9,
    }  # fmt: skip
    rows = [
        common | {"arm": "kept", "ratio": 1.12, "limit": 1.12},
        common | {"arm": "missed", "ratio": 1.121, "limit": 1.12},
        common | {"arm": "free", "ratio": 2.0, "limit": None},
    ]
    lines = {line.split("|")[2].strip(): line for line in page(rows).splitlines() if "mlp" in line}
    assert lines["kept"].endswith("| 1.12: yes |")
    assert lines["missed"].endswith("| 1.12: **no** |")
    assert lines["free"].endswith("|  |")
