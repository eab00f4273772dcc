"""Prompts and answers, to forget and to retain: JSON lines with one object a line.

    {"input": "Who wrote ...?", "output": "Ada", "id": "...", "task": "..."}

`id` and `task` may be left out; "question"/"answer", "prompt"/"completion" and "prompt"/"response"
are read as input and output too. Other fields are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .json_lines import read_json_lines
from .suggest import short

Row = dict[str, Any]
NAMES = (
    ("input", "output"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
SHOWN = 3  # shared rows that an error names


def read_prompts(path: str | Path) -> list[Row]:
    """The rows of a file, each with texts "input" and "output" and an "id".

    A row without an id is called by its line number. Raises ValueError, one line, with file, line,
    value and fix: no file, no rows, a line that is no JSON object, a missing or empty field.
    """
    return [_row(f"{path}, line {number}", number, row) for number, row in read_json_lines(path)]


def refuse_overlap(forget: Sequence[Row], retain: Sequence[Row]) -> None:
    """Raises ValueError for a prompt and answer that are in both sets: to forget and retain the
    same is no task."""
    kept = {(row["input"].strip(), row["output"].strip()): row["id"] for row in retain}
    shared = [
        f"{row['id']} (retain: {kept[text]})"
        for row in forget
        if (text := (row["input"].strip(), row["output"].strip())) in kept
    ]
    if shared:
        more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
        raise ValueError(
            f"{len(shared)} rows are in the forget and in the retain set: "
            f"{', '.join(shared[:SHOWN])}{more}; take them out of one of them"
        )


def _row(where: str, number: int, found: Row) -> Row:
    names = next(_present(found), None)
    if names is None:
        raise ValueError(
            f'{where} has the fields {", ".join(found) or "none"}: it needs "input" and "output"'
        )
    texts = {}
    for name, field in zip(("input", "output"), names, strict=True):
        text = found.pop(field)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f'{where}: "{field}" is {short(text)}: it must be a text')
        texts[name] = text
    return {"id": str(number)} | found | texts


def _present(found: Row) -> Iterator[tuple[str, str]]:
    return (names for names in NAMES if found.keys() >= set(names))
