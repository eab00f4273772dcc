"""Inner products and sums of gradients: against float64 on flat vectors."""

from __future__ import annotations

import pytest
import torch

from steelyard.rows.gram import PIECE, combine, cosines, gram, pieces, totals

SHAPES = [(3, 5), (PIECE + 17,), (), (0, 4), (2, 3, 2)]


def make(k=3, dtype=torch.float32, size=1.0):
    return [[(torch.randn(s) * size * (i + 1)).to(dtype) for s in SHAPES] for i in range(k)]


def flat(row):
    return torch.cat([t.double().reshape(-1) for t in row])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gram_equals_float64_on_flat_vectors(dtype):
    rows = make(dtype=dtype, size=30.0)  # squares overflow float16's sums
    g = torch.stack([flat(row) for row in rows])
    scales = [1.0, 0.5, 0.1]
    expected = torch.diag(torch.tensor(scales).double()) @ (g @ g.T)
    expected = expected @ torch.diag(torch.tensor(scales).double())
    found = gram(rows, scales)
    assert found.dtype == torch.float64
    spread = expected.diagonal().sqrt()
    assert ((found - expected).abs() / (spread[:, None] * spread)).max() < 3e-7
    torch.testing.assert_close(gram(rows), g @ g.T, rtol=1e-5, atol=1e-5 * float(g.square().sum()))


def test_missing_gradients_are_zero():
    rows = make(2)
    full = [[t.clone() for t in row] for row in rows]
    rows[0][1], full[0][1] = None, torch.zeros_like(full[0][1])
    rows[1][0], full[1][0] = None, torch.zeros_like(full[1][0])
    torch.testing.assert_close(gram(rows), gram(full))
    rows[0][4] = rows[1][4] = None
    found = combine(rows, [2.0, -3.0])
    assert found[4] is None
    for i in range(4):
        torch.testing.assert_close(found[i], 2 * full[0][i] - 3 * full[1][i])


def test_combine_writes_into_the_last_row_and_rounds_half_precision_once():
    rows = make(2)
    last = rows[1]
    found = combine(rows, [0.5, 1.0])
    assert all(a is b for a, b in zip(found, last, strict=True))
    one, other = torch.randn(2, 500).to(torch.bfloat16)
    exact = (0.3 * one.double() - 0.29 * other.double()).to(torch.bfloat16)
    twice = (0.3 * one) + (-0.29 * other)  # what rounding every term would give
    (found,) = combine([[one.clone()], [other.clone()]], [0.3, -0.29])
    assert int((found != exact).sum()) < 10  # ties, which float32 decides otherwise than float64
    assert int((twice != exact).sum()) > 50


def test_combine_in_another_memory_order():
    for a, b in (
        (torch.randn(5, 4).t(), torch.randn(4, 5)),
        (torch.randn(4, 5), torch.ones(5, 4).t()),
    ):
        expected = 2 * a + 3 * b
        (found,) = combine([[a], [b]], [2.0, 3.0])
        assert found is b
        torch.testing.assert_close(found, expected)


def test_rows_in_another_memory_order():
    a = torch.randn(4, 5).t()
    b = torch.randn(5, 4)
    expected = float((a.double() * b.double()).sum())
    assert float(gram([[a], [b]])[0, 1]) == pytest.approx(expected, rel=1e-5)


def test_cosines():
    c = cosines(torch.tensor([[4.0, -6.0, 0.0], [-6.0, 9.0, 0.0], [0.0, 0.0, 0.0]]).double())
    assert c[0, 1] == -1
    assert c[0, 0] == 1
    assert c[0, 2].isnan()


def test_pieces_hold_every_number_once_beside_its_partners():
    """Small columns of a kind are joined, large ones cut; what is missing stays missing."""
    column = {
        "both": (torch.ones(3), torch.full((3,), 2.0)),
        "first": (torch.full((2, 2), 3.0), None),
        "none": (None, None),
        "large": (torch.full((PIECE + 5,), 4.0), torch.full((PIECE + 5,), 5.0)),
        "again": (torch.full((5,), 6.0), torch.full((5,), 7.0)),
        "wide": (torch.full((4,), 8.0).double(), torch.full((4,), 9.0)),
    }
    found = list(pieces(column.values()))
    assert all(t is None or t.dim() == 1 for piece in found for t in piece)
    pairs: dict[tuple[float, float | None], int] = {}
    for a, b in found:
        assert a is not None
        others = [None] * len(a) if b is None else b.tolist()
        for pair in zip(a.tolist(), others, strict=True):
            pairs[pair] = pairs.get(pair, 0) + 1
    assert pairs == {(1, 2): 3, (3, None): 4, (4, 5): PIECE + 5, (6, 7): 5, (8, 9): 4}
    assert len(found) == 2 + 3  # cut in two; joined by kind


def test_totals_of_any_dtype():
    one = torch.tensor(1 / 3, dtype=torch.float64)
    assert totals([[one, torch.tensor(2.0)], [], [torch.tensor(5)]]) == [1 / 3 + 2, 0.0, 5.0]
