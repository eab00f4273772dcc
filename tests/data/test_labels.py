"""Labels as users write them."""

from __future__ import annotations

import numpy as np
import pytest

from steelyard.data.labels import encode


def _encode(train: list, test: list | None = None):
    return encode(
        train, test, where=lambda i: f"a.csv, line {i + 2}", where_test=lambda i: f"b.csv, line {i}"
    )


@pytest.mark.parametrize(
    ("values", "numbers", "classes"),
    [
        (["1", "0", "1"], [1, 0, 1], ("0", "1")),
        ([1, 2, 5, 4, 3], [0, 1, 4, 3, 2], ("1", "2", "3", "4", "5")),
        (["0.0", "1.0"], [0, 1], ("0", "1")),
        ([True, False], [1, 0], ("0", "1")),
        (["pos", "neg", "pos"], [1, 0, 1], ("neg", "pos")),
        (["2 stars", "10 stars"], [1, 0], ("10 stars", "2 stars")),
    ],
)
def test_numbers_from_0_or_1_and_words(values: list, numbers: list, classes: tuple) -> None:
    encoded, _, names = _encode(values)
    np.testing.assert_array_equal(encoded, numbers)
    assert encoded.dtype == np.int64
    assert names == classes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 9999], r"line 4: label 9999 is out of range: 3 different labels must be 0\.\.2"),
        ([1, 2, 4], r"line 4: label 4 is out of range: 3 different labels must be 1\.\.3"),
        ([5, 6], r"line 2: label 5 is out of range"),
        ([0, 1, -1], "line 4: label -1 is negative"),
        (["0", "1", "0.5"], "line 4: label '0.5' is not a whole number"),
        (["0", "1", "cat"], "line 4: label 'cat' is not a whole number"),
        (["0", "1", "nan"], "line 4: label 'nan' is not a whole number"),
        ([0, 1, float("inf")], "line 4: label inf is not a whole number"),
        ([0, 1, 10**400], "not a whole number"),
        (["a", "b", " "], "line 4: the label is empty"),
        ([0, 1, None], "line 4: the label is empty"),
        (["a", "b", ["c"]], "is neither a number nor a word"),
        (["a", "a"], "every label is 'a': two classes"),
        ([0, 0], "every label is 0: two classes"),
        (list(range(50)), "50 different labels in 50 rows: this is no label column"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        _encode(values)
    assert "\n" not in str(error.value)


def test_test_labels_use_the_training_classes() -> None:
    _, test, classes = _encode(["b", "a", "c"], ["c", "c", "b"])
    np.testing.assert_array_equal(test, [2, 2, 1])
    assert classes == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"b\.csv, line 1: label 'd' does not occur in training"):
        _encode(["a", "b"], ["a", "d"])
    with pytest.raises(ValueError, match=r"b\.csv, line 0: label 2 does not occur in training"):
        _encode([0, 1], [2])
