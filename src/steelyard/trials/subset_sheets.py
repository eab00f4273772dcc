"""Scores of chosen subsets as sheets and panels of a claim, and the transfer to a larger model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.trials.subset_scores import Fact, Probes, Truth, choice, mean, shown, tau


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """taus: of the groups' densities at both widths, by seed. moved, own: regrets at the larger
    width of the choices made at the smaller and at the larger, over budgets and seeds."""

    taus: list[float]
    moved: list[float]
    own: list[float]
    sheet: dict[str, Any]


def transfer(
    truth: Truth, probes: Probes, task: str, budgets: Sequence[float], seeds: Sequence[int]
) -> Transfer:
    """kinds of the probes: "start" and "moved" at the smaller width, "large" at the larger."""
    regrets: dict[str, list[float]] = {"moved": [], "large": []}
    rows: list[list[Any]] = []
    for budget in budgets:
        best = truth.best(budget)
        cells: list[Any] = []
        for kind, said in regrets.items():
            chosen = [probes[task, kind, s]["choices"]["additive"][str(budget)] for s in seeds]
            drops = [truth.drop(name, at) for at, name in enumerate(chosen)]
            here = [truth.regret(drop, budget, at) for at, drop in enumerate(drops)]
            said.extend(here)
            cells += [_distinct(chosen), shown(drops, 3), _percent(here)]
        rows.append([f"{budget:.0%}", *cells, best, shown(truth.all(best), 3)])
    taus = []
    for seed in seeds:
        small, large = (probes[task, kind, seed] for kind in ("start", "large"))
        x, y = (
            [one["gains"][n] / one["sizes"][n] for n in small["sizes"]] for one in (small, large)
        )
        taus.append(tau(x, y))
    sheet = {
        "title": f"A larger model's parameters, chosen on the smaller: {task}",
        "columns": ["budget", "chosen on the smaller", "drop", "regret", "chosen on itself",
                    "its drop", "its regret", "best of those trained", "its drop"],
        "rows": rows,
        "note": f"Trained on the larger model: {len(truth.drops)} subsets: single groups, all "
        "choices, six random ones and all groups.",
    }  # fmt: skip
    return Transfer(taus=taus, moved=regrets["moved"], own=regrets["large"], sheet=sheet)


def _percent(values: Iterable[float]) -> str:
    return f"{mean(values):.1%}"


def _distinct(names: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(name or "none" for name in names))


def budget_sheet(
    truths: Mapping[str, Truth], probes: Probes, found: Mapping[str, Mapping[str, Fact]],
    budgets: Sequence[float], seeds: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    rows: list[list[Any]] = []
    for task, truth in truths.items():
        for budget in budgets:
            chosen = [choice(probes, task, "additive", budget, seed) for seed in seeds]
            drops = [truth.drop(name, at) for at, name in enumerate(chosen)]
            best = truth.best(budget)
            regrets = [
                _percent(found[task][rule].regrets[budget, seed] for seed in seeds)
                for rule in ("additive", "random", "most parameters")
            ]
            rows.append(
                [task, f"{budget:.0%}", _distinct(chosen), shown(drops, 3), best,
                 shown(truth.all(best), 3), len(truth.within(budget)), *regrets]
            )  # fmt: skip
    return {
        "title": "The choice at every budget, against all subsets trained for real",
        "columns": ["task", "budget", "chosen", "drop", "best subset", "its drop",
                    "subsets within", "regret", "regret, random", "regret, most parameters"],
        "rows": rows,
        "note": "Random: the mean of all subsets to which nothing can be added. Drops: mean ± "
        "standard deviation over seeds, each with a pretrained model of its own. The best is "
        "picked by the same test losses, so regrets are slightly too high.",
    }  # fmt: skip


def rule_sheet(found: Mapping[str, Mapping[str, Fact]]) -> dict[str, Any]:
    rows: list[list[Any]] = []
    for task, rules in found.items():
        for rule, fact in rules.items():
            seeds = dict.fromkeys(seed for _, seed in fact.regrets)
            by_seed = [100 * mean(r for (_, s), r in fact.regrets.items() if s == seed)
                       for seed in seeds]  # fmt: skip
            rows.append([task, rule, shown(by_seed, 1), shown(fact.taus, 2) if fact.taus else None])
    return {
        "title": "Rules of choice: regret and rank correlation with the realised drop",
        "columns": ["task", "rule", "regret, % of the best drop", "Kendall tau"],
        "rows": rows,
        "note": "tau over the 63 subsets; coupled: over those it could predict. Subsets contain "
        "one another, so the number of parameters alone has a tau too: the one to beat. "
        "coupled, slope, fisher: the full curvature, the first order, squared gradients.",
    }


def share_sheet(
    truths: Mapping[str, Truth], probes: Probes, fixed: Mapping[str, str], ranks: Sequence[int],
    seeds: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    rows: list[list[Any]] = []
    for task, truth in truths.items():
        arms = [(name, (group, 0)) for name, group in fixed.items()]
        arms += [(f"LoRA, rank {rank}", ("", rank)) for rank in ranks]
        for name, arm in arms:
            share = truth.share(arm)
            chosen = [choice(probes, task, "additive", share, seed) for seed in seeds]
            drops = [truth.drop(one, at) for at, one in enumerate(chosen)]
            best = truth.best(share)
            rows.append(
                [task, name, f"{share:.2%}", shown(truth.drops[arm], 3), _distinct(chosen),
                 shown(drops, 3), best, shown(truth.all(best), 3)]
            )  # fmt: skip
    return {
        "title": "Fixed choices and LoRA, each against the choice at its own share",
        "columns": ["task", "baseline", "share", "its drop", "chosen", "drop", "best subset",
                    "its drop"],
        "rows": rows,
        "note": "LoRA: on every linear layer of the blocks, alpha twice the rank, alone; the same "
        "grid of rates for all.",
    }  # fmt: skip


def panel(
    task: str, truth: Truth, probes: Probes, budgets: Sequence[float], fixed: Mapping[str, str],
    ranks: Sequence[int], seeds: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    def line(name: str, role: str, points: Sequence[tuple[float, Sequence[float]]]) -> Any:
        return {
            "name": name,
            "role": role,
            "x": [100 * x for x, _ in points],
            "y": [mean(values) for _, values in points],
            "low": [min(values) for _, values in points],
            "high": [max(values) for _, values in points],
        }

    chosen = [
        (b, [truth.drop(choice(probes, task, "additive", b, s), at) for at, s in enumerate(seeds)])
        for b in budgets
    ]
    chance = [
        (b, [mean(truth.drop(n, at) for n in truth.full(b)) for at in range(len(seeds))])
        for b in budgets
    ]
    lines = [
        line("best of all subsets", "reference", [(b, truth.all(truth.best(b))) for b in budgets]),
        line("AdaPEFT", "method", chosen),
        line("random subsets", "baseline", chance),
        line("LoRA", "baseline", [(truth.share(("", r)), truth.drops["", r]) for r in ranks]),
    ]
    for name, group in fixed.items():
        lines.append(line(name, "baseline", [(truth.share((group, 0)), truth.all(group))]))
    return {"title": f"Which parameters to train: {task}", "x": "parameters trained, %",
            "y": "fall of the held-out loss", "log_x": True, "log_y": False,
            "lines": lines}  # fmt: skip
