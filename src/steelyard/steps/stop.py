"""When to stop unlearning: enough is forgotten, or too much else is lost.

NGDiff's step has a size that does not vanish, and a forget objective like -CE has no minimum, so
nothing stops by itself (arXiv 2410.22086, section 2 of its algorithm; docs/tasks.md).

    forgotten    the forget metric has reached its reference      (a retrained or held-out model's)
    lost         R > limit = (1 + tolerance) max(R_0, floor) + slack       R_0: the first value seen
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Stop:
    """`stop(retain=..., forget=...)` -> "" to go on, or why to stop.

    reference: of the forget metric; None: no amount of forgetting is enough. upwards: the metric
    rises when something is forgotten (the cross-entropy, against that of held-out data); False: it
    falls (verbatim ROUGE, accuracy). tolerance, slack: how far the retain loss may rise, relative
    and absolute; tolerance None: as far as it likes. floor: what a smaller R_0 counts as. start:
    R_0, where it is already known.

    | case | behaviour |
    |---|---|
    | a value that is not finite | a reason to stop, whatever the settings |
    | enough forgotten and too much lost | lost |
    | R_0 near 0 (rows known by heart) | slack or floor decide; without either, any rise is a loss |

    Both numbers must come from the same data at every call. A run that can go back to an earlier
    state asks `lost` and `forgotten` one by one. Raises ValueError for a tolerance, slack or floor
    that is negative, and a reference or start that is not finite.
    """

    reference: float | None = None
    upwards: bool = True
    tolerance: float | None = 0.1
    slack: float = 0.0
    floor: float = 0.0
    start: float | None = None

    def __post_init__(self) -> None:
        for name in ("tolerance", "slack", "floor"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or positive, found {value}")
        for name, value in (("forget reference", self.reference), ("start", self.start)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"the {name} must be finite, found {value}")

    def __call__(self, *, retain: float, forget: float) -> str:
        return self.lost(retain=retain, forget=forget) or self.forgotten(forget)

    @property
    def limit(self) -> float | None:
        """The largest retain loss that is not a loss; None without a tolerance or, yet, a start."""
        if self.tolerance is None or self.start is None:
            return None
        return (1 + self.tolerance) * max(self.start, self.floor) + self.slack

    def lost(self, *, retain: float, forget: float) -> str:
        """Why this state is not one to keep; "" if it is. The first call sets `start`."""
        if not (math.isfinite(retain) and math.isfinite(forget)):
            return f"not finite: retain loss {retain:.4g}, forget metric {forget:.4g}"
        self.start = retain if self.start is None else self.start
        if self.limit is not None and retain > self.limit:
            return f"lost: the retain loss {retain:.4g} is above {self.limit:.4g}"
        return ""

    def forgotten(self, forget: float) -> str:
        """Why this is enough; "" if it is not."""
        if self.reference is None:
            return ""
        if not (forget >= self.reference if self.upwards else forget <= self.reference):
            return ""
        return f"forgotten: the forget metric {forget:.4g} has reached {self.reference:.4g}"
