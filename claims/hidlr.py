"""Claim: Hi-DLR repairs the learning rate of a group that was set wrongly by a factor of 100.

Xu, Bu, Zhang, Barnett 2025 (arXiv 2501.06954). Compared with GeN, which keeps ratios, with a tuned
common rate under the wrong ratio, and with a grid over the ratio of that group at equal forward
passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from steelyard.runs.pool import Pool
from steelyard.trials import groups as trials
from steelyard.trials.spread import Group, lines, shown, worse_by

TOPIC = "steps"
SEEDS = (0, 1, 2)
TUNING_SEED = 100
MARGIN, WITHIN = 0.02, 3.0  # of the loss; of the rates found from the right start
RATIOS = (1e-2, 1e-1, 1.0, 1e1, 1e2)
REFERENCE, WRONG, GEN, HIDLR, GRID = (
    "right ratio, tuned rate", "wrong ratio, tuned rate", "GeN", "Hi-DLR", "grid over the ratio",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One group whose rate is `scale` times what it should be."""

    task: str
    group: str
    scale: float

    @property
    def name(self) -> str:
        return f"{self.task}, {self.group} x {self.scale:g}"


@dataclass(frozen=True)
class Training:
    optimizer: str
    steps: int
    rates: tuple[float, ...]


TRAININGS = {
    "images": Training("sgd", 600, (0.01, 0.03, 0.1, 0.3)),
    "text": Training("adamw", 400, (1e-3, 3e-3, 1e-2, 3e-2)),
}
CASES = (
    Case("images", "other", 0.01),
    Case("images", "head", 100.0),
    Case("text", "mlp", 0.01),
    Case("text", "embedding", 100.0),
)


def setting(task: str, method: str, rate: float, seed: int, **changes: Any) -> dict[str, Any]:
    one = TRAININGS[task]
    return {
        "task": task, "method": method, "optimizer": one.optimizer, "rate": rate, "seed": seed,
        "steps": one.steps,
    } | changes  # fmt: skip


def run(runs: Pool) -> dict[str, Any]:
    measured = Measured(runs)
    right = {task: measured.tuned(task) for task in TRAININGS}  # the rate of the right ratio
    wrong = {case: measured.tuned(case.task, group=case.group, scale=case.scale) for case in CASES}
    arms: dict[tuple[Any, str], list[dict[str, Any]]] = {}
    for task, rate in right.items():
        arms[task, REFERENCE] = [setting(task, "fixed", rate, s) for s in SEEDS]
        arms[task, HIDLR] = [setting(task, "hidlr", rate, s) for s in SEEDS]
    for case in CASES:
        off = {"group": case.group, "scale": case.scale}
        arms[case, WRONG] = [setting(case.task, "fixed", wrong[case], s, **off) for s in SEEDS]
        for name, method in ((GEN, "gen"), (HIDLR, "hidlr")):
            arms[case, name] = [
                setting(case.task, method, right[case.task], s, **off) for s in SEEDS
            ]
    found = measured(arms)
    for case in CASES:
        found[case, GRID] = measured.grid(case, right[case.task], found[case, HIDLR])
    repaired = {case: judge(case, found) for case in CASES}
    return {
        "paper": "arXiv 2501.06954",
        "claim": "a group's rate that is 100 times too small or too large is repaired: the loss is "
        "within 2 % of the right start's, the rates within 3 times those found from it",
        "topic": TOPIC,
        "published": "Hi-DLR best on 4 of 5 vision sets and 4 of 5 GLUE tasks, single seeds; no "
        "table of wrong starts, no comparison at equal forward passes",
        "setting": _told(right),
        "numbers": {
            text: value for case in CASES for text, value in repaired[case].told(case).items()
        },
        "baselines": [REFERENCE, WRONG, GEN, GRID],
        "seeds": list(SEEDS),
        "verdict": verdict(list(repaired.values())),
        "cost_s": round(measured.seconds),
        "sheets": [_losses(found), _rates(found)],
        "panels": [_panel(found)],
    }


@dataclass(frozen=True)
class Repair:
    """loss: relative to the reference's, minus 1. farthest: the largest factor between a group's
    rate and the one found from the right start."""

    loss: float
    farthest: float

    @property
    def done(self) -> bool:
        return self.loss <= MARGIN and self.farthest <= WITHIN

    def told(self, case: Case) -> dict[str, str]:
        return {
            f"{case.name}: Hi-DLR's loss against the reference": f"{100 * self.loss:+.1f} %",
            f"{case.name}: rates within a factor of": f"{self.farthest:.2g}",
        }


def judge(case: Case, found: dict[tuple[Any, str], Group]) -> Repair:
    """Was it repaired?"""
    mine, right = (mean_rates(found[of, HIDLR]) for of in (case, case.task))
    apart = [abs(math.log(mine[name] / right[name])) for name in right] if mine else [math.inf]
    return Repair(
        loss=worse_by(found[case, HIDLR], found[case.task, REFERENCE]),
        farthest=math.exp(max(apart)),
    )


def verdict(repairs: list[Repair]) -> str:
    done = [one.done for one in repairs]
    return "holds" if all(done) else "partly" if any(done) else "fails"


def mean_rates(group: Group) -> dict[str, float]:
    """Geometric means over the seeds; empty where one has none."""
    names = list(group.trials[0]["rates"])
    if not all(one["rates"] for one in group.trials):
        return {}
    logs = {n: [math.log(one["rates"][n]) for one in group.trials] for n in names}
    return {n: math.exp(sum(values) / len(values)) for n, values in logs.items()}


class Measured:
    """Runs trials; counts the seconds of each once."""

    def __init__(self, runs: Pool) -> None:
        self._runs = runs
        self._known: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return sum(self._known.values())

    def all(self, settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        told = self._runs.each(trials.train, settings)
        self._known |= {repr(s): one["seconds"] for s, one in zip(settings, told, strict=True)}
        return told

    def __call__(
        self, arms: dict[tuple[Any, str], list[dict[str, Any]]]
    ) -> dict[tuple[Any, str], Group]:
        told = iter(self.all([one for settings in arms.values() for one in settings]))
        return {key: Group([next(told) for _ in settings]) for key, settings in arms.items()}

    def tuned(self, task: str, **off: Any) -> float:
        """The best common rate on the tuning seed; where the grid ends, it goes on."""
        grid = list(TRAININGS[task].rates)
        losses: dict[float, float] = {}
        best = grid[0]
        for _ in range(3):
            new = [rate for rate in grid if rate not in losses]
            told = self.all([setting(task, "fixed", rate, TUNING_SEED, **off) for rate in new])
            for rate, one in zip(new, told, strict=True):
                losses[rate] = math.inf if one["loss"] is None else one["loss"]
            best = min(losses, key=lambda rate: losses[rate])
            if min(losses) < best < max(losses):
                break
            grid = [best / 10, best / 10**0.5, best * 10**0.5, best * 10]
            grid = [float(f"{rate:.3g}") for rate in grid]
            low, high = min(losses), max(losses)
            grid = [rate for rate in grid if not low <= rate <= high]
        return best

    def grid(self, case: Case, rate: float, hidlr: Group) -> Group:
        """Half of Hi-DLR's passes search the ratio in five runs, half train with the best one. The
        ratio is of that group's rate to the others', 1 the right one."""
        half = hidlr.total("passes") / len(SEEDS) / 2 / (1 + trials.BACKWARD)
        search, last = max(1, int(half / len(RATIOS))), max(1, int(half))
        off = [{"group": case.group, "scale": ratio} for ratio in RATIOS]
        told = self.all(
            [
                setting(case.task, "fixed", rate, s, **one, steps=search)
                for s in SEEDS
                for one in off
            ]
        )
        best = []
        for k, _ in enumerate(SEEDS):
            losses = [one["loss"] for one in told[k * len(off) : (k + 1) * len(off)]]
            best.append(
                min(range(len(off)), key=lambda i: math.inf if losses[i] is None else losses[i])
            )
        return Group(
            self.all(
                [
                    setting(case.task, "fixed", rate, s, **off[i], steps=last)
                    for s, i in zip(SEEDS, best, strict=True)
                ]
            )
        )


def _losses(found: dict[tuple[Any, str], Group]) -> dict[str, Any]:
    arms = (WRONG, GEN, GRID, HIDLR)
    return {
        "title": "Test loss after a wrong start",
        "columns": ["what is wrong", REFERENCE, "Hi-DLR, right start", *arms],
        "rows": [
            [
                case.name, shown(found[case.task, REFERENCE]), shown(found[case.task, HIDLR]),
                *(shown(found[case, arm]) for arm in arms),
            ]
            for case in CASES
        ],
        "note": "mean ± standard deviation of three seeds; the grid has Hi-DLR's forward passes, a "
        "backward pass counted as two",
    }  # fmt: skip


def _rates(found: dict[tuple[Any, str], Group]) -> dict[str, Any]:
    rows = []
    for case in CASES:
        mine, right = (mean_rates(found[of, HIDLR]) for of in (case, case.task))
        rows += [[case.name, name, right.get(name), mine.get(name)] for name in right]
    return {
        "title": "Rates that Hi-DLR ends with",
        "columns": ["what was wrong", "group", "from the right start", "from the wrong one"],
        "rows": rows,
        "note": "geometric means over the last quarter of the steps and three seeds, without the "
        "decay factor",
    }


def _panel(found: dict[tuple[Any, str], Group]) -> dict[str, Any]:
    relative = {
        arm: [
            Group(
                [
                    {"loss": None if one["loss"] is None else one["loss"] / right}
                    for one in found[case, arm].trials
                ]
            )
            for case in CASES
            for right in [found[case.task, REFERENCE].mean]
        ]
        for arm in (WRONG, GEN, GRID, HIDLR)
    }
    named = [
        (arm, "method" if arm == HIDLR else "baseline", groups) for arm, groups in relative.items()
    ]
    return {
        "title": "Wrong starts: " + "; ".join(f"{k + 1} {c.name}" for k, c in enumerate(CASES)),
        "x": "wrong start", "y": "test loss / right ratio's", "log_x": False, "log_y": True,
        "lines": lines(range(1, len(CASES) + 1), named),
    }  # fmt: skip


def _told(right: dict[str, float]) -> str:
    told = "; ".join(
        f"{task}: {one.optimizer}, {one.steps} steps, tuned common rate {right[task]:g}"
        for task, one in TRAININGS.items()
    )
    return (
        f"{told}. images: Fashion-MNIST, CNN, batch 64, groups head, small (biases), other; text: "
        "byte GPT, batch 16 x 64, groups embedding, head, attention, mlp, small (biases, norms). "
        "All rates, found ones too, times a cosine behind 10 % warm-up. Rates tuned on a fourth "
        "seed's test loss. The grid: half of Hi-DLR's passes in five short runs over ratios 0.01 "
        "to 100 around the right one, half for a run with the best"
    )
