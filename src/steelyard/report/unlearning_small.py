"""The small benchmark on one page: LUME's scores of target, reference and methods, and their paths.

report.html, trajectories.png        beside scores.json and the methods' run folders
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.report.numerals import day, duration, listed, plain
from steelyard.report.plots import drawn_png, drawn_svg
from steelyard.report.templates import markup, rendered
from steelyard.report.unlearning import TASKS, WIDE
from steelyard.report.unlearning_charts import LEAST, level, named
from steelyard.report.unlearning_read import Story, read
from steelyard.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("model", "aggregate", "AUC", "attack score", "utility", "final")
RUNS = (
    "method", "learning rate", "steps", "forget loss", "reached", "retain loss",
    "processor seconds",
)  # fmt: skip
LOOKS = (("private", "o", "-"), ("plain", "s", (0, (5, 2))), ("brass", "^", (0, (1, 1))))
APART = 0.075  # of the axis: names of paths stand at least so far from each other


def write_report(folder: Path) -> Path:
    """report.html and trajectories.png into the folder of a comparison; the page's path.

    Raises: ValueError, one line, where a method's folder is no finished run.
    """
    content: dict[str, Any] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    scores = content["scores"]
    runs = {path.parent.name: read(path.parent) for path in sorted(folder.glob("*/result.json"))}
    stories = {name: runs[name] for name in (*scores, *runs) if name in runs}  # as compared

    def draw(axes: Axes, colours: Mapping[str, str]) -> None:
        trajectories(axes, stories, content["reference_loss"], colours)

    page = rendered(
        "unlearning_small.html",
        version=next(iter(stories.values())).environment.get("steelyard"),
        date=day(next(iter(stories.values())).time),
        drawn=markup(drawn_svg("paths", draw, size=WIDE)),
        heard="; ".join(
            f"{name} ends at forget loss {plain(one.end[0])}, retain loss {plain(one.end[1])}"
            for name, one in stories.items()
        ),
        columns=COLUMNS,
        rows=[[name, *_digits(cells(one))] for name, one in scores.items()],
        outcome=outcome(stories, scores, content["reference_loss"]),
        rates=rates(stories, content.get("tuned", []), content.get("tuned_on")),
        header=RUNS,
        runs=[
            _run(name, one, content["reference_loss"], content.get("processor_seconds", {}))
            for name, one in stories.items()
        ],
        stories=stories,
        benchmark=[(k.replace("_", " "), listed(v)) for k, v in content["benchmark"].items()],
        took=duration(content["seconds"]),
        tasks=TASKS,
        twelve=[[name, *_digits(values)] for name, values in twelve(scores)],
        names=list(scores),
    )
    picture = drawn_png(draw, title="Unlearning, step by step")
    write_atomically(folder / "trajectories.png", picture)
    return write_atomically(folder / "report.html", page.encode(errors="replace"))


def outcome(
    stories: Mapping[str, Story], scores: Mapping[str, Mapping[str, Any]], reference: float
) -> str:
    """Which methods came to the reference's forget loss, and the best of all: sentences."""
    there = [name for name, one in stories.items() if _reached(one, reference)]
    short = [name for name in stories if name not in there]
    told = f"{_and(there)} reached the reference's forget loss" if there else ""
    if short:
        told += "; " if there else ""
        told += f"{_and(short)} did not" + " reach the reference's forget loss" * (not there)
    parts = []
    for key, text in (("aggregate", "aggregate of LUME's scores"), ("final", "final score")):
        best = max(stories, key=lambda name: scores[name][key])
        own = scores["reference"][key]
        parts.append(
            f"The highest {text} is {best}'s, {scores[best][key]:.3f} (reference {own:.3f})"
        )
    return f"{told}. {'. '.join(parts)}: it counts what an attack still finds."


def rates(stories: Mapping[str, Story], tuned: list[str], seed: int | None) -> str:
    """Where the learning rates come from: sentences."""
    given = [name for name, one in stories.items() if one.config.get("lr") and name not in tuned]
    found = [name for name, one in stories.items() if one.config.get("lr") is None]
    parts = [
        f"tuned on this benchmark for {_and(tuned)}, the best of four on seed {seed}" * bool(tuned),
        f"set for {_and(given)}" * bool(given),
        f"found on the retain loss (GeN) for {_and(found)}, the table has the last" * bool(found),
    ]
    return f"Learning rates: {'; '.join(filter(None, parts))}."


def _reached(story: Story, reference: float) -> bool:
    return story.end[0] >= reference


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _run(name: str, story: Story, reference: float, busy: Mapping[str, float]) -> list[str]:
    """A line of the table of runs."""
    r = story.result
    found = " (found)" if story.config.get("lr") is None else ""
    forget, retain = map(plain, story.end)
    reached = "yes" if _reached(story, reference) else "no"
    took = f"{busy[name]:.0f}" if name in busy else "–"
    steps = f"{r['steps']} of {r['planned_steps']}"
    return [name, f"{r['lr']:.2g}{found}", steps, forget, reached, retain, took]


def _digits(values: Any) -> list[str]:
    return [f"{value:.3f}" for value in values]


def cells(scores: Mapping[str, Any]) -> tuple[float, ...]:
    """One model's line, in the order of `COLUMNS`."""
    return (
        scores["aggregate"],
        scores["mia"]["auc"],
        scores["mia"]["score"],
        scores["utility"]["accuracy"],
        scores["final"],
    )


def twelve(scores: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[float]]]:
    """(score, its value for each model)."""
    names = list(next(iter(scores.values()))["twelve"])
    return [(name, [one["twelve"][name] for one in scores.values()]) for name in names]


def trajectories(
    axes: Axes, stories: Mapping[str, Story], reference: float, colours: Mapping[str, str]
) -> None:
    """The paths of all methods up to the models that were saved, each with its name at its end."""
    right = 1.3 * max(LEAST, *(r for one in stories.values() for _, _, r in one.kept))
    top = 1.12 * max(reference, *(f for one in stories.values() for _, f, _ in one.kept))
    for at, one in enumerate(stories.values()):
        role, marker, dash = LOOKS[at % len(LOOKS)]
        retain, forget = [r for _, _, r in one.kept], [f for _, f, _ in one.kept]
        line = {"color": colours[role], "lw": 1.8, "ls": dash, "marker": marker, "ms": 3}
        axes.plot(retain, forget, clip_on=False, **line)
        ring = {"ms": 9, "mfc": "none", "mec": colours[role], "mew": 1.6}
        axes.plot(*one.end[::-1], "o", clip_on=False, **ring)
    lowest = -1.0
    for at, (name, one) in sorted(enumerate(stories.items()), key=lambda item: item[1][1].end[0]):
        forget, retain = one.end
        lowest = max(forget / top, lowest + APART)  # a name that would hit another goes above it
        axes.annotate(
            name, (retain, lowest * top), xytext=(9, 0), textcoords="offset points", va="center",
            color=colours[LOOKS[at % len(LOOKS)][0]], weight="bold", annotation_clip=False,
        )  # fmt: skip
    level(axes, reference, f"reference {plain(reference)}", colours)
    axes.set_xlim(0, right)
    axes.set_ylim(0, top)
    named(axes, colours)
