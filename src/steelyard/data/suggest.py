"""Words for error messages: what was meant, and what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``": did you mean 'x'?"`` for the closest of `choices`, or just the colon."""
    folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return f": did you mean '{folded[close[0]]}'?" if close else ":"


def listed(names: Iterable[str], limit: int = 12) -> str:
    """``'a', 'b', 'c'``, cut after `limit` names."""
    names = [repr(str(name)) for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def short(value: object, limit: int = 60) -> str:
    """The value as Python shows it, on one line and cut after `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def reason(error: BaseException) -> str:
    """The first line of what a library raised."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
