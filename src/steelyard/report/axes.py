"""Ticks of logarithmic axes that a reader can use: few, at round numbers, never on each other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis

FEW = 5  # values that are all labelled
NEAR = 0.12  # of an axis: labels nearer than this may touch


def log_ticks(axis: Axis, values: Iterable[float], *, exact: bool = False) -> None:
    """Label a logarithmic axis over `values`: (exact) those themselves where they are few and
    apart; powers of ten over two decades or more; else 1, 2, 5, or over a small factor round
    numbers.

    Values that are not positive and finite are left out; without any, nothing is changed.
    """
    from matplotlib import ticker

    found = sorted({v for v in values if v > 0 and math.isfinite(v)})
    if not found:
        return
    span = math.log10(found[-1] / found[0])
    gaps = [math.log10(b / a) for a, b in pairwise(found)]
    if exact and len(found) <= FEW and (not gaps or min(gaps) > NEAR * span):
        axis.set_major_locator(ticker.FixedLocator(found))
    elif span >= 2:
        axis.set_major_locator(ticker.LogLocator(numticks=6))
    elif span >= 0.7:
        axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    else:
        axis.set_major_locator(ticker.MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    powers = span >= 3 or found[0] < 1e-4 or found[-1] >= 1e5
    axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: tick(v, powers=powers)))
    axis.set_minor_locator(ticker.NullLocator())


def tick(value: float, *, powers: bool) -> str:
    """A tick's label: as it is, or (powers) as matplotlib's mathematics, $2{\\times}10^{-5}$."""
    if not powers or value <= 0:
        return f"{value:,.0f}" if value >= 1e4 else f"{value:,.4g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    lead = f"{value / 10.0**exponent:.3g}"
    ten = f"10^{{{exponent}}}"
    return f"${ten}$" if lead == "1" else f"${lead}{{\\times}}{ten}$"
