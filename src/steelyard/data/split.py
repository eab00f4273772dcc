"""Hold-out by content: whether a row is tested depends on that row alone.

    held out  <=>  sha256(salt || row) / 2^256 < share

A shuffled split depends on the number of rows: one more row moves all others, so a privacy
guarantee about the training part would not be one about the file. Here one more row leaves every
other row where it was. Equal rows land on the same side: nothing that was trained on is tested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

USER_SHARE = 0.1  # of a user's file without a test file
PACKAGED_SHARE = 1 / 8  # of a packaged set without a test part


def keys(rows: np.ndarray | Sequence[str]) -> list[bytes]:
    """The bytes that identify each row: UTF-8 of a text, the raw values of an array's row."""
    if isinstance(rows, np.ndarray):
        return [np.ascontiguousarray(row).tobytes() for row in rows]
    return [row.encode("utf-8", "surrogatepass") for row in rows]


def held_out(row_keys: Iterable[bytes], *, share: float, seed: int | None = None) -> np.ndarray:
    """True for the rows of the test part, [n]; `seed` None is the split of the packaged sets.

    Guarantees: element i depends on key i, `share` and `seed` only.
    """
    salt = b"" if seed is None else f"{seed}:".encode()
    bound = int(share * 2**64)
    first = [hashlib.sha256(salt + key).digest()[:8] for key in row_keys]
    return np.array([int.from_bytes(digest, "big") < bound for digest in first], dtype=bool)


def first_of_each(row_keys: Iterable[bytes]) -> np.ndarray:
    """Indices of the rows left when later exact copies of a row are dropped, int64 ascending."""
    seen: dict[bytes, int] = {}
    for i, key in enumerate(row_keys):
        seen.setdefault(key, i)
    return np.fromiter(seen.values(), dtype=np.int64, count=len(seen))


def take(rows: np.ndarray | list[str], which: np.ndarray) -> np.ndarray | list[str]:
    """The rows that `which`, a mask [n] or indices, selects."""
    if isinstance(rows, np.ndarray):
        return rows[which]
    chosen = np.flatnonzero(which) if which.dtype == bool else which
    return [rows[i] for i in chosen]
