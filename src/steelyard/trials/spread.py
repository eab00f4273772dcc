"""Results of equal runs but for the seed: mean, spread, and how much worse one group is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Group:
    """What trials of one setting returned, one for each seed. A loss of None has diverged."""

    trials: list[dict[str, Any]] = field(default_factory=list)

    def add(self, trial: dict[str, Any]) -> None:
        self.trials.append(trial)

    @property
    def losses(self) -> list[float]:
        return [math.inf if one["loss"] is None else one["loss"] for one in self.trials]

    @property
    def mean(self) -> float:
        """inf where one has diverged."""
        return math.inf if self.diverged else statistics.mean(self.losses)

    @property
    def diverged(self) -> bool:
        """Whether one has, or more."""
        return not all(map(math.isfinite, self.losses))

    @property
    def accuracy(self) -> float | None:
        """The mean; None where a run has none."""
        found = [one.get("accuracy") for one in self.trials]
        known = [one for one in found if one is not None]
        return statistics.mean(known) if known and len(known) == len(found) else None

    @property
    def seconds(self) -> float:
        return self.total("seconds")

    def total(self, name: str) -> float:
        return sum(one.get(name) or 0 for one in self.trials)


def worse_by(group: Group, reference: Group) -> float:
    """mean / reference's mean - 1: inf where a run has diverged."""
    return group.mean / reference.mean - 1 if math.isfinite(reference.mean) else -math.inf


def shown(group: Group, digits: int = 3) -> str:
    """Mean ± standard deviation over the seeds."""
    if group.diverged:
        count = sum(not math.isfinite(loss) for loss in group.losses)
        return f"diverged ({count} of {len(group.losses)})"
    spread = statistics.stdev(group.losses) if len(group.losses) > 1 else 0.0
    return f"{group.mean:.{digits}f} ± {spread:.{digits}f}"


def lines(x: Sequence[float], named: Sequence[tuple[str, str, Sequence[Group]]]) -> list[Any]:
    """Lines of a panel: (name, role, one group for each x). A diverged group breaks the line."""
    found = []
    for name, role, groups in named:
        fine = [not one.diverged for one in groups]
        found.append(
            {
                "name": name,
                "role": role,
                "x": list(x),
                "y": [one.mean if ok else None for one, ok in zip(groups, fine, strict=True)],
                "low": [
                    min(one.losses) if ok else None for one, ok in zip(groups, fine, strict=True)
                ],
                "high": [
                    max(one.losses) if ok else None for one, ok in zip(groups, fine, strict=True)
                ],
            }
        )
    return found
