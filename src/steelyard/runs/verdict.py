"""Did the method beat the best honest baseline? Differences seed by seed, and what they prove.

    d_s = accuracy of the method - accuracy of the baseline, seed s = 1..k
    t   = mean(d) / (sd(d) / sqrt(k)),   p two-sided from Student's t with k - 1 degrees of freedom

Of several variants the method is the one that the SEARCH liked best (validation samples); of
several baselines the one that is best on the TEST set: the harder choice for the claim.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.runs.arms import Cell

LEVEL = 0.05  # of all comparisons of a claim together
BETTER, WORSE, NOISE = "better", "worse", "within noise"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Method minus baseline at one epsilon on one data set, in points of accuracy."""

    data: str
    epsilon: float | None
    method: str
    baseline: str
    difference: float
    error: float  # standard error of the difference
    p: float

    @property
    def title(self) -> str:
        budget = "no privacy" if self.epsilon is None else f"epsilon {self.epsilon:g}"
        return f"{self.data}, {budget}: {self.method} minus {self.baseline}"

    @property
    def told(self) -> str:
        shown = "below 0.001" if self.p < 0.001 else f"{self.p:.3f}"
        return f"{self.difference:+.2f} +- {self.error:.2f} points, p {shown}"


def paired(method: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """(mean difference, its standard error, two-sided p) of results that belong together.

    No spread at all: p is 0 for a difference and 1 for none. Raises ValueError for fewer than two
    pairs.
    """
    differences = [m - b for m, b in zip(method, baseline, strict=True)]
    if len(differences) < 2:
        raise ValueError(f"a comparison needs two pairs at least, found {len(differences)}")
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0.0:
        return mean, error, float(mean == 0.0)
    from scipy.stats import t

    return mean, error, float(2 * t.sf(abs(mean) / error, len(differences) - 1))


def compare(
    cells: Sequence[Cell], methods: Sequence[str], baselines: Sequence[str]
) -> list[Comparison]:
    """The best of the methods against the best of the baselines, at every data set and epsilon.

    An arm without privacy (epsilon None) counts at every epsilon. Raises ValueError for a name that
    is no arm's.
    """
    names = {cell.arm.name for cell in cells}
    if unknown := [name for name in (*methods, *baselines) if name not in names]:
        raise ValueError(f"no arm is called {unknown[0]!r}: there are {', '.join(sorted(names))}")
    found: list[Comparison] = []
    places = dict.fromkeys(
        (cell.data, cell.epsilon) for cell in cells if cell.arm.name in methods and cell.values
    )
    for data, epsilon in places:
        here = [c for c in cells if c.data == data and c.epsilon in (epsilon, None)]
        ours = [c for c in here if c.arm.name in methods]
        theirs = [c for c in here if c.arm.name in baselines]
        if not theirs:
            continue
        method = max(ours, key=lambda cell: cell.search[cell.rate])
        baseline = max(theirs, key=lambda cell: cell.mean)
        seeds = [seed for seed in method.values if seed in baseline.values]
        difference, error, p = paired(
            [method.values[seed] for seed in seeds], [baseline.values[seed] for seed in seeds]
        )
        found.append(
            Comparison(
                data=data, epsilon=epsilon, method=method.arm.name, baseline=baseline.arm.name,
                difference=difference, error=error, p=p,
            )
        )  # fmt: skip
    return found


def findings(comparisons: Sequence[Comparison]) -> list[str]:
    """Better, worse or within noise, for each: Holm's procedure keeps the chance of any false
    finding among them below LEVEL.

    The smallest p must be below LEVEL / k, the next one below LEVEL / (k - 1), and so on; at the
    first that is not, the rest is noise.
    """
    found = [NOISE] * len(comparisons)
    order = sorted(range(len(comparisons)), key=lambda at: comparisons[at].p)
    for rank, at in enumerate(order):
        if not comparisons[at].p < LEVEL / (len(comparisons) - rank):
            break
        found[at] = BETTER if comparisons[at].difference > 0 else WORSE
    return found


def verdict(comparisons: Sequence[Comparison]) -> str:
    """holds: better everywhere; partly: better somewhere; fails: worse somewhere, better nowhere;
    within noise: no difference was found. Raises ValueError without a comparison.
    """
    if not comparisons:
        raise ValueError("nothing was compared: a verdict needs a method and a baseline")
    found = set(findings(comparisons))
    if BETTER in found:
        return "holds" if found == {BETTER} else "partly"
    return "fails" if WORSE in found else "within noise"


def result(
    cells: Sequence[Cell], comparisons: Sequence[Comparison], also: Sequence[Comparison] = ()
) -> dict[str, Any]:
    """The measured fields of a claim's row, numbers to table; cost_s in seconds of one core.

    also: comparisons that are told but do not decide.
    """
    told = dict(zip(comparisons, findings(comparisons), strict=True))
    others = [one for one in dict.fromkeys(also) if one not in told]
    told |= dict(zip(others, findings(others), strict=True))
    numbers = {one.title: f"{one.told}: {finding}" for one, finding in told.items()}
    ends = [f"{c.arm.name} ({c.data}, epsilon {c.epsilon})" for c in cells if c.at_an_end]
    if ends:
        numbers["best rate at an end of its grid"] = "; ".join(ends)
    return {
        "numbers": numbers,
        "baselines": list(dict.fromkeys(c.arm.name for c in cells if c.arm.role == "baseline")),
        "seeds": sorted({seed for cell in cells for seed in cell.values}),
        "verdict": verdict(comparisons),
        "cost_s": round(sum(cell.seconds for cell in cells), 1),
        "comparisons": [
            dataclasses.asdict(one) | {"finding": finding, "decides": one in comparisons}
            for one, finding in told.items()
        ],
        "table": [cell.entry() for cell in cells],
    }
