"""Exact copies between public, private and evaluation rows."""

from __future__ import annotations

import numpy as np
import pytest

from steelyard.data.disjoint import overlap, refuse_overlap

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    "rows", [IMAGES, IMAGES / np.float32(255), [f"row {i}" for i in range(30)]]
)
def test_copies_are_counted_wherever_they_stand(rows):
    assert overlap(rows[:10], rows[10:]) == 0
    assert overlap(rows[:10], rows[8:]) == 2
    assert overlap(rows[::-1], rows[5:9]) == 4
    assert overlap(rows, rows) == 30
    assert overlap(rows[:0], rows) == overlap(rows, rows[:0]) == 0


def test_a_copy_in_the_public_part_counts_again():
    assert overlap(["a", "b", "a"], ["a", "a", "c"]) == 2


def test_one_value_of_a_row_is_enough_to_differ():
    other = IMAGES.copy()
    other[3, 0, 0, 0] ^= 1
    assert overlap(IMAGES, other) == 29


def test_the_two_zeros_are_equal():
    assert overlap(np.array([[0.0, 1.0]]), np.array([[-0.0, 1.0]])) == 1


def test_memory_order_does_not_matter():
    assert overlap(np.asfortranarray(IMAGES), IMAGES) == 30
    assert overlap(IMAGES[:, ::-1], np.ascontiguousarray(IMAGES[:, ::-1])) == 30


def test_rows_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"public rows are float32 \[4, 4, 1\], the others uint8"):
        overlap(IMAGES.astype(np.float32), IMAGES)
    with pytest.raises(ValueError, match=r"others uint8 \[4, 4, 1\]"):
        overlap(["a"], IMAGES)
    with pytest.raises(ValueError, match=r"found list: write tensor\.numpy"):
        overlap([1, 2], ["a"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="found str"):
        overlap("a text, not a list", ["a"])


def test_an_overlap_is_refused_with_its_count_and_name():
    refuse_overlap(["a", "b"], ["c"], "private rows")
    with pytest.raises(ValueError, match=r"^1 of 2 public rows are private rows too, [^\n]*$"):
        refuse_overlap(["a", "b"], ["b", "c"], "private rows")
    with pytest.raises(ValueError, match=r"^2 of 2 public rows are test rows too"):
        refuse_overlap(["a", "b"], ["b", "a"], "test rows")
