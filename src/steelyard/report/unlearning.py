"""The report of an unlearning run: the path it took, what the model wrote before and after, scores.

report.html, trajectory.png, trajectory.csv        beside the run's files
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from steelyard.report import unlearning_charts as charts
from steelyard.report.numerals import count, day, duration, plain
from steelyard.report.plots import SIZE, drawn_png, drawn_svg
from steelyard.report.summary import short
from steelyard.report.tables import labelled, settings
from steelyard.report.templates import markup, rendered
from steelyard.report.unlearning_read import Record, Story, read
from steelyard.runs.files import write_atomically

WIDE = (6.2, 3.7)  # inches, of the main picture
ROWS = 20  # evaluations in the page's table
NOTHING = "(nothing)"
LONGEST = 500  # characters of a text on the page
TASKS = "Task1: stories; Task2: invented people; Task3: public people."


def write_report(folder: Path) -> Path:
    """report.html, trajectory.png and trajectory.csv into the run's folder; the page's path.

    Raises: ValueError, one line, for a folder that is no finished unlearning run.
    """
    folder = Path(folder)
    story = read(folder)
    lines = ["step,forget_loss,retain_loss"]
    lines += [f"{step},{forget:.6g},{retain:.6g}" for step, forget, retain in story.evaluations]
    draw = partial(charts.trajectory, story=story)
    picture = drawn_png(lambda axes, colours: draw(axes, colours=colours), title=_title(story))
    contents = {
        "trajectory.csv": ("\n".join(lines) + "\n").encode(),
        "trajectory.png": picture,
        "report.html": html(story).encode(errors="replace"),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return folder / "report.html"


def _title(story: Story) -> str:
    return f"Unlearning with {story.config['method']}"


def html(story: Story) -> str:
    """The page as text: a function of the run's files alone."""
    before, after = bars_of(story.samples)
    return rendered(
        "unlearning.html",
        story=story,
        model=short(story.result.get("model")),
        version=story.environment.get("steelyard"),
        date=day(story.time),
        lead=lead(story),
        cards=cards(story),
        path=_drawn("path", charts.trajectory, story, WIDE),
        dotted=story.target is not None or charts.limited(story),
        losses=_drawn("losses", charts.losses, story),
        cosine=_drawn("cosine", charts.cosine, story) if story.cosines else "",
        rate=_drawn("rate", charts.rate, story) if len({v for _, v in story.rates}) > 1 else "",
        bars=markup(
            drawn_svg(
                "bars",
                lambda axes, colours: charts.bars(axes, before, after, colours),
                size=(WIDE[0], charts.bars_height(list(before))),
            )
        ),
        tasks=TASKS if story.samples["after"].get("twelve") else "",
        numbers=[[s, plain(f), plain(r)] for s, f, r in thinned(story.evaluations)],
        texts=[(key, texts(story.samples, key)) for key in ("forget", "retain")],
        settings=settings({k: v for k, v in story.config.items() if k != "kind"}),
        environment=labelled(story.environment),
    )


def _drawn(key: str, draw: Any, story: Story, size: tuple[float, float] = SIZE) -> Any:
    return markup(drawn_svg(key, lambda axes, colours: draw(axes, story, colours), size=size))


def lead(story: Story) -> str:
    """What happened, in sentences: steps, how far it came, why it ended."""
    r = story.result
    steps = f"{r['steps']} of {r['planned_steps']} steps" if r["stopped"] else f"{r['steps']} steps"
    trained = r["trainable"] == r["parameters"]
    share = "all" if trained else f"{count(r['trainable'])} of"
    told = (
        f"{steps} in {duration(r['seconds'])}; {share} {count(r['parameters'])} parameters trained."
    )
    if story.target is not None:
        reached = "reached" if story.end[0] >= story.target else "did not reach"
        of = "that of the reference" if story.aim == "reference" else "its aim"
        told += f" The forget loss {reached} {of}, {plain(story.target)} nats a token."
    return told + (f" Stopped: {r['stopped']}." if r["stopped"] else "")


def cards(story: Story) -> list[dict[str, str]]:
    """The few numbers on top: label, value, unit, note, and the role that colours them."""
    r = story.result
    found: list[dict[str, str]] = []

    def add(label: str, value: str, unit: str, note: str, role: str = "ink") -> None:
        found.append({"label": label, "value": value, "unit": unit, "note": note, "role": role})

    for label, at, role, (name, bound) in (
        ("Forget loss", 0, "private", (story.aim, story.target)),
        ("Retain loss", 1, "plain", ("limit", story.limit)),
    ):
        start = r["before"][label.lower().replace(" ", "_")]
        note = f"nats a token; before {plain(start)}"
        note += "" if bound is None else f", {name} {plain(bound)}"
        add(label, plain(story.end[at]), "", note, role)
    was, now = (story.samples[when] for when in ("before", "after"))
    if now.get("aggregate") is not None:
        note = f"before {was['aggregate']:.3f}; from 0 to 1, 1 is best"
        add("LUME aggregate", f"{now['aggregate']:.3f}", "", note)
    else:
        for key in ("forget", "retain"):
            one, two = (100 * part["scores"][key]["exact"] for part in (was, now))
            add(f"Exact answers, {key}", f"{two:.0f}", "%", f"before {one:.0f}\u202f%")
    found_rate = story.config.get("lr") is None
    add(
        "Learning rate",
        f"{r['lr']:.2g}",
        "",
        "found; of the last step" if found_rate else "as given",
    )
    return found


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


def thinned(looks: list[Any], rows: int = ROWS) -> list[Any]:
    """At most `rows` of them, evenly, the last always among them."""
    stride = max(1, -(-len(looks) // rows))
    return looks[(len(looks) - 1) % stride :: stride]


def texts(samples: Record, key: str) -> list[dict[str, str]]:
    """Prompt, answer, what was written before and after, of some rows of a set; mark and role say
    what became of an answer that the model knew word for word; before is "" where it was that."""
    found = []
    for one, two in zip(
        samples["before"]["samples"][key], samples["after"]["samples"][key], strict=True
    ):
        knew, knows = (part["written"].strip() == one["output"].strip() for part in (one, two))
        same = "still word for word" if key == "forget" else "word for word"
        good = knows != (key == "forget")
        found.append(
            {
                "prompt": _cut(one["input"], end=True),
                "answer": _cut(one["output"]),
                "before": "" if knew else _cut(one["written"]) or NOTHING,
                "after": _cut(two["written"]) or NOTHING,
                "mark": same if knows else "no longer word for word" if knew else "",
                "role": "private" if good else "plain",
            }
        )
    return found


def _cut(text: str, *, end: bool = False) -> str:
    """At most `LONGEST` characters, from the start or (end) the end."""
    text = text.strip()
    if len(text) <= LONGEST:
        return text
    return "… " + text[-LONGEST:] if end else text[:LONGEST] + " …"
