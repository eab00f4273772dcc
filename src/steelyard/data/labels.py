"""Labels as a file has them (numbers or words) to class numbers 0..C-1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .suggest import listed, short

Where = Callable[[int], str]


def encode(
    train: Sequence[object], test: Sequence[object] | None, *, where: Where, where_test: Where
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Class numbers int64 [n] of both parts and the class names.

    A column in which most values are numbers must hold whole numbers 0..C-1 or 1..C without gaps,
    where C is how many different ones `train` has; any other column holds words, sorted.
    `where(i)` names the place of value i in messages ("reviews.csv, line 12").
    Raises: ValueError, one line, for an empty, non-integer, negative or out-of-range label, a
    single class, and a test label that `train` lacks.
    """
    numeric = sum(_number(value) is not None for value in train) * 2 >= len(train)
    read = _whole if numeric else _word
    values = [read(value, where, i) for i, value in enumerate(train)]
    names = sorted(set(values))  # type: ignore[type-var]
    if len(names) < 2:
        raise ValueError(
            f"{where(0)}: every label is {short(names[0]) if names else 'missing'}: "
            "two classes are needed at least"
        )
    if len(names) > 20 and 2 * len(names) > len(values):
        raise ValueError(
            f"{where(0)}: {len(names)} different labels in {len(values)} rows: "
            "this is no label column, name the right one"
        )
    if numeric:
        _check_range(values, names, where)
    number = {name: k for k, name in enumerate(names)}
    train_y = np.array([number[value] for value in values], dtype=np.int64)
    classes = tuple(str(name) for name in names)
    if test is None:
        return train_y, None, classes
    test_y = np.empty(len(test), dtype=np.int64)
    for i, raw in enumerate(test):
        value = read(raw, where_test, i)
        if value not in number:
            raise ValueError(
                f"{where_test(i)}: label {short(value)} does not occur in training, "
                f"where there are {listed(classes)}"
            )
        test_y[i] = number[value]
    return train_y, test_y, classes


def _number(value: object) -> float | None:
    if isinstance(value, (bool, int, float)):
        return float(value) if abs(value) < 2**53 else np.inf
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _whole(value: object, where: Where, i: int) -> int:
    _check_present(value, where, i)
    number = _number(value)
    if number is None or not np.isfinite(number) or number != int(number):
        raise ValueError(
            f"{where(i)}: label {short(value)} is not a whole number, as the others are"
        )
    if number < 0:
        raise ValueError(f"{where(i)}: label {short(value)} is negative: labels count from 0")
    return int(number)


def _word(value: object, where: Where, i: int) -> str:
    _check_present(value, where, i)
    if not isinstance(value, (str, bool, int, float)):
        raise ValueError(f"{where(i)}: label {short(value)} is neither a number nor a word")
    return str(value)


def _check_present(value: object, where: Where, i: int) -> None:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{where(i)}: the label is empty: fill it in or remove the row")


def _check_range(values: Sequence[object], names: list, where: Where) -> None:
    first, count = names[0], len(names)
    if first in (0, 1) and names[-1] == first + count - 1:
        return
    start = 1 if first == 1 else 0
    i = next(i for i, value in enumerate(values) if value > start + count - 1)  # type: ignore[operator]
    raise ValueError(
        f"{where(i)}: label {values[i]} is out of range: {count} different labels must be "
        f"{start}..{start + count - 1} without gaps (found {listed(names, 6)}); "
        "or write them as words"
    )
