"""The cases on which the laws of loss are tested: their runs, plans, halves, and the verdict.

See `steelyard.trials.law_checks` for the tests themselves, claims/convex_laws.py for the claim.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.plans.schedule_shapes import parse_shape
from steelyard.steps.schedules import WARMUP
from steelyard.trials import law_checks as checks
from steelyard.trials.horizons import OPTIMIZERS
from steelyard.trials.law_checks import Losses

R2, LOSS, RATE = 0.95, 0.02, 0.01  # the three thresholds
SKIPS = (0.05, 0.1, 0.2, 0.3)  # share of the steps dropped as transient; 0.2 decides
LOGS = 40  # losses logged in a long run

Key = tuple[str, str, int, float]  # task, schedule, T, eta_ref
Results = Mapping[Key, Sequence[Mapping[str, Any]]]  # of each seed


@dataclass(frozen=True, kw_only=True)
class Case:
    """far: 8 times the longest pilot. shapes: those whose grid is trained at every horizon."""

    task: str
    batch: int
    pilots: tuple[int, ...]
    far: int
    references: tuple[float, ...]
    shapes: tuple[str, ...]
    probe: int

    def setting(self, shape: str, steps: int, reference: float, seed: int) -> dict[str, Any]:
        return {
            "task": self.task, "shape": shape, "steps": steps, "reference": reference,
            "seed": seed, "batch": self.batch, "probe": self.probe,
            "logs": LOGS if steps == self.far else 1,
        }  # fmt: skip

    def grid(self) -> list[Key]:
        return [
            (self.task, shape, steps, reference)
            for steps in (self.far, *self.pilots)
            for shape in self.shapes
            for reference in self.references
        ]

    def told(self) -> str:
        pilots = ", ".join(f"{T:,}" for T in self.pilots)
        rates = ", ".join(f"{r:g}" for r in self.references)
        return (
            f"{self.task}: {OPTIMIZERS[self.task]}, batch {self.batch}, less than one epoch, "
            f"pilots of {pilots} steps, then {self.far:,}; peak = eta_ref / sqrt(T), eta_ref "
            f"{rates}; grids for {' and '.join(self.shapes)}"
        )


def losses(
    results: Results, case: Case, shape: str, seed: int | None = None, what: str = "loss"
) -> Losses:
    """(T, eta_ref) -> the loss, of one seed or their mean; settings that diverged are left out."""
    found: dict[tuple[int, float], float] = {}
    for (task, form, steps, reference), ones in results.items():
        values = [one[what] for one in ones if one[what] is not None]
        if (task, form) == (case.task, shape) and len(values) == len(ones):
            found[steps, reference] = statistics.fmean(values) if seed is None else values[seed]
    return found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One case and schedule: the plan from mean losses, and from each seed's own."""

    case: Case
    shape: str
    of: Losses
    mean: checks.Planned
    seeds: Sequence[checks.Planned]
    test: checks.Planned
    each: Sequence[Losses]


def plan(results: Results, case: Case, shape: str) -> Plan:
    form = parse_shape(shape, WARMUP)
    of = losses(results, case, shape)
    seeds = len(next(iter(results.values())))
    each = [losses(results, case, shape, seed) for seed in range(seeds)]
    test = losses(results, case, shape, what="test_loss")
    return Plan(
        case=case,
        shape=shape,
        of=of,
        mean=checks.planned(of, form, case.far),
        seeds=[checks.planned(one, form, case.far) for one in each],
        test=checks.planned(test, form, case.far),
        each=each,
    )


@dataclass(frozen=True, kw_only=True)
class Half:
    """One run in two halves: of the seeds' mean, of each seed, of the minibatches, by skip."""

    case: Case
    shape: str
    reference: float
    mean: checks.Followed
    seeds: Sequence[checks.Followed]
    minibatches: checks.Followed
    skipped: Mapping[float, float]


def halves(results: Results, case: Case, shape: str, reference: float) -> Half | None:
    """None where a seed diverged."""
    ones = results[case.task, shape, case.far, reference]
    if any(one["diverged"] for one in ones):
        return None
    lr = reference / math.sqrt(case.far) * parse_shape(shape, WARMUP)(case.far)
    at, curves = ones[0]["at"], [one["curve"] for one in ones]
    middle = [(a + b) // 2 for a, b in zip([0, *at], at, strict=False)]
    by_skip = {skip: checks.followed(lr, at, curves, skip) for skip in SKIPS}
    return Half(
        case=case,
        shape=shape,
        reference=reference,
        mean=by_skip[0.2],
        seeds=[checks.followed(lr, at, [curve]) for curve in curves],
        minibatches=checks.followed(lr, middle, [one["train"] for one in ones]),
        skipped={skip: found.r2 for skip, found in by_skip.items()},
    )


def criteria(plans: Sequence[checks.Planned], found: Sequence[Half | None]) -> dict[str, bool]:
    """Which of the three tests the law passes on one case; a run that diverged passes none."""
    return {
        "the first half predicts the second": bool(found)
        and all(half is not None and half.mean.r2 >= R2 for half in found),
        "the loss 8 times later is predicted": all(abs(p.error) <= LOSS for p in plans),
        "the rate 8 times later is chosen": all(p.regret <= RATE for p in plans),
    }


def verdict(passed: Sequence[bool]) -> str:
    if all(passed):
        return "holds"
    return "partly" if any(passed) else "fails"
