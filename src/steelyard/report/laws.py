"""Pictures of the laws of loss and learning rate: a predicted curve; ends against 1/sqrt(T).

Bu, Xu, Mao 2026, arXiv 2602.07145: its Figures of loss curves, and of final losses on lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steelyard.report.plots import LIGHT, drawn_png, frame
from steelyard.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steelyard.plans.curve_law import CurveLaw
    from steelyard.runs.plan_lr import LrPlan


def write_curve(path: str | Path, fit: CurveLaw, *, title: str = "") -> Path:
    """A run's loss, and what the law of its first part says of all of it, as a PNG.

    Raises ValueError, one line, where the file cannot be written.
    """
    return write_atomically(path, _png(lambda axes: _curve(axes, fit), title))


def write_ends(path: str | Path, plan: LrPlan, *, title: str = "") -> Path:
    """The pilots' final losses against 1/sqrt(T), each eta_ref with its line, and the plan's point.

    Raises ValueError, one line, where the file cannot be written.
    """
    return write_atomically(path, _png(lambda axes: _ends(axes, plan), title))


def _curve(axes: Axes, fit: CurveLaw) -> None:
    axes.plot(fit.steps, fit.losses, color=LIGHT["plain"], lw=1.6, label="measured")
    for part, dash, label in ((fit.fitted, "-", "fitted"), (~fit.fitted, (0, (5, 2)), "predicted")):
        if part.any():
            axes.plot(
                fit.steps[part], fit.predicted[part],
                color=LIGHT["private"], lw=1.9, ls=dash, label=label,
            )  # fmt: skip
    if fit.fitted.any() and not fit.fitted.all():
        end = fit.steps[fit.fitted][-1]
        axes.axvline(end, color=LIGHT["brass"], lw=1.1, ls=(0, (2, 2)))
    axes.set_xlabel("step", loc="right", color=LIGHT["muted"], labelpad=1)
    axes.set_ylabel("loss", color=LIGHT["muted"])


def _ends(axes: Axes, plan: LrPlan) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    references: list[float] = []
    for pilot in sorted(plan.pilots, key=lambda p: p.reference):
        if not references or pilot.reference > 1.03 * references[-1]:
            references.append(pilot.reference)
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(references), 2)))
    lines = getattr(plan.forecasts.get("lines"), "lines", {})
    far = 1 / math.sqrt(max(plan.steps, *(p.steps for p in plan.pilots)))
    for reference, color in zip(references, shades, strict=False):
        runs = [p for p in plan.pilots if reference <= p.reference <= 1.03 * reference]
        x = np.array([1 / math.sqrt(p.steps) for p in runs])
        axes.plot(x, [p.loss for p in runs], "o", color=color, ms=4.5, label=f"{reference:.2g}")
        for own, line in lines.items():
            if abs(math.log(own / reference)) < 0.03:
                ends = np.array([far, x.max()])
                axes.plot(ends, line.floor + line.slope * ends, color=color, lw=1.3)
    point = 1 / math.sqrt(plan.steps)
    axes.plot(point, plan.best.loss, marker="*", color=LIGHT["ink"], ms=11, ls="", label="plan")
    if plan.best.loss_interval is not None:
        axes.plot([point, point], plan.best.loss_interval, color=LIGHT["ink"], lw=1.3)
    horizons = sorted({plan.steps, *(p.steps for p in plan.pilots)})
    shown: list[int] = []
    for steps in horizons:  # the longest first on the axis: leave out labels that would overlap
        width = 1 / math.sqrt(horizons[0]) - far
        if not shown or 1 / math.sqrt(shown[-1]) - 1 / math.sqrt(steps) > 0.09 * width:
            shown.append(steps)
    at = {1 / math.sqrt(steps): f"{steps:,}" for steps in shown}
    axes.xaxis.set_major_locator(FixedLocator(list(at)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: at[min(at, key=lambda v: abs(v - x))])
    )
    axes.set_xlabel("steps T, spaced as 1/√T", loc="right", color=LIGHT["muted"], labelpad=1)
    axes.set_ylabel("final loss", color=LIGHT["muted"])
    axes.legend(title="peak × √T")


def _png(draw: Callable[[Axes], None], title: str) -> bytes:
    def framed(axes: Axes, colours: Mapping[str, str]) -> None:
        draw(axes)
        frame(axes, colours)
        legend = axes.get_legend()
        heading = None if legend is None else legend.get_title().get_text()
        legend = axes.legend(title=heading, frameon=False, labelcolor=colours["ink"], fontsize=9)
        legend.get_title().set_color(colours["muted"])

    return drawn_png(framed, title=title, height=1.4)
