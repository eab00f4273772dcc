"""Claim: a one-step measurement tells which groups of parameters to train under a budget: AdaPEFT.

Xu and Bu 2025 (arXiv 2505.12579). Here against the truth: every subset of six groups is trained.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from steelyard.runs.pool import Pool
from steelyard.trials import subset_scores as scores
from steelyard.trials import subset_sheets as sheets
from steelyard.trials.subset_choices import probe
from steelyard.trials.subset_scores import ALONG, START, Arm, Truth, choice, mean, shown
from steelyard.trials.subsets import GROUPS, TASKS, adapt, key, subsets

TOPIC = "steps"
SEEDS = (0, 1, 2)
RATES = (5e-4, 2e-3, 8e-3, 3.2e-2, 0.128)  # the same grid for all, on validation samples of seed 0
BUDGETS = (0.01, 0.05, 0.2, 0.3, 0.5, 0.8)
FIXED = {"BitFit": "bias", "norm only": "norm", "head only": "head"}
RANKS = (1, 2, 4, 8, 16)
SMALL, LARGE, LARGER_TASK = 64, 192, "text"
STEPS, PRETRAINING, FITS, EVERY, PROBE_RATE = 60, 400, 10, 4, 1e-3
REGRET, TAU = 0.05, 0.6


def run(runs: Pool) -> dict[str, Any]:
    arms = [(task, SMALL, arm) for task in TASKS for arm in _arms(subsets())]
    truth, seconds = _train(runs, arms)
    small = {task: truth[task, SMALL] for task in TASKS}
    probes = _probes(runs, small)
    large, more = _large(runs, probes)
    seconds += more + sum(one["seconds"] for one in probes.values())
    facts = scores.facts(small, probes, BUDGETS, SEEDS)
    found = {task: facts[task]["additive"] for task in TASKS}
    regret = mean(r for one in found.values() for r in one.regrets.values())
    tau = mean(t for one in found.values() for t in one.taus)
    chance = mean(r for t in TASKS for r in facts[t]["random"].regrets.values())
    ahead = [_ahead_of_bitfit(small[task], probes, task) for task in TASKS]
    numbers = {
        "top-1 regret, mean over budgets, tasks and seeds": f"{regret:.1%} (asked: 5%)",
        "Kendall tau of predicted and realised, 63 subsets": f"{tau:.2f} (asked: 0.6)",
        "regret of random subsets of the same budget": f"{chance:.1%}",
        "drop minus BitFit's at BitFit's share": "; ".join(
            f"{task} {shown(d, 3)}" for task, d in zip(TASKS, ahead, strict=True)
        ),
    }
    numbers |= {f"regret by {name}": scores.by_task(facts, name) for name in scores.OTHERS}
    transferred = sheets.transfer(large, probes, LARGER_TASK, BUDGETS, SEEDS)
    numbers["Kendall tau of the groups' densities, width 64 and 192"] = shown(transferred.taus, 2)
    numbers["regret at width 192, chosen at width 64 / at 192"] = (
        f"{mean(transferred.moved):.1%} / {mean(transferred.own):.1%}"
    )
    numbers["best rate at an end of its grid"] = scores.ends([*small.values(), large], RATES)
    return {
        "paper": "arXiv 2505.12579",
        "claim": "groups chosen by b^2 / 2a per parameter are the right ones to train, and the "
        "choice made on a small model holds for one several times larger",
        "topic": TOPIC,
        "published": "less than 0.5% of the parameters, within about 1% of training all; the "
        "ranking holds for models up to 50 times larger (reviews: not above LoRA)",
        "setting": f"transformers of two layers, width {SMALL}, Adam {PRETRAINING} steps, then "
        f"{STEPS} steps of Adam with a falling rate on a new task. text: GPT on bytes of State of "
        "the Union addresses, then film reviews. images: ViT on Fashion-MNIST, then upside down, "
        f"or black for white. All 63 subsets of {', '.join(GROUPS)}; the best of {len(RATES)} "
        "rates on validation samples. Drop: held-out loss before minus after",
        "numbers": numbers,
        "baselines": ["random subsets", *FIXED, "LoRA", "most parameters", "slope", "fisher"],
        "seeds": list(SEEDS),
        "verdict": verdict(
            regret=regret, tau=tau, random=chance, ahead=[mean(d) for d in ahead]
        ),
        "cost_s": round(seconds, 1),
        "sheets": [
            sheets.budget_sheet(small, probes, facts, BUDGETS, SEEDS),
            sheets.rule_sheet(facts),
            sheets.share_sheet(small, probes, FIXED, RANKS, SEEDS),
            transferred.sheet,
        ],
        "panels": [
            sheets.panel(task, small[task], probes, BUDGETS, FIXED, RANKS, SEEDS) for task in TASKS
        ],
    }  # fmt: skip


def verdict(*, regret: float, tau: float, random: float, ahead: Sequence[float]) -> str:
    """holds: a regret of at most 5% of the best drop, a tau of at least 0.6, less regret than
    random subsets, and no task behind BitFit at BitFit's share (where the choice may be BitFit);
    partly: at least two of these four."""
    met = [regret <= REGRET, tau >= TAU, regret < random, min(ahead) >= 0.0]
    return "holds" if all(met) else "partly" if sum(met) >= 2 else "fails"


def _arms(chosen: Iterable[str], ranks: Sequence[int] = RANKS) -> list[Arm]:
    return [*((name, 0) for name in chosen), *(("", rank) for rank in ranks)]


def _train(
    runs: Pool, arms: Sequence[tuple[str, int, Arm]]
) -> tuple[dict[tuple[str, int], Truth], float]:
    """(task, width, arm) each: its rate on validation samples, then three seeds on the test's."""

    def one(task: str, width: int, arm: Arm, rate: float, seed: int, part: str) -> dict[str, Any]:
        return {
            "task": task, "width": width, "groups": arm[0], "rank": arm[1], "rate": rate,
            "seed": seed, "part": part, "steps": STEPS, "pretraining": PRETRAINING,
        }  # fmt: skip

    searched = [(*arm, rate) for arm in arms for rate in RATES]
    search = runs.each(adapt, [one(*said, SEEDS[0], "validation") for said in searched])
    best: dict[tuple[str, int, Arm], tuple[float, float]] = {}
    for (task, width, arm, rate), result in zip(searched, search, strict=True):
        drop = scores.drop_of(result)
        if drop > best.get((task, width, arm), (-float("inf"), 0.0))[0]:
            best[task, width, arm] = (drop, rate)
    tested = [(*arm, seed) for seed in SEEDS for arm in arms]  # a seed's weights are made once
    test = runs.each(
        adapt, [one(t, w, arm, best[t, w, arm][1], seed, "test") for t, w, arm, seed in tested]
    )
    found = {(task, width): Truth() for task, width, _ in arms}
    for (task, width, arm, _), result in zip(tested, test, strict=True):
        found[task, width].add(arm, best[task, width, arm][1], result)
    return found, sum(one["seconds"] for one in (*search, *test))


def _probes(runs: Pool, small: dict[str, Truth]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(task, kind, seed) -> what `probe` says: "start", "along" a run, "large", "moved" to it."""
    places = {
        (task, kind, seed): (SMALL, every, None)
        for task in TASKS
        for kind, every in ((START, None), (ALONG, EVERY))
        for seed in SEEDS
    }
    places |= {(LARGER_TASK, "large", seed): (LARGE, None, None) for seed in SEEDS}
    places |= {(LARGER_TASK, "moved", seed): (SMALL, None, LARGE) for seed in SEEDS}
    settings = []
    for (task, _, seed), (width, every, to) in places.items():
        shares = [*BUDGETS, *(small[task].share(arm) for arm in _arms(FIXED.values()))]
        settings.append(
            {
                "task": task, "width": width, "seed": seed, "every": every, "to": to,
                "fits": FITS, "rate": PROBE_RATE, "pretraining": PRETRAINING,
                "budgets": shares if (width, to) == (SMALL, None) else list(BUDGETS),
            }
        )  # fmt: skip
    return dict(zip(places, runs.each(probe, settings), strict=True))


def _large(runs: Pool, probes: scores.Probes) -> tuple[Truth, float]:
    """Singles, the choices of both widths at every budget, and six random subsets, trained."""
    chosen = {
        name
        for kind in ("large", "moved")
        for seed in SEEDS
        for name in probes[LARGER_TASK, kind, seed]["choices"]["additive"].values()
    }
    wanted = {*GROUPS, *chosen} - {""}
    others = sorted(set(subsets()) - wanted)
    wanted |= set(random.Random(0).sample(others, min(6, len(others))))
    wanted.add(key(GROUPS))
    arms = [(LARGER_TASK, LARGE, arm) for arm in _arms(sorted(wanted), ())]
    truth, seconds = _train(runs, arms)
    return truth[LARGER_TASK, LARGE], seconds


def _ahead_of_bitfit(truth: Truth, probes: scores.Probes, task: str) -> list[float]:
    """Drop of the choice at BitFit's own share minus BitFit's, by seed."""
    bias = FIXED["BitFit"]
    budget = truth.share((bias, 0))
    return [
        truth.drop(choice(probes, task, "additive", budget, seed), at) - truth.drop(bias, at)
        for at, seed in enumerate(SEEDS)
    ]
