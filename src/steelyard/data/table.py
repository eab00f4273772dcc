"""One data set in memory: what every reader returns and every training loop takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KINDS = ("image", "text", "features")


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Training and test rows with their labels.

    Shapes: images uint8 [n, H, W, C] with C 1 or 3; text a list of n str; features float32 [n, d];
    labels int64 [n] in 0..len(classes)-1, or None with ``classes == ()`` for language modelling.
    Guarantees: both parts non-empty and alike, features finite, at least two classes, and no class
    in the test part that training never saw.
    Raises: ValueError, one line, when a reader or a caller breaks one of these.
    """

    name: str
    kind: str
    train_x: np.ndarray | list[str]
    train_y: np.ndarray | None
    test_x: np.ndarray | list[str]
    test_y: np.ndarray | None
    classes: tuple[str, ...]
    source: str  # where it came from, with version or path: for the report
    licence: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"data set '{self.name}': kind '{self.kind}' is none of {KINDS}")
        _check_rows(self.name, "training", self.kind, self.train_x)
        _check_rows(self.name, "test", self.kind, self.test_x)
        if isinstance(self.train_x, np.ndarray) and isinstance(self.test_x, np.ndarray):
            train, test = self.train_x.shape[1:], self.test_x.shape[1:]
            if train != test:
                raise ValueError(
                    f"data set '{self.name}': test rows have shape {test}, training rows {train}"
                )
        if self.train_y is None or self.test_y is None:
            if self.kind != "text" or self.classes or self.train_y is not self.test_y:
                raise ValueError(
                    f"data set '{self.name}': both parts need labels (only text may have none)"
                )
            return
        _check_labels(self.name, "training", self.train_y, len(self.train_x), self.classes)
        _check_labels(self.name, "test", self.test_y, len(self.test_x), self.classes)
        _check_classes(self.name, self.train_y, self.test_y, self.classes)

    @property
    def n(self) -> int:
        """Number of training rows."""
        return len(self.train_x)

    @property
    def n_test(self) -> int:
        """Number of test rows."""
        return len(self.test_x)


def _check_rows(name: str, part: str, kind: str, rows: np.ndarray | Sequence[str]) -> None:
    if len(rows) == 0:
        raise ValueError(f"data set '{name}': the {part} part is empty")
    if kind == "text":
        if isinstance(rows, np.ndarray) or not isinstance(rows[0], str):
            raise ValueError(f"data set '{name}': {part} text must be a list of str")
        return
    if not isinstance(rows, np.ndarray):
        raise ValueError(f"data set '{name}': {part} rows of kind '{kind}' must be an array")
    if kind == "image":
        if rows.dtype != np.uint8 or rows.ndim != 4 or rows.shape[3] not in (1, 3):
            raise ValueError(
                f"data set '{name}': {part} images must be uint8 [n, H, W, 1 or 3], "
                f"found {rows.dtype} {list(rows.shape)}"
            )
        return
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(
            f"data set '{name}': {part} features must be float32 [n, d], "
            f"found {rows.dtype} {list(rows.shape)}"
        )
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise ValueError(
            f"data set '{name}': {part} row {row}, feature {column} is {rows[row, column]}: "
            "remove the row or fill the value"
        )


def _check_labels(
    name: str, part: str, labels: np.ndarray, n: int, classes: tuple[str, ...]
) -> None:
    if labels.shape != (n,) or labels.dtype != np.int64:
        raise ValueError(
            f"data set '{name}': {part} labels must be int64 [{n}], "
            f"found {labels.dtype} {list(labels.shape)}"
        )
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"data set '{name}': {part} row {row} has label {labels[row]}, "
            f"out of range 0..{len(classes) - 1}"
        )


def _check_classes(
    name: str, train: np.ndarray, test: np.ndarray, classes: tuple[str, ...]
) -> None:
    seen = np.unique(train)
    if len(seen) < 2:
        raise ValueError(
            f"data set '{name}': every training row is of class '{classes[seen[0]]}': "
            "two classes are needed at least"
        )
    unseen = np.setdiff1d(test, seen)
    if len(unseen):
        raise ValueError(
            f"data set '{name}': class '{classes[unseen[0]]}' occurs in the test part but never in "
            "training: add training rows of it, or give a test file"
        )
