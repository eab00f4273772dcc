"""Engines take turns, step by step: ratios within a round, and their median and quartiles.

The turns follow a Williams design: over a cycle of rounds every engine stands in every place and
comes after every other engine equally often, so what one leaves behind in caches, clock and memory
is spread over all. An engine leaves when its share of the time is used up, the plain step stays to
the end.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of one number per round."""

    median: float
    low: float
    high: float
    rounds: int


def orders(count: int) -> list[list[int]]:
    """A Williams design: rows of 0 .. count - 1, balanced in place and in predecessor."""
    first = [0]
    for step in range(1, count):
        first.append((first[-1] + (step if step % 2 else -step)) % count)
    rows = [[(place + shift) % count for place in first] for shift in range(count)]
    return rows if count % 2 == 0 else rows + [row[::-1] for row in rows]


def take_turns(
    steps: Mapping[str, Callable[[], None]],
    *,
    budget: Mapping[str, float],
    fewest: Mapping[str, int],
    most: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every step by round; NaN where an engine did not take part.

    budget: seconds after which an engine leaves; fewest: its rounds whatever they cost; most: of
    all rounds. One engine is called "plain".
    """
    names, design = list(steps), orders(len(steps))
    times: dict[str, list[float]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    gc.collect()
    gc.freeze()  # the collections between the rounds then look at a round's garbage only
    gc.disable()
    try:
        for turn in range(most):
            part = {n for n in names if turn < fewest[n] or spent[n] < budget[n]}
            if not part - {"plain"}:
                break
            for name in (names[place] for place in design[turn % len(design)]):
                if name not in part | {"plain"}:
                    times[name].append(math.nan)
                    continue
                start = clock()
                steps[name]()
                took = clock() - start
                times[name].append(took)
                spent[name] += took
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return times


def spread(numbers: Sequence[float]) -> Spread:
    """Of the rounds that have a number."""
    kept = [x for x in numbers if not math.isnan(x)]
    if len(kept) == 1:
        return Spread(median=kept[0], low=kept[0], high=kept[0], rounds=1)
    low, _, high = statistics.quantiles(kept, n=4, method="inclusive")
    return Spread(median=statistics.median(kept), low=low, high=high, rounds=len(kept))


def ratios(times: Mapping[str, Sequence[float]], above: str, below: str) -> list[float]:
    """above / below, round by round."""
    return [a / b for a, b in zip(times[above], times[below], strict=True)]


def share(times: Mapping[str, Sequence[float]], more: str, less: str, of: str) -> list[float]:
    """(more - less) / of, round by round."""
    return [(a - b) / c for a, b, c in zip(times[more], times[less], times[of], strict=True)]
