"""The small benchmark on one page: LUME's scores of target, reference and methods, and their paths.

report.html, trajectories.png        beside scores.json and the methods' run folders
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.report.claims import COLORS
from steelyard.report.plots import drawn_png, drawn_svg, frame
from steelyard.report.unlearning import Story, read
from steelyard.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
COLUMNS = ("", "aggregate", "AUC", "attack score", "utility", "final")


def write_report(folder: Path) -> Path:
    """report.html and trajectories.png into the folder of a comparison; the page's path."""
    import jinja2
    from markupsafe import Markup

    content: dict[str, Any] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    stories = {path.parent.name: read(path.parent) for path in sorted(folder.glob("*/result.json"))}

    def draw(axes: Axes, colours: Mapping[str, str]) -> None:
        trajectories(axes, stories, content["reference_loss"], colours)

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("unlearning_small.html").render(
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        drawn=Markup(drawn_svg("paths", draw)),
        columns=COLUMNS,
        rows=[(name, *cells(scores)) for name, scores in content["scores"].items()],
        stories=stories,
        benchmark=content["benchmark"],
        reference=content["reference_loss"],
        seconds=content["seconds"],
        twelve=twelve(content["scores"]),
        names=list(content["scores"]),
    )
    write_atomically(folder / "trajectories.png", drawn_png(draw, title="Unlearning, step by step"))
    return write_atomically(folder / "report.html", page)


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
    """The paths of all methods in one picture, each with its name at its end."""
    widest = 0.05
    for color, (name, story) in zip(COLORS, stories.items(), strict=False):
        retain = [one[2] for one in story.evaluations]
        forget = [one[1] for one in story.evaluations]
        after = story.result["after"]
        end = (after["retain_loss"], after["forget_loss"])
        axes.plot(retain, forget, color=color, lw=1.8, marker="o", ms=3)
        axes.plot(*end, "o", ms=9, mfc="none", mec=color, mew=1.6)
        axes.annotate(
            name, end, xytext=(8, -3), textcoords="offset points", color=color, weight="bold"
        )
        widest = max([widest, *retain, end[0]])
    axes.axhline(reference, color=colours["muted"], lw=1.1, ls=(0, (2, 2)))
    axes.set_xlim(0, 1.25 * widest)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("retain loss, nats a token", loc="right", color=colours["muted"], labelpad=1)
    axes.set_ylabel("forget loss, nats a token", color=colours["muted"])
    frame(axes, colours)
