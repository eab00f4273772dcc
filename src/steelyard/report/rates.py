"""The learning rates that a run found (GeN, Hi-DLR): their curves, some parabolas, the refused.

Read from the run's "rate" events: one for each fit, written by `steelyard.runs.step_size`.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from steelyard.report import parabola
from steelyard.report.plots import drawn_sheet, drawn_svg, frame
from steelyard.report.read import Record, Run, number
from steelyard.steps.quadratic import Points, Quadratic, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWABLE = ("public", "noised")  # what a private run may show of its fits
COLOURS = ("private", "plain", "brass", "ink", "muted")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
GAP = 0.062  # between two labels, share of the axis
KINDS = {  # the words of `Policy`, of any number
    "not finite": "a probe's loss was not finite",
    "the curvature is not": "no positive curvature",
    "the slope is not": "uphill: the slope was not positive",
    "the curvature": "curvature within the noise",
    "the slope": "slope within the noise",
    "no parabola": "no parabola (R² too low)",
}
REACTIONS = {
    "taken back": "the step was taken back and the rate divided by 10",
    "halved": "the rate was halved, uphill several times in a row",
    "descent up to": "the rate was raised to where descent was seen",
}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One parabola of the run: its fit with the points, and why it was refused, if it was."""

    step: int
    group: str
    reason: str
    fitted: Quadratic

    @property
    def title(self) -> str:
        whose = "" if self.group == "all" else f", {self.group}"
        return f"Step {self.step:,}{whose}{': refused' if self.reason else ''}"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a run's fits said. lines: group -> (step, rate applied); refused: group -> those points
    whose fit was not believed; sentences: how many were not, why, and what was done."""

    method: str
    lines: Mapping[str, Sequence[tuple[int, float]]]
    refused: Mapping[str, Sequence[tuple[int, float]]]
    parabolas: Sequence[Shown]
    sentences: Sequence[str]
    events: Sequence[Record]

    @property
    def description(self) -> str:
        """The curves in words, for those who do not see them."""
        ends = (
            f"{name}: from {points[0][1]:.3g} at step {points[0][0]} to {points[-1][1]:.3g} at "
            f"step {points[-1][0]}"
            for name, points in self.lines.items()
        )
        return f"Line chart of the learning rate by step; {'; '.join(ends)}"


def rates_of(run: Run) -> Rates | None:
    """None for a run without fits, and for one whose fits it must not show: a private run's are
    shown only where the probes were public or noised."""
    events = run.of_kind("rate")
    if run.private:
        events = [event for event in events if event.get("protection") in SHOWABLE]
    events = [event for event in events if isinstance(event.get("rates"), dict)]
    if not events:
        return None
    names = list(dict.fromkeys(name for event in events for name in event["rates"]))
    lines: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    refused: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    start = number(run.config.get("lr"))
    for name in names:
        first = number(events[0].get("factor")) or 1.0
        if start and events[0]["step"] == 1:
            lines[name].append((0, start * first))
    for event in events:
        factor = number(event.get("factor")) or 1.0
        for name, value in event["rates"].items():
            rate = number(value)
            if rate is None or rate * factor <= 0:
                continue
            lines[name].append((event["step"], rate * factor))
            if not _fits(event).get(name, {}).get("accepted", True):
                refused[name].append((event["step"], rate * factor))
    return Rates(
        method="Hi-DLR" if run.config.get("step") == "hidlr" else "GeN",
        lines={name: points for name, points in lines.items() if points},
        refused=refused,
        parabolas=_chosen(events),
        sentences=_sentences(events, "Hi-DLR" if run.config.get("step") == "hidlr" else "GeN"),
        events=events,
    )


def csv_text(rates: Rates) -> str:
    """A line for each fit of a group: rate without the schedule's factor, then what was fitted."""
    names = ("slope", "curvature", "r2", "multiple", "accepted", "reason")
    return _csv(
        ("step", "group", "rate", "factor", *names),
        (
            (
                *(event["step"], group, event["rates"].get(group), event.get("factor")),
                *(one.get(name) for name in names),
            )
            for event in rates.events
            for group, one in _fits(event).items()
        ),
    )


def points_csv(rates: Rates) -> str:
    """The points of the parabolas that are drawn: x in multiples of the step."""
    return _csv(
        ("step", "group", "x", "loss", "fitted"),
        (
            (
                one.step,
                one.group,
                f"{x:.7g}",
                f"{y:.10g}",
                f"{float(one.fitted.predict([x])[0]):.10g}",
            )
            for one in rates.parabolas
            for x, y in zip(one.fitted.points.x[:, 0], one.fitted.points.y[:, 0], strict=True)
        ),
    )


def svg(rates: Rates) -> str:
    """The curves, for the page: see `steelyard.report.plots.svg`."""
    return drawn_svg("rates", partial(_draw, rates=rates))


def parabola_svgs(rates: Rates) -> list[tuple[Shown, str]]:
    """Each parabola, for the page."""
    return [
        (one, parabola.svg(one.fitted, key=f"parabola{at}"))
        for at, one in enumerate(rates.parabolas)
    ]


def png(rates: Rates) -> bytes:
    """The curves and the parabolas on white paper, two to a row."""
    charts: list[tuple[str, Callable[[Axes, dict[str, str]], None]]] = [
        (f"Learning rate, {rates.method}", partial(_draw, rates=rates))
    ]
    charts += [
        (one.title, lambda axes, colours, one=one: parabola.draw(axes, one.fitted, colours))
        for one in rates.parabolas
    ]
    return drawn_sheet(charts, columns=2)


def _draw(axes: Axes, colours: Mapping[str, str], *, rates: Rates) -> None:
    last = max(points[-1][0] for points in rates.lines.values())
    values = [y for points in rates.lines.values() for _, y in points]
    low, high = min(values), max(values)
    room = max((high / low) ** 0.08, 1.3)
    axes.set_yscale("log")
    axes.set_ylim(low / room, high * room)
    several = len(rates.lines) > 1
    axes.set_xlim(0, last * (1.32 if several else 1.04) or 1)
    ends: dict[str, float] = {}
    for at, (name, points) in enumerate(rates.lines.items()):
        colour = colours[COLOURS[at % len(COLOURS)]]
        dash = DASHES[at // len(COLOURS) % len(DASHES)]
        axes.plot(*zip(*points, strict=True), color=colour, lw=1.6, ls=dash, drawstyle="steps-post")
        if refused := rates.refused.get(name):
            axes.plot(*zip(*refused, strict=True), ls="", marker="x", ms=3.5, mew=0.8, color=colour)
        ends[name] = points[-1][1]
    if several:
        span = math.log(high * room / (low / room))
        for name, place in _spread(ends, low / room, span).items():
            colour = colours[COLOURS[list(rates.lines).index(name) % len(COLOURS)]]
            axes.annotate(
                name, (last, place), xytext=(4, 0), textcoords="offset points", va="center",
                color=colour, fontsize=9, annotation_clip=False,
            )  # fmt: skip
    axes.set_xlabel("step", loc="right", color=colours["muted"], labelpad=1)
    frame(axes, colours)
    if any(rates.refused.values()):
        axes.plot([], [], ls="", marker="x", ms=4, color=colours["muted"], label="fit refused")
        axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9, loc="best")


def _spread(ends: Mapping[str, float], bottom: float, span: float) -> dict[str, float]:
    """Where each label stands: at its line's end, moved up where another one is too close."""
    places: dict[str, float] = {}
    last = -math.inf
    for name in sorted(ends, key=lambda name: ends[name]):
        at = max(math.log(ends[name] / bottom) / span, last + GAP)
        places[name], last = bottom * math.exp(at * span), at
    return places


def _fits(event: Record) -> dict[str, Record]:
    found = event.get("fits")
    return (
        {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}
    )


def _chosen(events: Sequence[Record]) -> list[Shown]:
    """The first, middle and last believed parabola of which the points are known, and a refused."""
    believed, refused = [], []
    for event in events:
        known = [one for name in _fits(event) if (one := _shown(event, name)) is not None]
        refused += [one for one in known if one.reason]
        if good := [one for one in known if not one.reason]:
            believed.append(
                max(good, key=lambda one: float(np.nan_to_num(one.fitted.value()[0, 0])))
            )
    some = [believed[0], believed[len(believed) // 2], believed[-1]] if believed else []
    some += refused[len(refused) // 2 :][:1]
    return [one for at, one in enumerate(some) if one not in some[:at]]


def _shown(event: Record, group: str) -> Shown | None:
    points = (event.get("points") or {}).get(group)
    one = _fits(event)[group]
    if not isinstance(points, dict) or not {"x", "loss", "noise"} <= points.keys():
        return None
    x, y = ([number(v) for v in points[key]] for key in ("x", "loss"))
    if None in (*x, *y) or 0.0 not in x or len(set(x)) < 3:
        return None
    noise = np.array([number(points["noise"]) or 0.0])
    fitted = fit(Points(np.array(x, float)[:, None], np.array(y, float)[:, None], noise), "scalar")
    reason = "" if one.get("accepted") else str(one.get("reason") or "refused")
    return Shown(step=event["step"], group=group, reason=reason, fitted=fitted)


def _sentences(events: Sequence[Record], method: str) -> list[str]:
    fits = [(event, one) for event in events for one in _fits(event).values()]
    refused = [str(one.get("reason") or "") for _, one in fits if not one.get("accepted")]
    what = "fits" if method == "GeN" else "fits of single groups"
    if not refused:
        return [f"{method} made {len(fits):,} {what} and believed all of them."]
    why = Counter(_kind(reason) for reason in refused)
    listed = ", ".join(f"{count:,} × {kind}" for kind, count in why.most_common())
    said = [
        f"{method} made {len(fits):,} {what} and refused {len(refused):,} of them "
        f"({len(refused) / len(fits):.0%}): {listed}. There the rate stayed as it was. A "
        "quarter to three quarters are usual; where most are refused, a larger probe batch "
        "(--step-part) sees more."
    ]
    done = Counter(words for r in refused for part, words in REACTIONS.items() if part in r)
    said += [f"{count:,} times {words}." for words, count in done.most_common()]
    return said


def _kind(reason: str) -> str:
    return next((kind for part, kind in KINDS.items() if part in reason), "no fit was possible")


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
