"""Public rows that also stand among the private or the evaluation rows.

A private row that is also used as a public one is not protected at all, whatever epsilon says, and
a public row that is also an evaluation row is trained on before it is tested.

Compared are contents, byte by byte, by their sha256. Near copies (another crop, another spelling,
the same person in another row) are not found: look for them where rows can have such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from .split import keys

Rows: TypeAlias = "np.ndarray | Sequence[str]"


def overlap(public: Rows, others: Rows) -> int:
    """How many public rows have an exact copy among the others.

    Shapes: arrays [n, ...] of one type and row shape, or sequences of str. Every public row counts,
    copies within the public rows included. 0.0 and -0.0 are one value.
    Raises: ValueError, one line, when the two could not be equal in any row, for their form.
    """
    mine, theirs = _form(public), _form(others)
    if mine != theirs and len(public) and len(others):
        raise ValueError(
            f"public rows are {mine}, the others {theirs}: compare both in the same form, before "
            "any augmentation"
        )
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(public))


def refuse_overlap(public: Rows, others: Rows, what: str) -> None:
    """Raises ValueError, one line with the count, when a public row is one of the others too.

    what: the others' name in that line, such as "private training rows".
    """
    found = overlap(public, others)
    if found:
        raise ValueError(
            f"{found} of {len(public)} public rows are {what} too, by their content: public rows "
            "are not protected and not fit for testing, so take them out of one of the two"
        )


def _form(rows: Rows) -> str:
    if isinstance(rows, np.ndarray):
        return f"{rows.dtype} {list(rows.shape[1:])}"
    if isinstance(rows, str) or not all(isinstance(row, str) for row in rows):
        raise ValueError(
            f"rows must be an array or a list of str, found {type(rows).__name__}: write "
            "tensor.numpy() for a tensor"
        )
    return "text"


def _digests(rows: Rows) -> list[bytes]:
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "fc":
        rows = rows + rows.dtype.type(0)  # -0.0 becomes 0.0
    return [hashlib.sha256(key).digest() for key in keys(rows)]
