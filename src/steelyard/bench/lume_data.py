"""LUME's rows: the public JSON lines, their checks, and small deterministic subsets.

A row is {"id", "input", "output", "task"}. The last three characters of its id are its kind and a
digit, "sc1" (sentence completion) or "qa0" ... (question and answer); what stands before them,
quotation marks and all, names its document. Other fields are let through.
Data: https://github.com/amazon-science/lume-llm-unlearning, Apache-2.0; not part of this package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.data.json_lines import read_json_lines

Row = Mapping[str, Any]
KINDS = ("sc", "qa")
FIELDS = ("id", "input", "output", "task")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a LUME file, checked by `check_rows`, in its order.

    Raises: ValueError in one line for a file that `read_json_lines` or `check_rows` refuses.
    """
    rows = [row for _, row in read_json_lines(path)]
    check_rows(rows, str(path))
    return rows


def read_documents(path: str | Path) -> list[str]:
    """Whole texts for membership inference, from JSON lines.

    Of each object the field "document" (SemEval's attack files) or "text"; of LUME rows the
    sentence-completion ones, input and output joined by a blank.
    Raises: ValueError for an object with none of these.
    """
    texts = []
    for line, row in read_json_lines(path):
        whole = row.get("document", row.get("text"))
        if isinstance(whole, str):
            texts.append(whole)
        elif all(isinstance(row.get(name), str) for name in FIELDS):
            if kind(row) == "sc":
                texts.append(f"{row['input']} {row['output']}")
        else:
            raise ValueError(
                f'{path}, line {line} has no text "document" or "text", and is no LUME row: '
                f"found {', '.join(row) or 'nothing'}"
            )
    if not texts:
        raise ValueError(f"{path} has no sentence-completion rows: give whole documents")
    return texts


def kind(row: Row) -> str:
    """ "sc" or "qa"."""
    return row["id"][-3:-1]


def document(row: Row) -> tuple[str, str]:
    """(task, the id without its last three characters): the document that the row is made of."""
    return row["task"], row["id"][:-3]


def check_rows(rows: Sequence[Row], name: str = "the rows") -> None:
    """Raises ValueError in one line for no rows, missing or empty fields, bad or repeated ids."""
    if not rows:
        raise ValueError(f"{name}: no rows, the set is empty")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        for field in FIELDS:
            if not isinstance(row.get(field), str) or not row[field].strip():
                found = repr(row[field])[:40] if field in row else "missing"
                needs = "a row needs texts id, input, output and task"
                raise ValueError(f'{name}, row {number}: "{field}" is {found}, {needs}')
        if len(row["id"]) < 4 or kind(row) not in KINDS or not row["id"][-1].isdigit():
            raise ValueError(
                f"{name}, row {number}: id {row['id']!r} must end in sc or qa and a digit"
            )
        if row["id"] in seen:
            raise ValueError(f"{name}, row {number}: id {row['id']!r} is there twice, keep one")
        seen.add(row["id"])


def check_sets(forget: Sequence[Row], retain: Sequence[Row]) -> None:
    """Both sets by `check_rows`; no document in both; the same tasks and kinds in both.

    Raises: ValueError in one line.
    """
    check_rows(forget, "forget")
    check_rows(retain, "retain")
    both = {document(row) for row in forget} & {document(row) for row in retain}
    if both:
        task, name = min(both)
        raise ValueError(
            f"{len(both)} documents are in forget and in retain, as {name} of {task}: "
            "it cannot be both, keep each in one"
        )
    tasks = sorted({row["task"] for row in [*forget, *retain]})
    for name, rows in (("forget", forget), ("retain", retain)):
        cells = {(row["task"], kind(row)) for row in rows}
        for task in tasks:
            for one in KINDS:
                if (task, one) not in cells:
                    raise ValueError(
                        f"{name} has no {one} rows of {task}: the aggregate needs sc and qa rows "
                        "of every task in both sets"
                    )


def subset(rows: Sequence[Row], each: int, seed: int = 0) -> list[Row]:
    """At most `each` rows of every task and kind, drawn by `seed`; in the order of `rows`.

    Guarantees: the same rows whatever their order; a larger `each` contains a smaller one's.
    Raises: ValueError for `each` below 1.
    """
    if each < 1:
        raise ValueError(f"rows per task and kind is {each}: use at least 1")
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cells.setdefault((row["task"], kind(row)), []).append(row["id"])
    chosen: set[str] = set()
    for cell in sorted(cells):
        ids = sorted(cells[cell])
        digest = hashlib.sha256(f"{seed}:{cell}".encode()).digest()
        order = np.random.default_rng(int.from_bytes(digest[:8], "little")).permutation(len(ids))
        chosen.update(ids[i] for i in order[:each])
    return [row for row in rows if row["id"] in chosen]


def counts(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """task -> {"documents", "sc", "qa"}: how many."""
    found: dict[str, dict[str, int]] = {}
    for task in sorted({row["task"] for row in rows}):
        own = [row for row in rows if row["task"] == task]
        found[task] = {"documents": len({document(row) for row in own})}
        found[task] |= {one: sum(kind(row) == one for row in own) for one in KINDS}
    return found


def fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows, whatever their order: which version of the data was used."""
    lines = sorted(json.dumps([row[name] for name in FIELDS]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
