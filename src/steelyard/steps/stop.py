"""When to stop unlearning: enough is forgotten, or too much else is lost.

NGDiff's step has a size that does not vanish, and a forget objective like -CE has no minimum, so
nothing stops by itself (arXiv 2410.22086, section 2 of its algorithm; docs/tasks.md).

    forgotten    the forget metric has reached its reference      (a retrained or held-out model's)
    lost         R > (1 + tolerance) R_0 + slack                  R_0: the first value seen
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Stop:
    """`stop(retain=..., forget=...)` -> "" to go on, or why to stop.

    reference: of the forget metric. upwards: the metric rises when something is forgotten (the
    cross-entropy, against that of held-out data); False: it falls (verbatim ROUGE, accuracy).
    tolerance, slack: how far the retain loss may rise, relative and absolute; where it starts near
    0, the slack decides. start: R_0, where it is already known.

    A value that is not finite is a reason to stop. Both numbers must come from the same data at
    every call. Raises ValueError for negative tolerances and a reference that is not finite.
    """

    reference: float
    upwards: bool = True
    tolerance: float = 0.1
    slack: float = 0.0
    start: float | None = field(default=None)

    def __post_init__(self) -> None:
        if not (0 <= self.tolerance < math.inf and 0 <= self.slack < math.inf):
            raise ValueError(
                "tolerance and slack must be 0 or positive, found "
                f"{self.tolerance} and {self.slack}"
            )
        if not math.isfinite(self.reference):
            raise ValueError(f"the forget reference must be finite, found {self.reference}")

    def __call__(self, *, retain: float, forget: float) -> str:
        if not (math.isfinite(retain) and math.isfinite(forget)):
            return f"not finite: retain loss {retain:.4g}, forget metric {forget:.4g}"
        self.start = retain if self.start is None else self.start
        limit = (1 + self.tolerance) * self.start + self.slack
        if retain > limit:
            return f"lost: the retain loss {retain:.4g} is above {limit:.4g}"
        if forget >= self.reference if self.upwards else forget <= self.reference:
            return f"forgotten: the forget metric {forget:.4g} has reached {self.reference:.4g}"
        return ""
