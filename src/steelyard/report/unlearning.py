"""The report of an unlearning run: the path it took, what the model wrote before and after, scores.

    report.html, trajectory.png, trajectory.csv        beside the run's files

The main picture has the retain loss to the right and the forget loss upwards: good is up and left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.report.numerals import cell, prose
from steelyard.report.plots import drawn_png, drawn_svg, frame
from steelyard.report.read import number
from steelyard.runs.events import read_events
from steelyard.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
Colours = Mapping[str, str]
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Story:
    """What the files of a run say. evaluations: (step, forget loss, retain loss), by step."""

    config: Record
    environment: Record
    result: Record
    samples: Record
    evaluations: list[tuple[int, float, float]]
    weights: list[tuple[int, dict[str, float], float | None]]  # step, weights, cosine
    rates: list[tuple[int, float]]

    @property
    def target(self) -> float | None:
        """The forget loss to stop at, if there was one."""
        return number(self.config.get("reference_loss"))

    @property
    def limit(self) -> float | None:
        """The retain loss to stay below, if there was one."""
        return number(self.result.get("retain_limit"))


def read(folder: Path) -> Story:
    """Raises ValueError, one line, for a folder that is no finished unlearning run."""
    found: dict[str, Record] = {}
    for name in ("config", "environment", "result", "samples"):
        path = folder / f"{name}.json"
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"'{path.name}' is missing in '{folder}': is this the --out folder of a finished "
                "unlearning run?"
            ) from None
        except ValueError as error:
            raise ValueError(f"'{path}' is not JSON ({error}): restore it") from None
    events = read_events(folder / "events.jsonl")
    steps = [event for event in events if event["kind"] == "train"]
    return Story(
        **found,
        evaluations=[
            (e["step"], e["forget_loss"], e["retain_loss"])
            for e in events
            if e["kind"] == "eval" and None not in (e["forget_loss"], e["retain_loss"])
        ],
        weights=[(e["step"], e["weights"], e["cosine"]) for e in steps],
        rates=[(e["step"], e["lr"]) for e in steps if number(e["lr"])],
    )


def write_report(folder: Path) -> Path:
    """report.html, trajectory.png and trajectory.csv into the run's folder; the page's path."""
    folder = Path(folder)
    story = read(folder)
    title = f"{story.config['method']}: retain loss to the right, forget loss upwards"
    lines = ["step,forget_loss,retain_loss"]
    lines += [f"{step},{forget:.6g},{retain:.6g}" for step, forget, retain in story.evaluations]
    write_atomically(folder / "trajectory.csv", "\n".join(lines) + "\n")
    picture = drawn_png(lambda axes, colours: trajectory(axes, story, colours), title=title)
    write_atomically(folder / "trajectory.png", picture)
    write_atomically(folder / "report.html", html(story))
    return folder / "report.html"


def html(story: Story) -> str:
    """The page as text: a function of the run's files alone."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(cell=cell, prose=prose)
    charts = {
        "trajectory": lambda axes, colours: trajectory(axes, story, colours),
        "losses": lambda axes, colours: losses(axes, story, colours),
        "rate": lambda axes, colours: rate(axes, story, colours),
    }
    before, after = bars_of(story.samples)
    if before:
        charts["bars"] = lambda axes, colours: bars(axes, before, after, colours)
    return environment.get_template("unlearning.html").render(
        story=story,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        drawn={key: Markup(drawn_svg(key, draw)) for key, draw in charts.items()},
        rows=[
            (key, story.samples["before"]["samples"][key], story.samples["after"]["samples"][key])
            for key in ("forget", "retain")
        ],
        numbers=[(s, f"{forget:.4g}", f"{retain:.4g}") for s, forget, retain in story.evaluations],
        settings=[(k, v) for k, v in story.config.items() if v is not None],
        scores=[(name, before[name], after[name]) for name in before],
    )


def bars_of(samples: Record) -> tuple[dict[str, float], dict[str, float]]:
    """LUME's twelve scores before and after, higher is better; of other rows, what was scored."""
    found = []
    for when in ("before", "after"):
        part = samples[when]
        if part.get("twelve"):
            found.append(dict(part["twelve"]))
            continue
        scores = part["scores"]
        found.append(
            {f"forget {name}": 1 - value for name, value in scores["forget"].items()}
            | {f"retain {name}": value for name, value in scores["retain"].items()}
        )
    return found[0], found[1]


def trajectory(axes: Axes, story: Story, colours: Colours) -> None:
    """Forget loss against retain loss, from the start to the end."""
    forget = [f for _, f, _ in story.evaluations]
    retain = [r for _, _, r in story.evaluations]
    axes.plot(retain, forget, color=colours["private"], lw=1.9, marker="o", ms=3.5)
    last = story.result["after"]
    end = (last["retain_loss"], last["forget_loss"])
    axes.plot(*end, "o", ms=10, mfc="none", mec=colours["brass"], mew=1.8)
    for text, at in (("before", (retain[0], forget[0])), ("after", end)):
        axes.annotate(
            text, at, xytext=(8, -3), textcoords="offset points",
            color=colours["ink"], weight="bold", fontsize=10,
        )  # fmt: skip
    if story.target is not None:
        axes.axhline(story.target, color=colours["muted"], lw=1.1, ls=(0, (2, 2)))
    if story.limit is not None and story.limit < 3 * max(retain):
        axes.axvline(story.limit, color=colours["plain"], lw=1.1, ls=(0, (2, 2)))
    axes.set_xlim(left=0, right=1.15 * max([*retain, end[0], 1e-3]))
    axes.set_ylim(bottom=0, top=1.12 * max([*forget, story.target or 0.0]))
    axes.set_xlabel("retain loss, nats a token", loc="right", color=colours["muted"], labelpad=1)
    axes.set_ylabel("forget loss, nats a token", color=colours["muted"])
    frame(axes, colours)


def losses(axes: Axes, story: Story, colours: Colours) -> None:
    """Both losses by step."""
    steps = [step for step, _, _ in story.evaluations]
    for at, (name, role, dash) in enumerate(
        (("forget", "private", "-"), ("retain", "plain", (0, (5, 2)))), start=1
    ):
        values = [one[at] for one in story.evaluations]
        axes.plot(steps, values, color=colours[role], lw=1.9, ls=dash, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step", loc="right", color=colours["muted"], labelpad=1)
    axes.legend(frameon=False, labelcolor=colours["muted"])
    frame(axes, colours)


def rate(axes: Axes, story: Story, colours: Colours) -> None:
    """The learning rate by step, logarithmic."""
    steps, values = [s for s, _ in story.rates], [v for _, v in story.rates]
    axes.semilogy(steps, values, color=colours["private"], lw=1.9, drawstyle="steps-post")
    axes.set_xlabel("step", loc="right", color=colours["muted"], labelpad=1)
    frame(axes, colours)


def bars(
    axes: Axes, before: Mapping[str, float], after: Mapping[str, float], colours: Colours
) -> None:
    """Every score before and after, as bars from 0 to 1: higher is better for all."""
    names: Sequence[str] = list(before)
    for shift, values, role, label in (
        (0.2, before, "line", "before"), (-0.2, after, "private", "after"),
    ):  # fmt: skip
        places = [len(names) - 1 - k + shift for k in range(len(names))]
        axes.barh(places, [values[n] for n in names], height=0.36, color=colours[role], label=label)
    axes.set_yticks(range(len(names)), list(reversed(names)), fontsize=7.5)
    axes.set_xlim(0, 1)
    axes.legend(
        frameon=False, labelcolor=colours["muted"], fontsize=8, loc="lower right",
        bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0,
    )  # fmt: skip
    frame(axes, colours)
    axes.grid(visible=False, axis="y")
