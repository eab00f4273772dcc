"""Filters by the names of the command line: name[:value][,key=value ...].

| text | filter |
|---|---|
| doppler:0.9 | first order, phi = 0.9 |
| doppler:0.8,order=2 | two of them in a row |
| doppler:cutoff=0.02,order=2,kind=butter | designed for a cut-off, in cycles per step |
| disk:0.7 | gain kappa = 0.7, one evaluation |
| disk:0.7,look_ahead=0.5 | two evaluations |
| dice:1,accounting=paper | error feedback with rho = R2 / R1 = 1: a mechanism, before all filters |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from steelyard.filters.disk import Disk
from steelyard.filters.doppler import Doppler
from steelyard.types import Filter

_OPTIONS = {
    "doppler": ("phi", {"phi": float, "order": int, "cutoff": float, "kind": str}),
    "disk": ("gain", {"gain": float, "look_ahead": float}),
    "dice": ("feedback", {"feedback": float, "accounting": str, "largest": float}),
}


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a text asks for, its numbers read."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    text: str = ""


def read(text: str) -> Named:
    """Raises ValueError for an unknown name or option, and for a value that is none."""
    name, _, rest = text.partition(":")
    if name not in _OPTIONS:
        raise ValueError(
            f"unknown filter {name!r} in {text!r}: choose one of {', '.join(_OPTIONS)}"
        )
    first, kinds = _OPTIONS[name]
    options: dict[str, Any] = {}
    for position, part in enumerate(part for part in rest.split(",") if part):
        key, equals, value = part.partition("=")
        if not equals and position == 0:
            key, value = first, part
        if key not in kinds:
            raise ValueError(
                f"filter {text!r}: no option {key!r}; {name} has {', '.join(kinds)}, as in "
                f"{name}:0.5,{list(kinds)[-1]}=..."
            )
        try:
            options[key] = kinds[key](value)
        except ValueError:
            kind = "a whole number" if kinds[key] is int else "a number"
            raise ValueError(f"filter {text!r}: {key} must be {kind}, found {value!r}") from None
    return Named(name=name, options=options, text=text)


def make_filter(named: Named) -> Filter:
    """The filter of a text. Raises ValueError, one line, for values out of range."""
    options = dict(named.options)
    try:
        if named.name == "disk":
            return Disk(**options)
        if named.name == "doppler":
            return _doppler(options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"filter {named.text!r}: {error}") from None
    raise ValueError(
        f"filter {named.text!r} adds noise of its own and comes first, before every other filter"
    )


def _doppler(options: dict[str, Any]) -> Doppler:
    if ("phi" in options) == ("cutoff" in options):
        raise ValueError("give phi, as in doppler:0.9, or a cut-off, as in doppler:cutoff=0.02")
    if "cutoff" in options:
        return Doppler.design(**options)
    if "kind" in options:
        raise ValueError("kind goes with a cut-off, as in doppler:cutoff=0.02,kind=bessel")
    return Doppler.cascade(options["phi"], options.get("order", 1))
