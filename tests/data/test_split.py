"""Hold-out by content: what the guarantee says."""

from __future__ import annotations

import numpy as np

from steelyard.data.split import first_of_each, held_out, keys, take

KEYS = keys([f"row {i}" for i in range(5000)])


def test_a_row_does_not_move_when_others_come_or_go() -> None:
    whole = held_out(KEYS, share=0.1, seed=3)
    np.testing.assert_array_equal(held_out(KEYS[1::2], share=0.1, seed=3), whole[1::2])
    np.testing.assert_array_equal(held_out(KEYS[::-1], share=0.1, seed=3), whole[::-1])


def test_share_and_seed() -> None:
    one, other = (held_out(KEYS, share=0.1, seed=seed) for seed in (0, 1))
    # 5,000 draws of 0.1: standard deviation 21
    assert abs(int(one.sum()) - 500) < 5 * 21
    assert 0 < (one & other).sum() < 100  # independent: 50 expected
    assert (held_out(KEYS, share=0.1) != one).any()


def test_equal_rows_land_on_the_same_side() -> None:
    held = held_out(KEYS + KEYS, share=0.3, seed=0)
    np.testing.assert_array_equal(held[:5000], held[5000:])


def test_first_of_each_drops_later_copies() -> None:
    np.testing.assert_array_equal(first_of_each([b"a", b"b", b"a", b"c", b"b"]), [0, 1, 3])


def test_keys_of_arrays_are_their_values() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert keys(rows) == [rows[0].tobytes(), rows[1].tobytes()]
    assert keys(rows[:, ::-1])[0] == rows[0, ::-1].copy().tobytes()


def test_take_by_mask_and_by_index() -> None:
    mask, index = np.array([True, False, True]), np.array([0, 2])
    assert take(["a", "b", "c"], mask) == take(["a", "b", "c"], index) == ["a", "c"]
    np.testing.assert_array_equal(take(np.arange(3), mask), [0, 2])
