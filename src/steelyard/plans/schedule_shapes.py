"""Shapes of learning-rate schedules: eta_t = eta_peak s_t, s_t in [0, 1], t = 1, ..., T.

One definition for the laws (`steelyard.plans.laws`) and for the schedulers
(`steelyard.steps.schedules`). eta_t moves w_{t-1} to w_t.

| kind | s_t behind the warm-up, with u = (t - 1) / T | |
|---|---|---|
| linear | 1 - u | last value 1/T, never 0 |
| cosine | (1 + cos(pi u)) / 2 | |
| wsd | 1 for a share `stable` of the steps, then linear | warm-up, stable, decay |
| constant | 1 | |
| inverse-sqrt | 1 / sqrt(t); behind W steps of warm-up sqrt(W / t), t counting them | |
| cyclic | `cycles` equal cosines from 1 down to `low` | warm restarts |

The warm-up is a share of T, s_t = t / W with W = round(warmup T): the laws need a shape that
stretches with the horizon, which a fixed number of steps does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelyard.plans.checks import chosen, real, whole

KINDS = ("linear", "cosine", "wsd", "constant", "inverse-sqrt", "cyclic")
ENDLESS = ("constant", "inverse-sqrt")  # they do not know where the run ends
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A schedule's shape for every horizon: `shape(T)` is s_1, ..., s_T.

    warmup: share of the steps, in [0, 1). stable: share of the steps behind the warm-up that wsd
    stays at 1, in [0, 1). cycles, low: of kind cyclic. What a kind does not use has no effect.

    Guarantees: values in [0, 1], the largest is 1 (or W/T-close to it where T has few steps);
    never 0 before t = T + 1 unless `low` is.
    Raises ValueError, one line, for values out of range.
    """

    kind: str
    warmup: float = 0.0
    stable: float = 0.8
    cycles: int = 4
    low: float = 0.0

    def __post_init__(self) -> None:
        chosen("schedule", self.kind, KINDS)
        for name, below in (("warmup", 1.0), ("stable", 1.0), ("low", math.inf)):
            value = real(name, getattr(self, name), fix="give a share from 0 to 1")
            if not 0 <= value <= 1 or value >= below:
                raise ValueError(f"{name} is a share from 0 to 1, found {value:g}: use 0.1, say")
        whole("cycles", self.cycles, least=1, fix="use 4, say")

    def __call__(self, steps: int) -> Floats:
        """s_1, ..., s_T as float64 [T]."""
        steps = whole("steps", steps, least=1, fix="give the run's optimizer steps")
        return self._values(np.arange(1, steps + 1, dtype=float), steps)

    def factor(self, t: int, steps: int) -> float:
        """s_t alone, t from 1; behind the end (t > T) what t = T + 1 would be, mostly 0."""
        last = t if self.kind in ENDLESS else min(t, steps + 1)
        return float(self._values(np.array([last], dtype=float), steps)[0])

    def __str__(self) -> str:
        extra = {"wsd": f":{self.stable:g}", "cyclic": f":{self.cycles}"}.get(self.kind, "")
        return f"{self.kind}{extra}"

    def _values(self, t: Floats, steps: int) -> Floats:
        W = min(round(self.warmup * steps), steps - 1)
        s = self._behind(np.maximum(t - W, 1.0), t, steps - W, W)
        return np.where(t <= W, t / max(W, 1), s)

    def _behind(self, t: Floats, t_all: Floats, T: int, W: int) -> Floats:
        """s of steps t = 1..T counted behind the warm-up; t_all counts its W steps too."""
        u = (t - 1) / T
        if self.kind == "linear":
            return 1 - u
        if self.kind == "cosine":
            return (1 + np.cos(np.pi * np.minimum(u, 1))) / 2
        if self.kind == "wsd":
            decay = max(T - round(self.stable * T), 1)  # steps
            return np.minimum(1.0, (T - t + 1) / decay)
        if self.kind == "inverse-sqrt":
            return np.sqrt(max(W, 1) / np.maximum(t_all, max(W, 1)))
        if self.kind == "cyclic":
            v = np.where(u < 1, u * self.cycles % 1.0, 1.0)
            return self.low + (1 - self.low) * (1 + np.cos(np.pi * v)) / 2
        return np.ones_like(t)


def parse_shape(text: str, warmup: float = 0.0) -> Shape:
    """linear, cosine, wsd:0.8 (stable share), constant, inverse-sqrt, cyclic:4 (cycles): a `Shape`.

    Raises ValueError, one line, for anything else.
    """
    kind, _, number = text.partition(":")
    chosen("schedule", kind, KINDS)
    if not number:
        return Shape(kind=kind, warmup=warmup)
    try:
        if kind == "wsd":
            return Shape(kind=kind, warmup=warmup, stable=float(number))
        if kind == "cyclic":
            return Shape(kind=kind, warmup=warmup, cycles=int(number))
    except ValueError as error:
        raise ValueError(f"schedule {text!r} does not parse: {error}") from None
    raise ValueError(f"schedule {text!r}: {kind} takes no number, write {kind!r}")
