"""Named columns of a user's file to a Table: which is text, which is the label, what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .labels import encode
from .split import USER_SHARE, held_out, keys, take
from .suggest import did_you_mean, listed, short
from .table import Table

TEXT_NAMES = ("text", "sentence", "content")
LABEL_NAMES = ("label", "labels", "target")
NO_LABEL = "none"  # label="none": language modelling


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A file's cells by column, and where each row stands in the file."""

    path: str
    unit: str  # "line" or "row"
    cells: dict[str, list]
    places: Sequence[int]  # line or row number of each row

    def where(self, i: int) -> str:
        """``reviews.csv, line 12`` for row i."""
        return f"{self.path}, {self.unit} {self.places[i]}"


def to_table(
    train: Columns, test: Columns | None, *, text: str | None, label: str | None, seed: int
) -> Table:
    """Text with labels, text alone (language modelling), or numeric features with labels.

    Without a test file a tenth of the rows is held out, each by its own content and `seed`.
    Raises: ValueError, one line naming file, line, value and fix.
    """
    text_column = _choose(train, text, TEXT_NAMES, "text")
    label_column = None if label == NO_LABEL else _choose(train, label, LABEL_NAMES, "label")
    train_y, test_y, classes = _labels(train, test, label, label_column, text_column)
    ignored: list[str] = []
    if text_column is not None:
        kind, train_x = "text", _texts(train, text_column, labelled=train_y is not None)
        test_x = None if test is None else _texts(test, text_column, labelled=train_y is not None)
    else:
        kind = "features"
        names, ignored = _numeric(train, label_column)
        train_x = _features(train, names)
        test_x = None if test is None else _features(test, names)
    if test_x is None:
        held = held_out(keys(train_x), share=USER_SHARE, seed=seed)
        if not held.any() or held.all():
            raise ValueError(
                f"{train.path}: no good tenth of {len(held)} rows to hold out (seed {seed}): "
                "give a test file"
            )
        train_x, test_x = take(train_x, ~held), take(train_x, held)
        if train_y is not None:
            train_y, test_y = train_y[~held], train_y[held]
    return Table(
        name=Path(train.path).stem,
        kind=kind,
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        classes=classes,
        source=train.path + (f" (columns not used: {', '.join(ignored)})" if ignored else ""),
        licence="the user's own",
    )


def _choose(
    columns: Columns, named: str | None, candidates: tuple[str, ...], role: str
) -> str | None:
    if named is not None:
        return _column(columns, named, role)
    folded = {name.strip().lower(): name for name in columns.cells}
    return next((folded[name] for name in candidates if name in folded), None)


def _column(columns: Columns, name: str, role: str) -> str:
    if name in columns.cells:
        return name
    hint = did_you_mean(name, columns.cells)
    raise ValueError(
        f"{columns.path}: no {role} column '{name}'{hint} there are {listed(columns.cells)}"
    )


def _labels(
    train: Columns, test: Columns | None, named: str | None, column: str | None, text: str | None
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...]]:
    if column is None:
        if text is not None and (named == NO_LABEL or len(train.cells) == 1):
            return None, None, ()
        none = f", or {NO_LABEL} for language modelling" if text is not None else ""
        raise ValueError(
            f"{train.path}: no label column among {listed(train.cells)}: "
            f"name it with --label COLUMN{none}"
        )
    if column == text:
        raise ValueError(f"{train.path}: '{column}' cannot be both text and label")
    test_values = None if test is None else test.cells[_column(test, column, "label")]
    where_test = train.where if test is None else test.where
    return encode(train.cells[column], test_values, where=train.where, where_test=where_test)


def _texts(columns: Columns, name: str, *, labelled: bool) -> list[str]:
    """The column's texts; blank ones are an error with labels, and left out without."""
    values = columns.cells[_column(columns, name, "text")]
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(
                f"{columns.where(i)}: column '{name}' holds {short(value)}, not text: "
                "name the right one with --text COLUMN"
            )
        if labelled and not value.strip():
            raise ValueError(
                f"{columns.where(i)}: column '{name}' is empty: fill it in or remove the row"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{columns.where(i)}: column '{name}' has half a surrogate pair: remove it"
            ) from None
    return values if labelled else [value for value in values if value.strip()]


def _numeric(columns: Columns, label: str | None) -> tuple[list[str], list[str]]:
    """The columns of numbers (more than half of the cells), and the others, the label left out."""
    rest = [name for name in columns.cells if name != label]
    names = [
        name
        for name in rest
        if 2 * sum(_as_float(value) is not None for value in columns.cells[name])
        > len(columns.places)
    ]
    if not names:
        raise ValueError(
            f"{columns.path}: neither a text column nor numbers among {listed(rest)}: "
            "name the text with --text COLUMN"
        )
    return names, [name for name in rest if name not in names]


def _features(columns: Columns, names: Sequence[str]) -> np.ndarray:
    largest = float(np.finfo(np.float32).max)
    matrix = np.empty((len(columns.places), len(names)), dtype=np.float32)
    for j, name in enumerate(names):
        values = columns.cells[_column(columns, name, "feature")]
        numbers = [_as_float(value) for value in values]
        for i, number in enumerate(numbers):
            if number is None or not -largest <= number <= largest:
                what = "not a number" if number is None else "not a finite 32-bit number"
                raise ValueError(
                    f"{columns.where(i)}, column '{name}': {short(values[i])} is {what}: "
                    "fill in a value or remove the row"
                )
        matrix[:, j] = numbers
    return matrix


def _as_float(value: object) -> float | None:
    if not isinstance(value, (str, int, float)):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return float("inf")
