"""The targets, and what the rows of a run say about each: computed, never typed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .workloads import WORKLOADS

Row = dict[str, Any]
MEAN, WORST, SPEED_UP, MEMORY, MEMORY_LAYER = 1.25, 1.45, 1.3, 1.25, 1.05
OURS, LAYER, LOOP = "steelyard", "steelyard-layer", "peer-loop"
FASTEST = "speed-up over the fastest correct other"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One target. met is None where a run has nothing to say."""

    target: str
    asked: str
    found: str
    met: bool | None


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """All targets over the rows of one run."""
    ours = {r["workload"]: r for r in rows if r["engine"] == OURS and "ratio" in r}
    layer = {r["workload"]: r for r in rows if r["engine"] == LAYER and "ratio" in r}
    found = [*_cost(ours), *_right(rows)]
    for name in ours:
        found += _speed_ups(name, [r for r in rows if r["workload"] == name])
    found += _memory("all-layer", ours, MEMORY)
    found += _memory("layer-wise", layer, MEMORY_LAYER)
    return found


def _cost(ours: dict[str, Row]) -> Iterator[Verdict]:
    if not ours:
        return
    ratios = {name: float(row["ratio"]) for name, row in ours.items()}
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    part = f" ({len(ratios)} of {len(WORKLOADS)} workloads)"
    some = "" if ratios.keys() >= WORKLOADS.keys() else part
    worst = max(ratios, key=lambda name: ratios[name])
    cost = "cost over the plain step"
    yield _at_most(f"{cost}: geometric mean{some}", mean, MEAN)
    yield _at_most(f"{cost}: worst workload, {worst}{some}", ratios[worst], WORST)


def _right(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Our own engines are held to what the others are held to."""
    ours = [r for r in rows if r["family"] == "ours"]
    for row in (r for r in ours if r["reason"] is not None):
        target = f"{row['workload']}: {row['label']}, {row['groups']}: the right gradient"
        yield Verdict(target=target, asked="error <= 1e-4", found=row["reason"], met=False)
    errors = [r["error"] for r in ours if r["reason"] is None]
    if errors:
        target = f"the right gradient, largest error of {len(errors)} timed rows"
        yield Verdict(target=target, asked="error <= 1e-4", found=f"{max(errors):.0e}", met=True)


def _speed_ups(workload: str, rows: Iterable[Row]) -> Iterator[Verdict]:
    others = [r for r in rows if r["family"] in ("peer", "opacus")]
    correct = [r for r in others if "speed_up" in r]
    fastest = min(correct, key=lambda r: r["speed_up"], default=None)
    if fastest is not None:
        yield _at_least(f"{workload}: {FASTEST} ({fastest['label']})", fastest["speed_up"])
    batched = [r for r in correct if r["engine"] != LOOP]
    if fastest is not None and fastest["engine"] == LOOP and batched:
        second = min(batched, key=lambda r: r["speed_up"])
        target = f"{workload}: {FASTEST} that keeps the batch whole ({second['label']})"
        yield _at_least(target, second["speed_up"])
    for row in others:
        if row["family"] != "opacus":
            continue
        target = f"{workload}: speed-up over {row['label']}"
        if "speed_up" in row:
            yield _at_least(target, row["speed_up"])
        else:
            yield Verdict(target=target, asked="-", found=row["reason"], met=None)


def _memory(kind: str, rows: dict[str, Row], asked: float) -> Iterator[Verdict]:
    for name, row in rows.items():
        yield _at_most(f"{name}: memory, {kind}", row["whole"], asked)


def _at_most(target: str, found: float, asked: float) -> Verdict:
    """Compared as printed: 1.254 is 1.25."""
    return Verdict(
        target=target, asked=f"<= {asked}", found=f"{found:.2f}", met=round(found, 2) <= asked
    )


def _at_least(target: str, found: float) -> Verdict:
    return Verdict(
        target=target, asked=f">= {SPEED_UP}", found=f"{found:.2f}", met=round(found, 2) >= SPEED_UP
    )
