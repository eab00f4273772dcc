"""Claim: GeN finds the learning rate itself, from any start, at the price of some forward passes.

Bu, Xu, ICLR 2025 (arXiv 2407.02772). Every method is given the same seven starts; the bar is the
best schedule of the same optimizer, tuned on a seed of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.runs.pool import Pool
from steelyard.trials import rates as trials
from steelyard.trials.spread import Group, lines, shown, worse_by

TOPIC = "steps"
STARTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SEEDS = (0, 1, 2)
TUNING_SEED = 100
SCHEDULES = ("constant", "cosine", "linear")
MARGIN = 0.02  # of the tuned schedule's loss
ENOUGH = 6  # starts of seven
METHOD = "gen-cosine"
CAREFUL = "careful"  # ours: GeN x cosine that walks a third of the way, its bootstrap undone
EVERYWHERE = ("constant", "cosine", METHOD, "schedulefree", "prodigy-cosine")
MORE = ("gen", CAREFUL)  # not on reviews: a run there costs the most
NAMES = {
    "constant": "constant",
    "cosine": "cosine",
    "linear": "linear",
    "gen": "GeN, no decay",
    METHOD: "GeN x cosine",
    CAREFUL: "GeN x cosine / 3, bootstrap undone",
    "schedulefree": "schedule-free",
    "prodigy": "Prodigy",
    "prodigy-cosine": "Prodigy x cosine",
}


@dataclass(frozen=True)
class Case:
    task: str
    optimizer: str
    steps: int
    methods: tuple[str, ...]
    search: tuple[float, ...]  # decades in which the tuned rate is looked for

    def setting(self, method: str, rate: float, seed: int) -> dict[str, Any]:
        careful = {"peak": 1 / 3, "rewind": True} if method == CAREFUL else {}
        return {
            "task": self.task, "method": METHOD if careful else method, "seed": seed,
            "optimizer": self.optimizer, "rate": rate, "steps": self.steps,
        } | careful  # fmt: skip


CASES = (
    Case("images", "sgd", 800, (*EVERYWHERE, *MORE, "prodigy"), (1e-3, 1e-2, 1e-1, 1.0)),
    Case("text", "adamw", 400, (*EVERYWHERE, *MORE), (1e-4, 1e-3, 1e-2, 1e-1)),
    Case("reviews", "adamw", 40, EVERYWHERE, (1e-4, 1e-3, 1e-2, 1e-1)),
)


def tuned(runs: Pool, cases: Sequence[Case] = CASES) -> tuple[dict[str, tuple[str, float]], float]:
    """task -> (schedule, rate) that is best on the tuning seed, and the seconds of the search: all
    schedules on decades, then on half decades around each one's best."""
    grids = {(c.task, s): list(c.search) for c in cases for s in SCHEDULES}
    found: dict[tuple[str, str, float], float] = {}
    seconds = 0.0
    for _ in range(2):
        asked = [
            (c, s, rate)
            for c in cases
            for s in SCHEDULES
            for rate in grids[c.task, s]
            if (c.task, s, rate) not in found
        ]
        told = runs.each(trials.train, [c.setting(s, r, TUNING_SEED) for c, s, r in asked])
        for (c, s, rate), one in zip(asked, told, strict=True):
            found[c.task, s, rate] = float("inf") if one["loss"] is None else one["loss"]
            seconds += one["seconds"]
        for (task, s), grid in grids.items():
            best = min(grid, key=lambda rate: found[task, s, rate])
            grids[task, s] = [_round(best / 10**0.5), best, _round(best * 10**0.5)]
    best = {}
    for c in cases:
        of_task = {key: loss for key, loss in found.items() if key[0] == c.task}
        _, s, rate = min(of_task, key=lambda key: of_task[key])
        best[c.task] = (s, rate)
    return best, seconds


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")


def verdict(counts: dict[str, int]) -> str:
    """counts: task -> starts of seven within the margin."""
    enough = [count >= ENOUGH for count in counts.values()]
    return "holds" if all(enough) else "partly" if any(enough) else "fails"


def run(runs: Pool) -> dict[str, Any]:
    best, cost = tuned(runs)
    asked = [
        (c, method, start, seed)
        for c in CASES
        for method in c.methods
        for start in STARTS
        for seed in SEEDS
    ]
    bars = [(c, best[c.task], seed) for c in CASES for seed in SEEDS]
    told = runs.each(
        trials.train,
        [c.setting(method, start, seed) for c, method, start, seed in asked]
        + [c.setting(schedule, rate, seed) for c, (schedule, rate), seed in bars],
    )
    cells: dict[tuple[str, str, float], Group] = {}
    for (c, method, start, _), one in zip(asked, told, strict=False):
        cells.setdefault((c.task, method, start), Group()).add(one)
    bar: dict[str, Group] = {}
    for (c, _, _), one in zip(bars, told[len(asked) :], strict=True):
        bar.setdefault(c.task, Group()).add(one)
    counts = {
        (c.task, method): sum(
            worse_by(cells[c.task, method, start], bar[c.task]) <= MARGIN for start in STARTS
        )
        for c in CASES
        for method in c.methods
    }
    unique = {repr(c.setting(m, r, s)): one for (c, m, r, s), one in zip(asked, told, strict=False)}
    numbers = {}
    for c in CASES:
        schedule, rate = best[c.task]
        numbers[f"{c.task}: best tuned schedule, {schedule} at {rate:g}"] = shown(bar[c.task])
        for method in c.methods:
            numbers[f"{c.task}: starts of 7 within 2 %, {NAMES[method]}"] = str(
                counts[c.task, method]
            )
    return {
        "paper": "arXiv 2407.02772",
        "claim": "from any first rate between 1e-6 and 1, GeN ends within 2 % of the best tuned "
        "schedule's loss",
        "topic": TOPIC,
        "published": "ResNet50, SGD, CIFAR-10: 96.76 against 95.91 of the best schedule; ViT, "
        "AdamW, CIFAR-100: 92.62 against cosine's 92.71; no table over first rates",
        "setting": _told(),
        "numbers": numbers,
        "baselines": [NAMES[m] for m in (*EVERYWHERE, "prodigy") if m != METHOD],
        "seeds": list(SEEDS),
        "verdict": verdict({c.task: counts[c.task, METHOD] for c in CASES}),
        "cost_s": round(cost + sum(one["seconds"] for one in unique.values())),
        "sheets": [*(_sheet(c, cells, bar[c.task]) for c in CASES), _costs(cells, counts)],
        "panels": [_panel(c, cells, bar[c.task]) for c in CASES],
    }


def _sheet(c: Case, cells: dict[tuple[str, str, float], Group], bar: Group) -> dict[str, Any]:
    return {
        "title": f"{c.task}: test loss by first rate",
        "columns": ["first rate", *(NAMES[m] for m in c.methods)],
        "rows": [
            *([f"{r:g}", *(shown(cells[c.task, m, r]) for m in c.methods)] for r in STARTS),
            ["tuned schedule", shown(bar), *([None] * (len(c.methods) - 1))],
        ],
        "note": "mean ± standard deviation of three seeds; a run that diverged has no loss",
    }


def _costs(
    cells: dict[tuple[str, str, float], Group], counts: dict[tuple[str, str], int]
) -> dict[str, Any]:
    rows = []
    for c in CASES:
        by = {m: [cells[c.task, m, r] for r in STARTS] for m in c.methods}
        base = sum(one.seconds for one in by["constant"] if not one.diverged)
        base /= max(1, sum(not one.diverged for one in by["constant"]))
        for m in c.methods:
            whole = [one for one in by[m] if not one.diverged]
            seconds = sum(one.seconds for one in whole) / max(1, len(whole))
            fits, rejected = (
                sum(one.total(name) for one in by[m]) for name in ("fits", "rejected")
            )
            accuracy = [one.accuracy for one in by[m] if one.accuracy is not None]
            rows.append(
                [
                    c.task, NAMES[m], counts[c.task, m], sum(one.diverged for one in by[m]),
                    seconds / base if base else None, rejected / fits if fits else None,
                    100 * max(accuracy) if accuracy else None,
                    100 * min(accuracy) if accuracy else None,
                ]
            )  # fmt: skip
    return {
        "title": "What it costs",
        "columns": [
            "task", "method", "starts within 2 %", "starts that diverged",
            "wall-clock / constant", "fits rejected", "best accuracy, %", "worst accuracy, %",
        ],
        "rows": rows,
        "note": "accuracies are means of three seeds at the best and the worst start",
    }  # fmt: skip


def _panel(c: Case, cells: dict[tuple[str, str, float], Group], bar: Group) -> dict[str, Any]:
    named = [
        (NAMES[m], "method" if "GeN" in NAMES[m] else "baseline",
         [cells[c.task, m, r] for r in STARTS])
        for m in c.methods
    ]  # fmt: skip
    named.append(("tuned schedule", "reference", [bar] * len(STARTS)))
    return {
        "title": c.task, "x": "first learning rate", "y": "test loss", "log_x": True,
        "log_y": False, "lines": lines(STARTS, named),
    }  # fmt: skip


def _told() -> str:
    runs = "; ".join(
        f"{c.task}: {'SGD, momentum 0.9' if c.optimizer == 'sgd' else 'AdamW'}, {c.steps} steps"
        for c in CASES
    )
    return (
        f"{runs}. images: Fashion-MNIST, CNN, batch 64; text: byte GPT of 2 layers, State of the "
        "Union, batch 16 x 64; reviews: MiniLM, LoRA, Rotten Tomatoes, batch 16 x 32. Final test "
        "loss. Cosine and linear, of the schedules and of GeN (its decay factor), have 10 % "
        "warm-up, and so has schedule-free. GeN: every 8 steps, a fit at each of the first 20, "
        "probes on batches of their own. Prodigy: lr 1, d0 = the start (an Adam, on images too). "
        "Bootstrap undone: parameters and optimizer go back to the start after the first 20 "
        "fits, with the rate that was found; that and the third were chosen on seed 0. "
        "The tuned schedule: constant, cosine, linear on four decades, then half decades around "
        "each one's best, on a fourth seed's test loss, which favours it; 18 runs"
    )
