"""From events to curves: what is plotted, and its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.report.numerals import above
from steelyard.report.read import Run, number

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of at least one finite value; another value is NaN and leaves a gap."""

    label: str  # written beside the line's end
    role: str  # the colour: "private" or "plain"
    points: list[Point]  # (time, value), by rising time

    @property
    def ends(self) -> tuple[Point, Point]:
        """The first and the last point with a finite value."""
        finite = [point for point in self.points if math.isfinite(point[1])]
        return finite[0], finite[-1]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart: its lines, the range of its vertical axis, and a horizontal mark if any."""

    key: str  # "accuracy", "loss" or "epsilon"
    title: str
    unit: str  # written after each number, "" for none
    clock: str  # what time is counted in: "epoch" or "step"
    lines: list[Line]
    low: float
    high: float
    mark: tuple[float, str] | None = None

    def shown(self, value: float) -> str:
        """A value as it is written beside a line."""
        if self.key == "epsilon":
            return above(value)
        return f"{value:.1f}{self.unit}" if self.key == "accuracy" else f"{value:.3g}"

    @property
    def description(self) -> str:
        """The chart in words, for those who do not see it."""
        parts = []
        for line in self.lines:
            (x0, y0), (x1, y1) = line.ends
            start = f"from {self.shown(y0)} at {self.clock} {x0:.4g}"
            parts.append(f"{line.label}: {start} to {self.shown(y1)} at {self.clock} {x1:.4g}")
        if self.mark is not None:
            parts.append(f"{self.mark[1]}: {self.mark[0]:.4g}")
        return f"Line chart of {self.title} over time; " + "; ".join(parts)


def panels(run: Run, target_epsilon: float | None = None) -> list[Panel]:
    """The charts of accuracy, of loss and of epsilon: those of which the run has numbers."""
    candidates = (_accuracy(run), _loss(run), _epsilon(run, target_epsilon))
    return [panel for panel in candidates if panel is not None]


def accuracy_range(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits in percent: multiples of 20 around the values, never under 40 points apart.

    Guarantees: zero stays in sight unless every value is above 60 %, so that a small difference
    looks small.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low = 60.0 if min(finite) >= 60.0 else 0.0
    return low, max(min(100.0, 20.0 * math.ceil((max(finite) + 4.0) / 20.0)), low + 40.0)


def label(run: Run) -> str:
    return "private" if run.private else "not private"


def both(run: Run) -> list[Run]:
    """The run, and its twin without privacy if there is one."""
    return [run, run.baseline] if run.baseline else [run]


def _clock(run: Run) -> str:
    return "epoch" if all(one.epochs_per_step for one in both(run)) else "step"


def _points(run: Run, values: dict[int, float], clock: str) -> list[Point]:
    scale = (run.epochs_per_step or 1.0) if clock == "epoch" else 1.0
    return [(scale * step, values[step]) for step in sorted(values)]


def _lines(run: Run, field: str, scale: float) -> list[Line]:
    lines = []
    for one in both(run):
        found = {event["step"]: number(event.get(field)) for event in one.of_kind("eval")}
        if any(value is not None for value in found.values()):
            values = {s: math.nan if v is None else scale * v for s, v in found.items()}
            role = "private" if one.private else "plain"
            points = _points(one, values, _clock(run))
            lines.append(Line(label=label(one), role=role, points=points))
    return lines


def _accuracy(run: Run) -> Panel | None:
    lines = _lines(run, "accuracy", 100.0)
    if not lines:
        return None
    low, high = accuracy_range([y for line in lines for _, y in line.points])
    return Panel(
        key="accuracy", title="test accuracy", unit=" %", clock=_clock(run),
        lines=lines, low=low, high=high,
    )  # fmt: skip


def _loss(run: Run) -> Panel | None:
    lines = _lines(run, "loss", 1.0)
    if not lines:
        return None
    high = 1.1 * max(y for line in lines for _, y in line.points if math.isfinite(y))
    return Panel(
        key="loss", title="test loss", unit="", clock=_clock(run),
        lines=lines, low=0.0, high=high if high > 0 else 1.0,
    )  # fmt: skip


def _epsilon(run: Run, target: float | None) -> Panel | None:
    spent = {e["step"]: v for e in run.events if (v := number(e.get("epsilon"))) is not None}
    if not run.private or not spent:
        return None
    highest = max(spent.values())
    mark = target if target and target < 20 * highest else None  # else the curve would be flat
    line = Line(label="spent", role="private", points=_points(run, spent, _clock(run)))
    return Panel(
        key="epsilon", title="privacy spent (ε)", unit="", clock=_clock(run),
        lines=[line], low=0.0, high=1.2 * max(highest, mark or 0.0) or 1.0,
        mark=(mark, "budget") if mark else None,
    )  # fmt: skip
