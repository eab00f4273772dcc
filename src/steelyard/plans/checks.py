"""One-line ValueErrors for numbers that users give: what, the value found, the fix."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence


def real(name: str, value: object, *, above: float | None = None, fix: str) -> float:
    """`value` as a finite float > `above`; else a one-line ValueError that ends in `fix`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, found {value!r}: {fix}")
    if not math.isfinite(value) or (above is not None and value <= above):
        bound = "" if above is None else f" above {above:g}"
        raise ValueError(f"{name} must be a finite number{bound}, found {value}: {fix}")
    return float(value)


def whole(name: str, value: object, *, least: int, fix: str) -> int:
    """`value` as an int >= `least`; else a one-line ValueError that ends in `fix`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, found {value}: {fix}")
    return int(value)


def chosen(name: str, value: object, options: Sequence[str]) -> str:
    """`value` if it is one of `options`; else a one-line ValueError."""
    if value not in options:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(options)}")
    return str(value)


def fraction(name: str, value: object, *, fix: str) -> float:
    """`value` as a float in (0, 1); else a one-line ValueError that ends in `fix`."""
    number = real(name, value, above=0.0, fix=fix)
    if number >= 1.0:
        raise ValueError(f"{name} must be below 1, found {number:g}: {fix}")
    return number
