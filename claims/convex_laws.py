"""Claim: laws of convex optimization predict loss curves, longer runs, and their learning rate.

Bu, Xu, Mao 2026 (arXiv 2602.07145). Three tests on each task, decided by the paper's or the
planner's own thresholds: the first half of a run predicts its second half (R^2 >= 0.95, four
schedules); pilots predict the loss of a run 8 times longer (2 %); they choose its rate (1 % of loss
above the best of the grid, which is then trained).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steelyard.runs.pool import Pool
from steelyard.trials import law_checks as checks
from steelyard.trials.horizon_cases import (
    LOGS,
    SKIPS,
    Case,
    Half,
    Key,
    Losses,
    Plan,
    Results,
    criteria,
    halves,
    plan,
    verdict,
)
from steelyard.trials.horizons import horizon

TOPIC = "steps"
SEEDS = (0, 1, 2)
FOLLOWED = ("cosine", "linear", "cyclic:4", "wsd:0.8")

CASES = (
    Case(
        task="images", batch=4, pilots=(450, 900, 1800), far=14_400,
        references=(0.05, 0.1, 0.2, 0.4, 0.8), shapes=("cosine", "wsd:0.8"), probe=1000,
    ),
    Case(
        task="text", batch=4, pilots=(300, 600, 1200), far=9600,
        references=(0.025, 0.05, 0.1, 0.2, 0.4), shapes=("cosine",), probe=256,
    ),
)  # fmt: skip


def train(runs: Pool, cases: Mapping[str, Case], keys: Sequence[Key]) -> Results:
    found = runs.each(
        horizon, [cases[key[0]].setting(*key[1:], seed) for key in keys for seed in SEEDS]
    )
    return {key: found[i * len(SEEDS) : (i + 1) * len(SEEDS)] for i, key in enumerate(keys)}


def run(runs: Pool) -> dict[str, Any]:
    cases = {case.task: case for case in CASES}
    results = train(runs, cases, [key for case in CASES for key in case.grid()])
    plans = [plan(results, case, shape) for case in CASES for shape in case.shapes]
    planned = {(p.case.task, p.shape): p.mean.reference for p in plans}
    follow = {  # the rate that the plan chose, for cosine where the schedule has no plan
        (task, shape): planned.get((task, shape), planned[task, "cosine"])
        for task in cases
        for shape in FOLLOWED
    }
    missing = [
        (task, shape, cases[task].far, reference)
        for (task, shape), reference in follow.items()
        if (task, shape) not in planned
    ]
    results = {**results, **train(runs, cases, missing)}
    found = {
        (task, shape): halves(results, cases[task], shape, reference)
        for (task, shape), reference in follow.items()
    }
    passed = {
        case.task: criteria(
            [p.mean for p in plans if p.case == case],
            [half for (task, _), half in found.items() if task == case.task],
        )
        for case in CASES
    }
    return {
        "paper": "arXiv 2602.07145",
        "claim": "the first half of a loss curve predicts its second half (R2 0.95), and short "
        "runs predict the loss of a run 8 times longer (2 %) and its best rate (1 % of loss)",
        "topic": TOPIC,
        "published": "R2 of 0.95 and more for the second half, cosine, linear, cyclic and WSD; "
        "lines in 1/sqrt(T) that extrapolate 80-fold, for T above 2,500 steps (GPT-2, OpenWebText)",
        "setting": "; ".join(case.told() for case in CASES)
        + ". Loss: of training samples that no run trains on (1,000 images, 256 texts), mean of "
        "three seeds. The longest pilots choose between lines and law, as in steelyard plan lr",
        "numbers": numbers(plans, found, passed),
        "baselines": [],
        "seeds": list(SEEDS),
        "verdict": verdict([ok for tests in passed.values() for ok in tests.values()]),
        "cost_s": round(sum(one["seconds"] for ones in results.values() for one in ones), 1),
        "sheets": [_halves(found), _plans(plans, results), _account(plans)],
        "panels": [_line_panel(p) for p in plans if p.shape == "cosine"]
        + [_curve_panel(half) for half in found.values() if half is not None],
    }


def numbers(
    plans: Sequence[Plan],
    found: Mapping[tuple[str, str], Half | None],
    passed: Mapping[str, Mapping[str, bool]],
) -> dict[str, str]:
    told = {
        f"{task}: {test}": "yes" if ok else "no"
        for task, tests in passed.items()
        for test, ok in tests.items()
    }
    for (task, shape), half in found.items():
        told[f"{task}, {shape}: R2 of the second half, and its largest relative error"] = (
            "diverged" if half is None else f"{half.mean.r2:.2f}, {half.mean.error:.1%}"
        )
    for p in plans:
        one, where = p.mean, f"{p.case.task}, {p.shape}"
        told[f"{where}: loss at {p.case.far:,} steps, planned and measured"] = (
            f"{one.predicted:.4f} by {one.method} and {one.measured:.4f} ({one.error:+.1%}; seeds "
            f"{_spread([s.error for s in p.seeds], 1)}); at the five rates up to {one.worst():.1%}"
        )
        told[f"{where}: loss above the best of the grid, at the rate chosen"] = (
            f"{one.regret:.1%} (seeds {_spread([s.regret for s in p.seeds], 1)})"
        )
        told[f"{where}: by the test loss"] = (
            f"error {p.test.error:+.1%}, above the best {p.test.regret:.1%}"
        )
        told[f"{where}: exponent of T in the loss, by the law 0.5"] = _number(
            checks.free_exponent, p
        )
        told[f"{where}: exponent of T in the best rate, by the law -0.5"] = _number(
            checks.rate_exponent, p
        )
    return told


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation of shares, in percent."""
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return f"{100 * mean:.{digits}f} ± {100 * deviation:.{digits}f} %"


def _number(what: Callable[[Losses], float], p: Plan) -> str:
    """Of the mean losses, and mean and deviation over those seeds that have it."""
    seeds = [value for one in p.each if not math.isnan(value := what(one))]
    whole = what(p.of)
    shown = "none: the best rate is at an end of the grid" if math.isnan(whole) else f"{whole:.2f}"
    if len(seeds) < 2:
        return shown
    return f"{shown} (seeds {statistics.fmean(seeds):.2f} ± {statistics.stdev(seeds):.2f})"


def _halves(found: Mapping[tuple[str, str], Half | None]) -> dict[str, Any]:
    rows: list[list[str | float | None]] = []
    for (task, shape), half in found.items():
        if half is None:
            rows.append([task, shape, "diverged", *[None] * (7 + len(SKIPS))])
            continue
        r2 = [one.r2 for one in half.seeds]
        rows.append(
            [
                task, shape, half.reference, half.mean.r2, half.mean.error,
                f"{statistics.fmean(r2):.2f} ± {statistics.stdev(r2):.2f}",
                half.minibatches.r2, half.mean.ceiling, half.mean.both, half.mean.whole,
                *half.skipped.values(),
            ]
        )  # fmt: skip
    return {
        "title": "The first half of a run predicts its second half",
        "columns": ["task", "schedule", "eta_ref", "R2", "largest error", "R2 of each seed",
                    "R2, minibatches", "R2 possible", "R2 of both halves", "R2, fitted to all",
                    *[f"R2, {skip:.0%} dropped" for skip in SKIPS]],
        "rows": rows,
        "note": f"Mean curve of three seeds, {LOGS} losses; R2 is against the second half's own "
        "mean, 20 % of the steps dropped. Minibatches: the training losses as they are logged. "
        "Possible: what the seeds' luck leaves of 1. Both halves: the same prediction, "
        "judged also where it was fitted. Fitted to all: the law's form, without "
        "prediction.",
    }  # fmt: skip


def _plans(plans: Sequence[Plan], results: Results) -> dict[str, Any]:
    rows: list[list[str | float | None]] = []
    for p in plans:
        task, far = p.case.task, p.case.far
        for reference in p.case.references:
            ones = [one["loss"] for one in results[task, p.shape, far, reference]]
            ended = [y for y in ones if y is not None]
            shown = "diverged"
            if len(ended) == len(ones):
                shown = f"{statistics.fmean(ended):.4f} ± {statistics.stdev(ended):.4f}"
            errors = [p.mean.errors.get(name, {}).get(reference) for name in ("lines", "law")]
            told = [None if e is None else f"{100 * e:+.1f} %" for e in errors]
            chosen = p.mean.method if reference == p.mean.reference else ""
            rows.append([task, p.shape, far, reference, shown, *told, chosen])
    return {
        "title": "Runs 8 times longer than the longest pilot",
        "columns": ["task", "schedule", "steps", "eta_ref", "loss", "error of lines",
                    "error of law", "chosen by"],
        "rows": rows,
        "note": "Error: predicted from the pilots against measured. Chosen by: the method that "
        "missed the longest pilots least, from the shorter ones.",
    }  # fmt: skip


def _account(plans: Sequence[Plan]) -> dict[str, Any]:
    return {
        "title": "Why: what the runs do in place of 1/sqrt(T)",
        "columns": ["task", "schedule", "exponent of the loss", "exponent of the best rate",
                    "slopes in 1/sqrt(T)", "longest pilots missed by"],
        "rows": [
            [
                p.case.task, p.shape, _number(checks.free_exponent, p),
                _number(checks.rate_exponent, p),
                ", ".join(f"{s:.3g}" for s in checks.slopes(p.of, p.mean.reference)),
                f"{p.mean.trusted:.1%}",
            ]
            for p in plans
        ],
        "note": "Loss: p of Linf + A T^-p through the best loss at each of the four horizons, 0.5 "
        "by the law. Best rate: -0.5 by the law. Slopes: from each horizon to the next at the "
        "chosen eta_ref, by the law all equal. Missed by: the warning that the plan itself gave.",
    }  # fmt: skip


def _line_panel(p: Plan) -> dict[str, Any]:
    """Final loss against T at the chosen eta_ref and at the best."""
    best = min(p.case.references, key=lambda r: p.of.get((p.case.far, r), math.inf))
    lines: list[dict[str, Any]] = []
    for reference in dict.fromkeys((p.mean.reference, best)):
        horizons = [T for T in (*p.case.pilots, p.case.far) if (T, reference) in p.of]
        each = [[one[T, reference] for one in p.each] for T in horizons]
        lines.append(
            {
                "name": f"measured, eta_ref {reference:g}", "role": "baseline", "x": horizons,
                "y": [p.of[T, reference] for T in horizons],
                "low": [min(ys) for ys in each], "high": [max(ys) for ys in each],
            }
        )  # fmt: skip
        for name, errors in p.mean.errors.items():
            if reference in errors:
                y = p.of[p.case.far, reference] * (1 + errors[reference])
                lines.append(
                    {
                        "name": f"{name}, eta_ref {reference:g}", "role": "method",
                        "x": [p.case.far], "y": [y], "low": [y], "high": [y],
                    }
                )  # fmt: skip
    return {
        "title": f"{p.case.task}, {p.shape}: pilots and a run 8 times longer", "x": "steps",
        "y": "final loss", "log_x": True, "log_y": True, "lines": lines,
    }  # fmt: skip


def _curve_panel(half: Half) -> dict[str, Any]:
    fit = half.mean.fit
    steps, measured = fit.steps.tolist(), fit.losses.tolist()
    each = [one.fit.losses for one in half.seeds]
    return {
        "title": f"{half.case.task}, {half.shape}: the second half from the first", "x": "step",
        "y": "loss", "log_x": False, "log_y": False,
        "lines": [
            {
                "name": "measured", "role": "baseline", "x": steps, "y": measured,
                "low": [float(min(ys)) for ys in zip(*each, strict=True)],
                "high": [float(max(ys)) for ys in zip(*each, strict=True)],
            },
            {
                "name": "law of the first half", "role": "method", "x": steps,
                "y": fit.predicted.tolist(), "low": fit.predicted.tolist(),
                "high": fit.predicted.tolist(),
            },
        ],
    }  # fmt: skip
