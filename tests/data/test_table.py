"""The promises of Table: each broken one is a one-line ValueError."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from steelyard.data.table import Table


def _fields(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": "t",
        "kind": "features",
        "train_x": np.zeros((4, 2), np.float32),
        "train_y": np.array([0, 1, 0, 1]),
        "test_x": np.zeros((2, 2), np.float32),
        "test_y": np.array([0, 1]),
        "classes": ("a", "b"),
        "source": "here",
        "licence": "own",
    }
    return fields | changes


NAN = np.array([[0, 0], [0, 0], [0, np.nan], [0, 0]], np.float32)
IMAGES = np.zeros((4, 5, 5, 1), np.uint8)
BROKEN = {
    "kind": ({"kind": "sound"}, "kind 'sound'"),
    "empty test": ({"test_x": np.zeros((0, 2), np.float32)}, "test part is empty"),
    "width": ({"test_x": np.zeros((2, 3), np.float32)}, r"test rows have shape \(3,\)"),
    "dtype": ({"train_x": np.zeros((4, 2))}, "found float64"),
    "nan": ({"train_x": NAN}, "row 2, feature 1 is nan"),
    "list": ({"train_x": [1.0, 2.0]}, "must be an array"),
    "negative": ({"train_y": np.array([0, 1, -1, 1])}, "row 2 has label -1"),
    "range": ({"test_y": np.array([0, 2])}, r"row 1 has label 2, out of range 0\.\.1"),
    "length": ({"train_y": np.array([0, 1])}, r"must be int64 \[4\]"),
    "label type": ({"train_y": np.array([0.0, 1, 0, 1])}, "found float64"),
    "one class": ({"train_y": np.zeros(4, np.int64)}, "every training row is of class 'a'"),
    "unseen": (
        {"classes": ("a", "b", "c"), "test_y": np.array([0, 2])},
        "class 'c' occurs in the test part but never",
    ),
    "no labels": ({"train_y": None, "test_y": None, "classes": ()}, "both parts need labels"),
    "half labels": ({"test_y": None}, "both parts need labels"),
    "image type": ({"kind": "image"}, "images must be uint8"),
    "image channels": (
        {"kind": "image", "train_x": IMAGES.repeat(2, 3), "test_x": IMAGES[:2]},
        r"found uint8 \[4, 5, 5, 2\]",
    ),
    "text": ({"kind": "text"}, "must be a list of str"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_broken_promise_is_one_line(case: str) -> None:
    changes, message = BROKEN[case]
    with pytest.raises(ValueError, match=message) as error:
        Table(**_fields(**changes))
    assert "\n" not in str(error.value)


def test_whole_tables_pass() -> None:
    assert Table(**_fields()).n == 4
    image = Table(**_fields(kind="image", train_x=IMAGES, test_x=IMAGES[:2]))
    assert (image.n, image.n_test) == (4, 2)
    unlabelled = {"train_y": None, "test_y": None, "classes": ()}
    assert Table(**_fields(kind="text", train_x=["a"], test_x=["b"], **unlabelled)).n == 1
