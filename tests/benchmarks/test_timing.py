"""Who takes part when, and the numbers made of the rounds."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from lib.timing import orders, ratios, share, spread, take_turns


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 13])
def test_every_engine_follows_every_other_equally_often(count):
    rows = orders(count)
    assert all(sorted(row) == list(range(count)) for row in rows)
    places = Counter((engine, place) for row in rows for place, engine in enumerate(row))
    assert len(set(places.values())) == 1
    assert len(places) == count**2
    after = Counter(pair for row in rows for pair in pairwise(row))
    assert len(set(after.values())) == 1
    assert len(after) == count * (count - 1)


class Clock:
    """Each engine's step moves it by the engine's seconds."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self) -> float:
        return self.now

    def step(self, name: str, seconds: float):
        def act() -> None:
            self.order.append(name)
            self.now += seconds

        return act


def test_rounds_end_with_an_engine_s_share_of_the_time():
    clock = Clock()
    steps = {"plain": clock.step("plain", 1.0), "fast": clock.step("fast", 2.0)}
    steps["slow"] = clock.step("slow", 50.0)
    budget, fewest = dict.fromkeys(steps, 20.0), {"plain": 5, "fast": 5, "slow": 3}
    times = take_turns(steps, budget=budget, fewest=fewest, most=99, clock=clock)
    taken = {name: [t for t in numbers if not math.isnan(t)] for name, numbers in times.items()}
    assert taken["slow"] == [50.0] * 3  # not fewer, however slow
    assert taken["fast"] == [2.0] * 10  # 20 s
    assert taken["plain"] == [1.0] * 10  # with everybody, to the end
    assert len({len(numbers) for numbers in times.values()}) == 1
    assert clock.order[:3] != clock.order[3:6]
    assert spread(ratios(times, "slow", "plain")).rounds == 3


def test_never_more_rounds_than_asked():
    clock = Clock()
    steps = {name: clock.step(name, 0.0) for name in ("plain", "other")}
    budget, fewest = dict.fromkeys(steps, 1.0), dict.fromkeys(steps, 3)
    times = take_turns(steps, budget=budget, fewest=fewest, most=7, clock=clock)
    assert len(times["plain"]) == 7


def test_numbers_of_the_rounds():
    times = {"plain": [2.0, 2.0, 4.0], "noisy": [6.0, 5.0, math.nan], "quiet": [4.0, 4.0, 4.0]}
    assert ratios(times, "noisy", "plain")[:2] == [3.0, 2.5]
    assert share(times, "noisy", "quiet", "plain")[:2] == [1.0, 0.5]
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0, math.nan])
    assert (found.low, found.median, found.high, found.rounds) == (2.0, 3.0, 4.0, 5)
    assert spread([math.nan, 7.0]).high == 7.0
