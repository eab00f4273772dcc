"""Norms, inner products and sums of factors against instantiated rows, in every combination."""

from __future__ import annotations

import itertools

import pytest
import torch

from steelyard.rules import factors
from steelyard.rules.factors import Dense, Factor, OneHot, Outer, inner, squared_norms, weighted_sum

B, M, N = 3, 5, 4


def dense() -> Factor:
    return Dense(torch.randn(B, M, N).double())


def outer() -> Factor:
    return Outer(torch.randn(B, 7, M).double(), torch.randn(B, 7, N).double(), torch.Size((M, N)))


def one_hot() -> Factor:
    return OneHot(torch.randint(0, M, (B, 6)), torch.randn(B, 6, N).double(), M)


def channels_last() -> Factor:
    left, right = torch.randn(B, 7, N).double(), torch.randn(B, 7, M).double()
    return Outer(left, right, torch.Size((N, M)), last_to=0)  # summed as [N, M], meant as [M, N]


def instantiated_last() -> Factor:
    factor = channels_last()
    assert isinstance(factor, Outer)
    return factor.instantiated()


KINDS = [dense, outer, one_hot, channels_last, instantiated_last]


def rows(factor: Factor) -> torch.Tensor:
    """[B, M, N], one sample at a time through `weighted_sum`."""
    return torch.stack([factor.weighted_sum(one) for one in torch.eye(B).double()])


def test_every_kind_means_the_same_rows():
    left, right = torch.randn(B, 7, M).double(), torch.randn(B, 7, N).double()
    expected = torch.einsum("blm,bln->bmn", left, right)
    plain = Outer(left, right, torch.Size((M, N)))
    turned = Outer(right, left, torch.Size((N, M)), last_to=0)
    for factor in (plain, plain.instantiated(), turned, turned.instantiated()):
        torch.testing.assert_close(rows(factor), expected)
    index = torch.randint(0, M, (B, 7))
    chosen = OneHot(index, right, M)
    hot = torch.nn.functional.one_hot(index, M).double()
    torch.testing.assert_close(rows(chosen), torch.einsum("blm,bln->bmn", hot, right))


@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_magnitudes(kind):
    factor = kind()
    squares, magnitudes = factor.norms()
    torch.testing.assert_close(squares, rows(factor).square().sum((1, 2)))
    assert (magnitudes >= squares.sqrt() * (1 - 1e-12)).all()  # the triangle inequality


@pytest.mark.parametrize(("a", "b"), list(itertools.product(KINDS, KINDS)))
def test_inner_products(a, b):
    one, other = a(), b()
    torch.testing.assert_close(inner(one, other), (rows(one) * rows(other)).sum((1, 2)))


@pytest.mark.parametrize("uses", list(itertools.combinations_with_replacement(KINDS, 3)))
def test_uses_of_one_parameter_add_up_before_the_norm(uses):
    made = [use() for use in uses]
    total = torch.stack([rows(use) for use in made]).sum(0)
    torch.testing.assert_close(squared_norms([made]), total.square().sum((1, 2)))
    weights = torch.randn(B).double()
    torch.testing.assert_close(weighted_sum(made, weights), torch.tensordot(weights, total, 1))


@pytest.mark.parametrize("at_once", [1, 10, B * 7 * 7 - 1])
def test_long_sequences_in_parts_are_the_same(monkeypatch, at_once):
    one, other = outer(), outer()
    whole = *one.norms(), inner(one, other)
    monkeypatch.setattr(factors, "AT_ONCE", at_once)
    for got, expected in zip((*one.norms(), inner(one, other)), whole, strict=True):
        torch.testing.assert_close(got, expected)


def test_what_cancels_in_float32_is_computed_again():
    """Two positions that cancel to a millionth: float32 would see zero, or less."""
    left = torch.randn(B, 1, M).repeat(1, 2, 1)
    right = torch.randn(B, 1, N).repeat(1, 2, 1)
    right[:, 1] *= -(1 - 1e-3)
    factor = Outer(left, right, torch.Size((M, N)))
    truth = factor.in_double(torch.arange(B)).norms()[0]
    torch.testing.assert_close(squared_norms([[factor]]).double(), truth, rtol=1e-4, atol=0)


def test_a_row_is_never_smaller_than_its_rounding():
    left, right = torch.randn(B, 1, M).repeat(1, 2, 1), torch.randn(B, 1, N).repeat(1, 2, 1)
    right[:, 1] *= -1  # exactly zero
    squares = squared_norms([[Outer(left, right, torch.Size((M, N)))]])
    assert (squares > 0).all()
    assert (squares.sqrt() < 1e-4 * left.norm() * right.norm()).all()


def test_parameters_add_up_and_mixed_types_go_to_the_wider():
    one, other = dense(), Dense(torch.randn(B, 2))
    expected = rows(one).square().sum((1, 2)) + other.rows.double().square().sum(1)
    found = squared_norms([[one], [other]])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1, 5000, 8192, 3_000_001])
def test_the_norm_of_a_long_row_is_exact_to_float32(size):
    rows = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    squares, norms = Dense(rows).norms()
    truth = rows.double().square().sum(1)
    assert ((squares.double() / truth) - 1).abs().max() < 2e-6
    assert ((norms.double() / truth.sqrt()) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("n", [1, 2048, 4097, 1_000_000, 3_145_728])
def test_norms_of_long_rows_are_not_too_small(n):
    """Summed one by one, a float32 norm of a million equal numbers loses more than 1e-4."""
    rows = torch.full((2, n), 0.1) + 1e-3 * torch.rand(2, n)
    truth = torch.linalg.vector_norm(rows.double(), dim=1)
    for factor in (Dense(rows), Outer(rows[:, None], torch.ones(2, 1, 1), torch.Size((n, 1)))):
        norms = factor.norms()[0].sqrt().double()
        torch.testing.assert_close(norms, truth, rtol=1e-6, atol=0)
