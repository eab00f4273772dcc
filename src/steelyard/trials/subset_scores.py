"""What trained subsets say of choices: regret and Kendall's tau. Plain numbers.

regret = (drop of the best subset within the budget - drop of the choice) / drop of the best, with
the best by the mean over seeds, so that no seed's luck is its own yardstick.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Arm = tuple[str, int]  # groups, or "" and the rank of a LoRA
Probes = Mapping[tuple[str, str, int], Mapping[str, Any]]  # (task, kind, seed)
START, ALONG = "start", "additive, along a run"
OTHERS = ("coupled", ALONG, "slope", "fisher", "most parameters", "random")
SLACK = 1e-9  # shares are rounded


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def shown(values: Sequence[float], digits: int) -> str:
    """mean ± standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.{digits}f} ± {spread:.{digits}f}"


def drop_of(result: Mapping[str, Any]) -> float:
    """0 for a run that diverged: the pretrained model is kept."""
    return 0.0 if result["drop"] is None else float(result["drop"])


@dataclass
class Truth:
    """Drops of every trained arm, one for each seed."""

    drops: dict[Arm, list[float]] = field(default_factory=dict)
    shares: dict[Arm, float] = field(default_factory=dict)
    rates: dict[Arm, float] = field(default_factory=dict)

    def add(self, arm: Arm, rate: float, result: Mapping[str, Any]) -> None:
        self.drops.setdefault(arm, []).append(drop_of(result))
        self.shares[arm], self.rates[arm] = float(result["share"]), rate

    def share(self, arm: Arm) -> float:
        return self.shares[arm]

    def drop(self, name: str, at: int) -> float:
        """Of this subset, at this seed; 0 for none."""
        return self.drops[name, 0][at] if name else 0.0

    def all(self, name: str) -> list[float]:
        seeds = range(len(next(iter(self.drops.values()))))
        return [self.drop(name, at) for at in seeds]

    def within(self, budget: float) -> list[str]:
        return [n for (n, rank), s in self.shares.items() if not rank and s <= budget + SLACK]

    def full(self, budget: float) -> list[str]:
        """Those within the budget to which nothing can be added."""
        feasible = [set(name.split("+")) for name in self.within(budget)]
        return [n for n in self.within(budget) if not any(set(n.split("+")) < f for f in feasible)]

    def best(self, budget: float) -> str:
        return max(self.within(budget), key=lambda name: mean(self.drops[name, 0]))

    def largest(self, budget: float) -> str:
        return max(self.within(budget), key=lambda name: self.shares[name, 0])

    def regret(self, drop: float, budget: float, at: int) -> float:
        best = self.drop(self.best(budget), at)
        return (best - drop) / best


@dataclass
class Fact:
    """Of one rule on one task: (budget, seed) -> regret; tau of each seed."""

    regrets: dict[tuple[float, int], float] = field(default_factory=dict)
    taus: list[float] = field(default_factory=list)


def tau(x: Sequence[float], y: Sequence[float]) -> float:
    from scipy.stats import kendalltau

    found: Any = kendalltau(x, y)
    return float(found.statistic)


def choice(probes: Probes, task: str, rule: str, budget: float, seed: int) -> str:
    kind, rule = (ALONG, "additive") if rule == ALONG else (START, rule)
    return probes[task, kind, seed]["choices"][rule][str(budget)]


def facts(
    truths: Mapping[str, Truth], probes: Probes, budgets: Sequence[float], seeds: Sequence[int]
) -> dict[str, dict[str, Fact]]:
    found: dict[str, dict[str, Fact]] = {}
    for task, truth in truths.items():
        here = found[task] = {rule: Fact() for rule in ("additive", *OTHERS)}
        names = [name for name, rank in truth.drops if not rank]
        for at, seed in enumerate(seeds):
            realised = {name: truth.drop(name, at) for name in names}
            for budget in budgets:
                for rule, fact in here.items():
                    if rule == "random":
                        drop = mean(realised[name] for name in truth.full(budget))
                    elif rule == "most parameters":
                        drop = realised[truth.largest(budget)]
                    else:
                        drop = truth.drop(choice(probes, task, rule, budget, seed), at)
                    fact.regrets[budget, seed] = truth.regret(drop, budget, at)
            shares = [truth.share((name, 0)) for name in names]
            here["most parameters"].taus.append(tau(shares, list(realised.values())))
            for rule in ("additive", *OTHERS[:4]):
                kind, said = (ALONG, "additive") if rule == ALONG else (START, rule)
                predicted = probes[task, kind, seed]["predictions"][said]
                pairs = [(predicted[n], realised[n]) for n in names if predicted[n] is not None]
                here[rule].taus.append(tau([p for p, _ in pairs], [r for _, r in pairs]))
    return found


def by_task(found: Mapping[str, Mapping[str, Fact]], rule: str) -> str:
    return "; ".join(f"{t} {mean(f[rule].regrets.values()):.1%}" for t, f in found.items())


def ends(truths: Iterable[Truth], rates: Sequence[float]) -> str:
    """How many arms had their best rate at an end of the grid."""
    best = [rate for truth in truths for rate in truth.rates.values()]
    low, high = best.count(rates[0]), best.count(rates[-1])
    return f"{low} of {len(best)} at the lowest, {high} at the highest"
