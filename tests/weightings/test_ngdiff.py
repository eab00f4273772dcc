"""The identities of NGDiff: scale-free, safe for both rows to first order, symmetric."""

from __future__ import annotations

import math

import pytest
import torch

from steelyard.types import Weighting
from steelyard.weightings.ngdiff import NGDiff


def rows(seed=0, d=30, k=2):
    return torch.randn(k, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weigh(weighting, g):
    """sum_i w_i g_i from the Gram matrix alone."""
    return weighting(g @ g.T) @ g


def naive(g_R, g_F):
    """The paper's box, one number at a time."""
    norm_R = math.sqrt(sum(float(x) ** 2 for x in g_R))
    norm_F = math.sqrt(sum(float(x) ** 2 for x in g_F))
    return torch.tensor([float(a) / norm_R + float(b) / norm_F for a, b in zip(g_R, g_F)]).double()  # noqa: B905


@pytest.mark.parametrize("seed", range(20))
def test_identities_on_random_gradients(seed):
    g = rows(seed) * torch.tensor([[10.0 ** (seed % 5 - 2)], [1.0]])
    step = weigh(NGDiff(), g)
    torch.testing.assert_close(step, naive(*g), rtol=1e-6, atol=1e-6)
    cos = float(g[0] @ g[1] / g[0].norm() / g[1].norm())
    assert float(step.norm()) == pytest.approx(math.sqrt(2 + 2 * cos), abs=1e-9)
    for one in g:
        assert float(one @ step) == pytest.approx(float(one.norm()) * (1 + cos), rel=1e-9)
        assert float(one @ step) >= -1e-6
    torch.testing.assert_close(weigh(NGDiff(), g.flip(0)), step)  # symmetry


@pytest.mark.parametrize("k", [1e-5, 1e-2, 3.0, 1e5])
def test_the_scale_of_a_loss_does_not_matter(k):
    g = rows()
    scaled = g * torch.tensor([[1.0], [k]], dtype=torch.float64)
    step = weigh(NGDiff(), g)
    torch.testing.assert_close(weigh(NGDiff(), scaled), step, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(weigh(NGDiff(), scaled.flip(0)), step, rtol=1e-6, atol=1e-9)


def test_library_form_is_the_papers_form():
    g_R, g_CE = rows(3)
    paper = g_R / g_R.norm() - g_CE / g_CE.norm()
    torch.testing.assert_close(weigh(NGDiff(), torch.stack([g_R, -g_CE])), paper)
    swapped = weigh(NGDiff(), torch.stack([g_CE, -g_R]))  # in the paper's form the sign flips
    torch.testing.assert_close(swapped, -paper)


def test_antiparallel_rows_give_zero_without_a_division():
    g = rows(1)[:1]
    step = weigh(NGDiff(), torch.cat([g, -3 * g]))
    assert float(step.norm()) < 1e-12


def test_a_zero_row_is_left_out_and_a_tiny_one_is_not_amplified():
    g = rows(2)
    unit = g[0] / g[0].norm()
    for factor in (0.0, 1e-9):
        step = weigh(NGDiff(), g * torch.tensor([[1.0], [factor]], dtype=torch.float64))
        torch.testing.assert_close(step, unit)
    both = weigh(NGDiff(), 1e-12 * g)  # tiny is relative: small together is not small
    torch.testing.assert_close(both, weigh(NGDiff(), g))
    kept = NGDiff(tiny=0)(torch.diag(torch.tensor([1.0, 1e-18], dtype=torch.float64)))
    assert kept.tolist() == pytest.approx([1, 1e9])
    assert NGDiff()(torch.zeros(2, 2, dtype=torch.float64)).tolist() == [0, 0]


def test_rho_weighs_the_retain_row_by_name():
    g = rows(4)
    matrix = g @ g.T
    expected = 3 * g[1] / g[1].norm() + g[0] / g[0].norm()
    weights = NGDiff(3.0).given(["forget", "retain"], torch.zeros(2))(matrix)
    torch.testing.assert_close(weights @ g, expected)
    assert NGDiff(3.0)(matrix)[0] == pytest.approx(3 / float(g[0].norm()))  # bare: the first
    with pytest.raises(ValueError, match=r"rho=3 weighs the row 'retain', and the rows are a, b:"):
        NGDiff(3.0).given(["a", "b"], torch.zeros(2))
    assert isinstance(NGDiff(), Weighting)


def test_any_number_of_rows():
    g = rows(5, k=4)
    torch.testing.assert_close(weigh(NGDiff(), g), (g / g.norm(dim=1, keepdim=True)).sum(0))


@pytest.mark.parametrize("bad", [{"rho": 0}, {"rho": math.inf}, {"tiny": 1.0}, {"tiny": -1e-9}])
def test_refusals(bad):
    with pytest.raises(ValueError, match=r"found"):
        NGDiff(**bad)
