"""The exact choice against all 2^K subsets; prefixes; budgets."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from steelyard.plans.knapsack import (
    best_single,
    by_density,
    exact,
    greedy,
    in_parameters,
    prefixes,
)


def brute_force(values: list[float], sizes: list[int], budget: int) -> float:
    best = 0.0
    for chosen in itertools.product((False, True), repeat=len(values)):
        if sum(n for n, c in zip(sizes, chosen, strict=True) if c) <= budget:
            best = max(best, math.fsum(v for v, c in zip(values, chosen, strict=True) if c))
    return best


def instance(seed: int, *, wide: bool) -> tuple[list[float], list[int]]:
    """K groups, 2 <= K <= 12; wide: sizes 1e2..1e8 and values 1e-6..1, as those of models are."""
    rng = np.random.default_rng(seed)
    K = int(rng.integers(2, 13))
    if wide:
        return (10 ** rng.uniform(-6, 0, K)).tolist(), (10 ** rng.uniform(2, 8, K)).astype(
            int
        ).tolist()
    return rng.uniform(0.1, 1, K).tolist(), rng.integers(1, 40, K).tolist()


@pytest.mark.parametrize("wide", [False, True], ids=["like sizes", "sizes of models"])
@pytest.mark.parametrize("seed", range(20))
def test_exact_is_the_best_of_all_subsets(seed, wide):
    values, sizes = instance(seed, wide=wide)
    rng = np.random.default_rng(1000 + seed)
    for share in rng.uniform(0.05, 0.95, 2):
        budget = int(share * sum(sizes)) if not wide else int(sum(sizes) ** share)
        found = exact(values, sizes, budget)
        assert found.size == sum(sizes[k] for k in found.chosen) <= budget
        assert found.value == math.fsum(values[k] for k in found.chosen)
        assert found.value == pytest.approx(brute_force(values, sizes, budget), rel=1e-12, abs=0)


@pytest.mark.parametrize("seed", range(12))
def test_prefixes_are_best_at_their_own_budgets(seed):
    values, sizes = instance(seed, wide=seed % 2 == 0)
    front = prefixes(values, sizes)
    assert len(front) == len(values)
    for smaller, larger in itertools.pairwise(front):
        assert set(smaller.chosen) < set(larger.chosen)
    for choice in front:
        best = brute_force(values, sizes, choice.size)
        assert choice.value == pytest.approx(best, rel=1e-12)
        assert greedy(values, sizes, choice.size) == choice


def test_between_two_prefixes_greedy_is_not_the_best():
    values, sizes = [1.0, 10.0], [1, 100]  # densities 1 and 0.1
    assert greedy(values, sizes, 100).value == 1.0
    assert best_single(values, sizes, 100).chosen == (1,)
    assert exact(values, sizes, 100).chosen == (1,)
    both = [4.0, 3.0, 3.0], [5, 4, 4]
    assert greedy(*both, 8).chosen == (0,)
    assert best_single(*both, 8).chosen == (0,)
    assert exact(*both, 8).chosen == (1, 2)


@pytest.mark.parametrize("method", [exact, greedy, best_single])
@pytest.mark.parametrize("worthless", [0.0, -1.0, math.nan, math.inf])
def test_what_is_worth_nothing_is_never_chosen(method, worthless):
    assert 1 not in method([1.0, worthless, 2.0], [3, 1, 4], 100).chosen
    assert method([worthless], [3], 100).chosen == ()


@pytest.mark.parametrize("method", [exact, greedy, best_single])
def test_a_budget_below_every_group_chooses_none(method):
    assert method([1.0, 2.0], [3, 4], 2).chosen == ()
    assert method([1.0, 2.0], [3, 4], 2).size == 0
    assert method([], [], 2).value == 0.0


def test_the_budget_is_kept_where_the_solver_would_round():
    """1e9 + 1 parameters do not fit into 1e9, by less than the solver's tolerance."""
    sizes = [500_000_000, 500_000_001, 10]
    assert exact([1.0, 1.0, 1e-9], sizes, 1_000_000_000).size <= 1_000_000_000
    assert exact([1.0, 1.0, 1e-9], sizes, 1_000_000_001).chosen == (0, 1)


def test_small_values_beside_large_ones_are_not_lost():
    values, sizes = [1.0, 1e-13, 1e-12, 2.0], [10, 2, 3, 1000]
    assert exact(values, sizes, 15).chosen == (0, 1, 2)
    assert exact([1.0, 0.9, 1e-13, 1e-12], [10, 9, 2, 3], 14).chosen == (0, 3)


def test_scaling_changes_nothing():
    values, sizes = instance(3, wide=True)
    budget = sum(sizes) // 3
    for factor in (1e-12, 1e9):
        scaled = [factor * v for v in values]
        assert exact(scaled, sizes, budget).chosen == exact(values, sizes, budget).chosen
        assert by_density(scaled, sizes) == by_density(values, sizes)


def test_halves_of_a_group_have_its_density():
    assert by_density([1.0, 1.0, 3.0], [5, 5, 14]) == [2, 0, 1]
    assert by_density([2.0, 3.0], [10, 14]) == [1, 0]


def test_many_groups():
    rng = np.random.default_rng(0)
    values, sizes = rng.uniform(size=100).tolist(), rng.integers(1, 10**6, 100).tolist()
    budget = sum(sizes) // 10
    assert greedy(values, sizes, budget).value <= exact(values, sizes, budget).value


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(500, 500), ("500", 500), ("1%", 100), (" 0.5 % ", 50), ("100%", 10_000), (0, 0), (1e3, 1000),
     ("29%", 2900), ("10,000", 10_000)],
)  # fmt: skip
def test_budgets(budget, expected):
    assert in_parameters(budget, 10_000) == expected


@pytest.mark.parametrize("budget", ["much", -1, "-1%", 0.01, math.nan, math.inf, "", "%", True])
def test_budgets_refused(budget):
    with pytest.raises(ValueError, match="give a number of parameters, or a share"):
        in_parameters(budget, 10_000)


def test_refusals():
    with pytest.raises(ValueError, match="'101%' is more than the whole model"):
        in_parameters("101%", 10_000)
    with pytest.raises(ValueError, match="2 values and 1 sizes"):
        by_density([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="a group of 0 parameters"):
        exact([1.0], [0], 5)


def test_needs_no_torch_and_scipy_only_when_it_solves():
    code = (
        "import sys, steelyard.plans.knapsack; "
        "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
