"""Other answers to the prompts of the forget set, for objectives that need pairs.

Both functions return new rows in the order of the old ones, with another "output"; everything else
of a row is kept. The draw is a function of the seed and the rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steelyard.generators import fresh_root, generator

IDK_ANSWERS = (
    "I don't know.",
    "I do not know the answer to that.",
    "Sorry, I don't know.",
    "I'm afraid I can't tell you that.",
    "I have no information about this.",
    "That is something I don't know.",
    "I can't answer this question.",
    "I was never told about that.",
    "I'm not certain, so I would rather not say.",
    "My knowledge does not cover this.",
    "I don't have an answer for you.",
    "This is not known to me.",
    "I'm unable to say.",
    "I have nothing to say about this subject.",
    "No idea, sorry.",
    "I would only be guessing.",
    "I can't help with this one.",
    "I don't recall anything of that kind.",
    "Regrettably, I don't know this.",
    "I lack the facts to answer.",
    "I'm not familiar with this.",
    "Please ask someone who knows; I don't.",
    "I haven't learnt about that.",
    "There is nothing I can tell you here.",
)


def idk_rows(rows: Sequence[Mapping[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """The rows with an answer of `IDK_ANSWERS` each, drawn uniformly."""
    draw = generator(fresh_root(seed), "refusals")
    picks = torch.randint(len(IDK_ANSWERS), (len(rows),), generator=draw).tolist()
    return [{**row, "output": IDK_ANSWERS[pick]} for row, pick in zip(rows, picks, strict=True)]


def swapped_rows(
    rows: Sequence[Mapping[str, Any]], *, seed: int, within: str | None = None
) -> list[dict[str, Any]]:
    """The rows with the answer of another row each, drawn uniformly from all that read differently.

    A stand-in of our own for alternates written by a language model: true of somebody else, wrong
    here. within: a field that both rows must share ("task"), so that a date answers a date.
    Raises: ValueError naming a row for which no other answer exists, or that lacks the field.
    """
    draw = generator(fresh_root(seed), "swapped answers")
    for number, row in enumerate(rows):
        if within is not None and within not in row:
            raise ValueError(f"row {number} has no field {within!r}: name one that all rows have")
    groups: dict[Any, set[str]] = {}
    for row in rows:
        groups.setdefault(row[within] if within else None, set()).add(row["output"])
    answers = {key: sorted(group) for key, group in groups.items()}
    swapped = []
    for number, row in enumerate(rows):
        group = answers[row[within] if within else None]
        if len(group) < 2:
            where = f" among those of {within} {row[within]!r}" if within else ""
            raise ValueError(f"row {number}: no other answer exists{where}")
        pick = int(torch.randint(len(group) - 1, (), generator=draw))
        pick += pick >= group.index(row["output"])  # all but its own, each as likely
        swapped.append({**row, "output": group[pick]})
    return swapped
