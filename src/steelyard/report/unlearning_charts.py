"""The pictures of unlearning: the path, losses, gradients, learning rate, scores.

A path has the retain loss to the right and the forget loss upwards: good is up and left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from steelyard.report.axes import log_ticks
from steelyard.report.numerals import plain
from steelyard.report.plots import frame
from steelyard.report.unlearning_read import Story

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colours = Mapping[str, str]
DOTS = (0, (2, 2))
LEAST = 0.02  # nats: a retain axis never shows less, or noise would look like a change
ROW = 0.25  # inches for a score


def trajectory(axes: Axes, story: Story, colours: Colours) -> None:
    """Forget loss against retain loss, from the start to the model that was saved, and beyond."""
    forget, retain = [f for _, f, _ in story.kept], [r for _, _, r in story.kept]
    axes.plot(retain, forget, color=colours["private"], lw=1.9, marker="o", ms=3.5, clip_on=False)
    lost = story.given_up
    if lost:
        axes.plot(
            [r for _, _, r in lost], [f for _, f, _ in lost], color=colours["muted"], lw=1.1,
            ls=(0, (4, 2)), marker="x", ms=4, markevery=slice(1, None), zorder=1,
        )  # fmt: skip
    right, top = _bounds(story)
    axes.set_xlim(0, right)
    axes.set_ylim(0, top)
    ring = {"ms": 10, "mfc": "none", "mec": colours["brass"], "mew": 1.8}
    axes.plot(story.end[1], story.end[0], "o", clip_on=False, **ring)
    begin, end = (retain[0], forget[0]), (story.end[1], story.end[0])
    near = abs(begin[0] - end[0]) < 0.16 * right and abs(begin[1] - end[1]) < 0.09 * top
    flat = abs(begin[0] - end[0]) / right > abs(begin[1] - end[1]) / top  # names stand above it
    if story.moved:
        _name(axes, "before", begin, right, colours["ink"], rise=9 if flat else 0)
    text = "after" if story.moved else "before and after"
    rise = 22 if story.moved and near else 9 if flat else 0
    _name(axes, text, end, right, colours["brass"], rise=rise)
    if story.target is not None:
        level(axes, story.target, f"{story.aim} {plain(story.target)}", colours)
    if story.limit is not None and limited(story):
        axes.axvline(story.limit, color=colours["plain"], lw=1.1, ls=DOTS)
        axes.annotate(
            f"limit {plain(story.limit)}", (story.limit, 0.5), xycoords=("data", "axes fraction"),
            xytext=(-3, 0), textcoords="offset points", rotation=90, ha="right", va="center",
            color=colours["plain"], fontsize=9.5,
        )  # fmt: skip
    named(axes, colours)


def limited(story: Story) -> bool:
    """Whether the limit of the retain loss is near enough to be in the picture."""
    return story.limit is not None and story.limit < 3 * _furthest(story)


def _furthest(story: Story) -> float:
    return max(LEAST, story.end[1], *(r for _, _, r in story.kept))


def _bounds(story: Story) -> tuple[float, float]:
    """The largest retain and forget loss of the picture: all that was kept, the limits, and of what
    was given up no more than leaves room for that."""
    right = max(_furthest(story), story.limit or 0.0) if limited(story) else _furthest(story)
    top = max(story.target or 0.0, story.end[0], *(f for _, f, _ in story.kept))
    lost = [(min(r, 1.3 * right), min(f, 1.3 * top)) for _, f, r in story.given_up]
    far = [max(own) for own in zip(*lost, (right, top), strict=True)]
    return 1.14 * far[0], 1.14 * far[1]


def level(axes: Axes, value: float, text: str, colours: Colours) -> None:
    """A dotted line across, named at its right end."""
    axes.axhline(value, color=colours["muted"], lw=1.1, ls=DOTS)
    axes.annotate(
        text, (1, value), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", ha="right", va="bottom", color=colours["muted"], fontsize=9.5,
    )  # fmt: skip


def named(axes: Axes, colours: Colours) -> None:
    """Names of the axes of a path, and which corner is the good one."""
    axes.set_xlabel("retain loss, nats a token", loc="right", color=colours["muted"], labelpad=1)
    axes.set_ylabel("forget loss, nats a token", color=colours["muted"])
    axes.annotate(
        "↖ better", (1, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
        ha="right", va="bottom", color=colours["ink"], fontsize=10,
    )  # fmt: skip
    frame(axes, colours)


def _name(
    axes: Axes, text: str, at: tuple[float, float], right: float, color: str, *, rise: float
) -> None:
    """A name beside a point, or `rise` points above it, on the side that has room."""
    left = at[0] > 0.75 * right
    aside = 4 if rise else 9
    axes.annotate(
        text, at, xytext=(-aside if left else aside, rise or 3), textcoords="offset points",
        ha="right" if left else "left", va="bottom" if rise else "center", color=color,
        weight="bold", fontsize=10,
    )  # fmt: skip


def losses(axes: Axes, story: Story, colours: Colours) -> None:
    """Both losses by step."""
    for at, (name, role, dash) in enumerate(
        (
            ("forget, up is good", "private", "-"),
            ("retain, down is good", "plain", (0, (5, 2))),
        ),
        start=1,
    ):
        steps, values = [one[0] for one in story.kept], [one[at] for one in story.kept]
        axes.plot(steps, values, color=colours[role], lw=1.9, ls=dash, label=name)
        if lost := story.given_up:
            steps, values = [one[0] for one in lost], [one[at] for one in lost]
            axes.plot(steps, values, color=colours[role], lw=0.9, ls=dash, marker="x", ms=3.5)
    most = max(max(one[1:]) for one in story.kept)
    lost_most = max((max(one[1:]) for one in story.given_up), default=0.0)
    axes.set_ylim(0, 1.1 * max(most, LEAST, min(lost_most, 3 * most)))
    axes.set_ylabel("nats a token", color=colours["muted"])
    _by_step(axes, colours)
    _legend(axes, colours)


def rate(axes: Axes, story: Story, colours: Colours) -> None:
    """The learning rate by step, logarithmic."""
    steps, values = [s for s, _ in story.rates], [v for _, v in story.rates]
    axes.semilogy(steps, values, color=colours["private"], lw=1.5, drawstyle="steps-post")
    log_ticks(axes.yaxis, values)
    _by_step(axes, colours)


def cosine(axes: Axes, story: Story, colours: Colours) -> None:
    """The cosine of forget and retain gradient by step, from -1 to 1."""
    steps, values = [s for s, _ in story.cosines], [v for _, v in story.cosines]
    axes.axhline(0, color=colours["muted"], lw=0.8)
    few = {"marker": "o", "ms": 3} if len(steps) < 30 else {}
    axes.plot(steps, values, color=colours["private"], lw=1.3, **few)
    axes.set_ylim(-1, 1)
    axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    _by_step(axes, colours)


def bars(
    axes: Axes, before: Mapping[str, float], after: Mapping[str, float], colours: Colours
) -> None:
    """Every score after as a bar from 0 to 1, before as a ring: higher is better for all."""
    lines = arranged(list(before))
    places = {name: -place for place, (name, _) in enumerate(lines) if name}
    at = [places[name] for name in before]
    axes.barh(at, list(after.values()), height=0.55, color=colours["private"], label="after")
    axes.plot(
        list(before.values()), at, "o", ms=6, mfc="none", mec=colours["brass"], mew=1.7,
        label="before", clip_on=False, zorder=5,
    )  # fmt: skip
    for name, place in places.items():
        axes.annotate(
            f"{before[name]:.2f} → {after[name]:.2f}", (1, place), xytext=(12, 0),
            textcoords="offset points", va="center", color=colours["muted"], fontsize=9,
            annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks([-place for place in range(len(lines))], [text for _, text in lines])
    axes.set_ylim(0.6 - len(lines), 0.4)
    axes.set_xlim(0, 1)
    _legend(axes, colours)
    frame(axes, colours)
    axes.grid(visible=True, axis="x", color=colours["line"], linewidth=0.7)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=9.5, pad=8)
    for label, (name, _) in zip(axes.get_yticklabels(), lines, strict=True):
        if name is None:
            label.set(color=colours["ink"], weight="bold")


def arranged(names: Sequence[str]) -> list[tuple[str | None, str]]:
    """(score, its label) from the top: those with the word "forget", then those with "retain", each
    below a heading, whose score is None."""
    found: list[tuple[str | None, str]] = []
    for word, heading in (("forget", "forgotten"), ("retain", "retained")):
        found.append((None, heading))
        own = [name for name in names if word in name.split()]
        found += [(n, " ".join(part for part in n.split() if part != word)) for n in own]
    return found


def bars_height(names: Sequence[str]) -> float:
    """Inches for `bars` of these scores."""
    return 0.85 + ROW * len(arranged(names))


def _by_step(axes: Axes, colours: Colours) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(left=0)
    axes.set_xlabel("step", loc="right", color=colours["muted"], labelpad=1)
    frame(axes, colours)


def _legend(axes: Axes, colours: Colours) -> None:
    """Above the picture, where no curve can be."""
    axes.legend(
        frameon=False, labelcolor=colours["muted"], fontsize=9.5, loc="lower left",
        bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1, borderpad=0.2, handlelength=1.6,
        columnspacing=1.4,
    )  # fmt: skip
