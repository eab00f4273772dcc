"""What a claim on unlearning shows of a benchmark: grids of trials, sentences, tables, pictures.

Every method has the same learning rates; those whose rows have fixed weights also the same retain
weights. Fronts and hypervolumes are of (retain quality, forget quality), see
`steelyard.trials.forgetting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from steelyard.runs.methods import METHODS
from steelyard.runs.pool import Pool
from steelyard.runs.verdict import paired
from steelyard.trials import forgetting as trials
from steelyard.trials.fronts import Grid, attained

SEEDS = (0, 1, 2)
MARGIN = 0.02  # of a hypervolume, whose range is 0 to 1: less is as good
AUTO, SGD = "ngdiff, automatic rate", "blur, SGD"
SCALAR = [name for name, one in METHODS.items() if one.weighting in ("fixed", "loss")]
OURS = ["ngdiff", AUTO, "blur", "blur-adam"]
SLOPES = ("blur", "blur-adam", "npo")  # whose steps are looked at to first order
LEVELS = [k / 50 for k in range(51)]
SCORES = (
    "forget regurgitation", "forget knowledge", "retain regurgitation", "retain knowledge", "auc",
    "utility", "aggregate",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One benchmark and its grid. scored: so many of the best scalar methods write texts too;
    sgd_rates: of BLUR with SGD. methods: those that are measured; empty: all."""

    name: str
    told: str
    benchmark: dict[str, Any]
    rates: tuple[float, ...]
    weights: tuple[float, ...]
    run: dict[str, int]
    scored: int
    sgd_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    methods: tuple[str, ...] = ()

    def of(self, seed: int) -> dict[str, Any]:
        return {**self.benchmark, "seed": seed}

    def setting(self, method: str, rate: float, weight: float, seed: int) -> dict[str, Any]:
        one: dict[str, Any] = {
            "benchmark": self.of(seed), "method": method, "rate": rate, "weight": weight, **self.run
        }  # fmt: skip
        if method == AUTO:
            one |= {"method": "ngdiff", "automatic": True}
        if method == SGD:
            one |= {"method": "blur", "optimizer": "sgd"}
        if method in (*SLOPES, SGD) and weight == 1.0:
            one["slopes"] = True
        return one

    def cells(self, method: str) -> list[tuple[float, float]]:
        rates = self.sgd_rates if method == SGD else self.rates
        fixed = method in METHODS and METHODS[method].weighting == "fixed"
        return [(rate, weight) for weight in (self.weights if fixed else (1.0,)) for rate in rates]


def row(measured: Sequence[Measured], **more: Any) -> dict[str, Any]:
    """The committed row of a claim on these benchmarks; more: its own fields."""
    statements = {text: one for m in measured for text, one in judge(m).items()}
    return {
        "paper": "arXiv 2410.22086, 2506.08164",
        "published": "NGDiff: better trade-off than GA, GDiff, KL, NPO on TOFU and MUSE-News "
        "without a weight; BLUR: best on WMDP, keeps utility on MUSE; no grids with equal budgets",
        "setting": _told(measured),
        "numbers": {text: one.told for text, one in statements.items()},
        "baselines": sorted({n for m in measured for n in m.grids if n not in (*OURS, SGD)}),
        "seeds": list(SEEDS),
        "verdict": verdict(list(statements.values())),
        "cost_s": round(sum(m.seconds for m in measured)),
        "sheets": [sheet for m in measured for sheet in _sheets(m)],
        "panels": [panel for m in measured for panel in (_front_panel(m), _rate_panel(m))],
        **more,
    }


class Measured:
    """All trials of a part. scores: by model; empty where the part writes no texts (scored 0)."""

    def __init__(self, runs: Pool, part: Part) -> None:
        self.part = part
        self.builds = runs.each(trials.build, [part.of(seed) for seed in SEEDS])
        names = part.methods or (*METHODS, AUTO, SGD)
        keys = [(name, cell, seed) for name in names for cell in part.cells(name) for seed in SEEDS]
        found = runs.each(trials.forget, [part.setting(n, *cell, s) for n, cell, s in keys])
        self.grids = {name: Grid() for name in names}
        for (name, cell, _), trial in zip(keys, found, strict=True):
            self.grids[name].cells.setdefault(cell, []).append(trial)
        scalar = [name for name in SCALAR if name in names]
        by_front = sorted(scalar, key=lambda name: -fmean(self.grids[name].union))
        self.best_front = by_front[0]
        self.best_mean = max(scalar, key=lambda name: fmean(self.grids[name].over_cells))
        shown = dict.fromkeys([*OURS, *by_front[: part.scored], "graddiff"])
        self.shown = [name for name in shown if name in names]
        texts = self._texts(runs) if part.scored else []
        self.trials = len(found) + len(texts)
        self.seconds = sum(one["seconds"] for one in [*self.builds, *found, *texts])

    def _texts(self, runs: Pool) -> list[dict[str, Any]]:
        """What the models of both ends and those of each shown method's best cell write."""
        part = self.part
        ends = runs.each(trials.reference, [part.of(seed) for seed in SEEDS])
        asked = [
            part.setting(name, *self.grids[name].best, seed) | {"generate": True}
            for name in self.shown
            for seed in SEEDS
        ]
        texts = runs.each(trials.forget, asked)
        self.scores = {end: [one[end] for one in ends] for end in ("target", "reference")}
        for place, name in enumerate(self.shown):
            own = texts[place * len(SEEDS) : (place + 1) * len(SEEDS)]
            self.scores[name] = [one["scores"] for one in own]
        return [*ends, *texts]


@dataclass(frozen=True)
class Statement:
    told: str
    holds: bool


def judge(m: Measured) -> dict[str, Statement]:
    """Each sentence of the claim on one benchmark, as far as its methods were measured."""
    grids, fixed = m.grids, m.grids["graddiff"]
    blindly, best = grids[m.best_mean], grids[m.best_front]
    found: dict[str, Statement] = {}
    for title, own in (("NGDiff", "ngdiff"), ("NGDiff with its automatic rate", AUTO)):
        if own in grids:
            text = f"front of {title} minus that of the same losses over all fixed weights"
            found[text] = at_least(grids[own].union, fixed.union)
            text = f"a cell taken blindly, {title} minus the best scalar method ({m.best_mean})"
            found[text] = at_least(grids[own].over_cells, blindly.over_cells)
            text = f"mean over the rates, {title} minus the same losses at their best weight"
            found[text] = at_least(grids[own].over_rates, fixed.over_rates)
    for title, own in (("BLUR with SGD", SGD), ("BLUR in AdamW's metric", "blur-adam")):
        if own in grids:
            found[f"steps of {title} that raise F to first order"] = never(grids[own])
    for title, own in (
        ("NGDiff", "ngdiff"),
        ("NGDiff with its automatic rate", AUTO),
        ("BLUR", "blur"),
        ("BLUR in the metric", "blur-adam"),
    ):
        if own in grids:
            text = f"front of {title} minus the best scalar method's ({m.best_front})"
            found[text] = at_least(grids[own].union, best.union)
    return {f"{m.part.name}: {text}": one for text, one in found.items()}


def at_least(method: Sequence[float], baseline: Sequence[float]) -> Statement:
    """Hypervolumes by seed; up to MARGIN less on average is as good."""
    difference, error, _ = paired(method, baseline)
    return Statement(f"{difference:+.3f} ± {error:.3f}", difference >= -MARGIN)


def never(grid: Grid) -> Statement:
    share = grid.mean("raised_first_order")
    if share is None:
        return Statement("no step", False)
    return Statement(f"{100 * share:.2f} %", share == 0)


def verdict(statements: Sequence[Statement]) -> str:
    held = [one.holds for one in statements]
    return "holds" if all(held) else "partly" if any(held) else "fails"


def spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"


def _sheets(m: Measured) -> list[dict[str, Any]]:
    return [_fronts(m), *([_scores(m)] if m.part.scored else []), _steps(m)]


def _fronts(m: Measured) -> dict[str, Any]:
    best = m.grids[m.best_front]
    rows: list[list[Any]] = []
    for name, grid in sorted(m.grids.items(), key=lambda one: -fmean(one[1].union)):
        rate, weight = grid.best
        rows.append([
            name, len(grid.cells), spread(grid.union), at_least(grid.union, best.union).told,
            spread(grid.over_cells), spread(grid.over_rates), spread(grid.at(grid.best)),
            f"{rate:g}", f"{weight:g}", int(grid.total("diverged")),
        ])  # fmt: skip
    return {
        "title": f"{m.part.name}: hypervolumes",
        "columns": [
            "method", "cells", "front of the whole grid", f"minus {m.best_front}'s",
            "mean over cells", "mean over rates, best weight", "best cell", "its rate",
            "its weight", "diverged",
        ],
        "rows": rows,
        "note": f"0: the target as it is, 1: as retrained; mean ± standard deviation of "
        f"{len(SEEDS)} seeds, differences ± standard error. A point for each look at each run, so "
        "methods with a weight have more points",
    }  # fmt: skip


def _scores(m: Measured) -> dict[str, Any]:
    def row(name: str) -> list[Any]:
        told = m.scores[name]
        return [name, *(fmean(one[score] for one in told) for score in SCORES)]

    return {
        "title": f"{m.part.name}: scores of the best cell, stopped at the reference's forget loss",
        "columns": ["model", *SCORES],
        "rows": [row(name) for name in ("target", "reference", *m.shown)],
        "note": "regurgitation: ROUGE-L recall; knowledge: exact match; auc of the loss attack, "
        "0.5 is best; utility: general facts by choice. A run that never reaches that loss is "
        "scored after its last step",
    }


def _steps(m: Measured) -> dict[str, Any]:
    def percent(share: float | None) -> str | None:
        return None if share is None else f"{100 * share:.1f} %"

    rows = []
    for name in ("blur", "blur-adam", SGD, "npo", "ngdiff", "graddiff"):
        for cell, own in sorted(m.grids[name].cells.items()) if name in m.grids else ():
            if cell[1] == 1.0:
                one = Grid({cell: own})
                first = percent(one.mean("raised_first_order"))
                rows.append([name, f"{cell[0]:g}", percent(one.mean("raised")), first])
    return {
        "title": f"{m.part.name}: steps that raised the forget objective",
        "columns": ["method", "rate", "on their own batch", "to first order"],
        "rows": rows,
        "note": "AdamW where nothing else is said; retain weight 1; all seeds together",
    }


def _lines(m: Measured, of: Callable[[Grid], dict[float, list[float]]]) -> list[dict[str, Any]]:
    """of: x -> values by seed."""
    found = {name: of(m.grids[name]) for name in m.shown}
    return [
        {
            "name": name, "role": "method" if name in OURS else "baseline", "x": list(own),
            "y": [fmean(v) for v in own.values()], "low": [min(v) for v in own.values()],
            "high": [max(v) for v in own.values()],
        }
        for name, own in found.items()
    ]  # fmt: skip


def _front_panel(m: Measured) -> dict[str, Any]:
    def of(grid: Grid) -> dict[float, list[float]]:
        points = [grid.points(seed) for seed in grid.seeds]
        return {level: [attained(own, level) for own in points] for level in LEVELS}

    return {
        "title": f"{m.part.name}, fronts", "x": "retain quality at least", "y": "forget quality",
        "log_x": False, "log_y": False, "lines": _lines(m, of),
    }  # fmt: skip


def _rate_panel(m: Measured) -> dict[str, Any]:
    return {
        "title": f"{m.part.name}, tuning", "x": "learning rate, or its start",
        "y": "hypervolume, best weight", "log_x": True, "log_y": False,
        "lines": _lines(m, Grid.by_rate),
    }  # fmt: skip


def _told(measured: Sequence[Measured]) -> str:
    parts = [
        f"{m.part.name}: {m.part.told} trained {m.builds[0]['steps']} steps; rates "
        f"{', '.join(f'{r:g}' for r in m.part.rates)}; retain weights "
        f"{', '.join(f'{w:g}' for w in m.part.weights)} where there is one; {m.part.run['steps']} "
        f"steps of {m.part.run['batch']} + {m.part.run['batch']} rows; {m.trials} runs"
        for m in measured
    ]
    rates = {f"{r:g}": None for m in measured if SGD in m.grids for r in m.part.sgd_rates}
    sgd = f" {SGD}: rates {', '.join(rates)}." if rates else ""
    return (
        f"{'; '.join(parts)}. AdamW without decay, all weights trained.{sgd} Memory: share of "
        "answer tokens that are the "
        "likeliest, mean over task and kind; forget quality 1 at the retrained reference's, 0 at "
        "the target's; retain quality relative to the target's"
    )
