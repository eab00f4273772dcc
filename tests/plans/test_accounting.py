from __future__ import annotations

import itertools
import logging
import math
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from steelyard.plans.accounting import Event, _converges, spent_epsilon


def event(q: float, sigma: float, steps: int, sampling: str = "poisson") -> Event:
    return Event(sampling_probability=q, noise_multiplier=sigma, steps=steps, sampling=sampling)


def spent(q: float, sigma: float, steps: int, delta: float = 1e-5, by: str = "pld") -> float:
    return spent_epsilon([event(q, sigma, steps)], delta, by)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Balle and Wang 2018, arXiv 1805.06530, theorem 8."""
    near, far = norm.cdf(mu / 2 - epsilon / mu), norm.cdf(-mu / 2 - epsilon / mu)
    return float(near - math.exp(epsilon) * far)


def one_step_delta(epsilon: float, q: float, sigma: float) -> float:
    """Hockey-stick divergence of (1-q) N(0, s^2) + q N(1, s^2) from N(0, s^2), by hand."""
    t = 0.5 + sigma**2 * math.log((math.expm1(epsilon) + q) / q)  # where the ratio is e^epsilon
    far, near = norm.sf(t / sigma), norm.sf((t - 1) / sigma)
    return float((1 - q) * far + q * near - math.exp(epsilon) * far)


def test_pld_and_rdp_at_the_known_point():
    assert spent(1e-3, 0.7, 10_000) == pytest.approx(1.245, abs=0.005)
    assert spent(1e-3, 0.7, 10_000, by="rdp") == pytest.approx(2.025, abs=0.01)


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "delta", "interval"),
    [
        (1024 / 60_000, 0.823, 293, 1e-5, 1e-4),
        (0.5, 30.0, 1000, 1e-9, 1e-4),
        (1e-3, 2.0, 20_011, 1e-6, 2e-6),  # composed in two stages and a rest
    ],
)
def test_equals_a_finer_grid_of_dp_accounting(q, sigma, steps, delta, interval):
    import dp_accounting as dpa
    from dp_accounting.pld import PLDAccountant

    fine = PLDAccountant(dpa.NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    fine.compose(dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(sigma)), steps)
    truth = fine.get_epsilon(delta)
    assert truth - 1e-6 <= spent(q, sigma, steps, delta) <= 1.001 * truth


@pytest.mark.parametrize("mu", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_without_sampling_it_is_the_exact_gaussian(mu, delta):
    epsilon = spent(1.0, 10 / mu, 100, delta)
    reached = gaussian_delta(epsilon, mu) if epsilon else delta
    assert reached == pytest.approx(delta, rel=1e-6)
    assert gaussian_delta(0.0, mu) <= delta or epsilon > 0


@pytest.mark.parametrize("q", [1e-4, 0.1, 0.999])
@pytest.mark.parametrize("sigma", [0.15, 0.8, 20.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_one_step_is_an_upper_bound_and_tight(q, sigma, delta):
    epsilon = spent(q, sigma, 1, delta)
    assert one_step_delta(epsilon, q, sigma) <= delta
    if epsilon > 0:
        assert one_step_delta(max(0.0, 0.999 * epsilon - 1e-5), q, sigma) > delta


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    q=st.floats(1e-4, 1.0),
    sigma=st.floats(0.4, 20.0),
    steps=st.integers(1, 5000),
    delta=st.sampled_from([1e-5, 1e-9]),
)
def test_orderings(q, sigma, steps, delta):
    """More steps, more sampling or less noise cost more; RDP is never below PLD."""
    base = spent(q, sigma, steps, delta)
    assert spent(q, sigma, 2 * steps, delta) >= base
    assert spent(q / 2, sigma, steps, delta) <= base * 1.001
    assert spent(q, 1.2 * sigma, steps, delta) <= base * 1.001
    assert spent(q, sigma, steps, 10 * delta) <= base
    rdp = spent(q, sigma, steps, delta, "rdp")
    assert rdp >= base
    assert spent(q, sigma, 2 * steps, delta, "rdp") >= rdp
    assert spent(q, 1.2 * sigma, steps, delta, "rdp") <= rdp


def test_strict_orderings_at_an_ordinary_point():
    base = spent(0.01, 1.0, 1000)
    assert spent(0.01, 1.0, 1100) > 1.02 * base
    assert spent(0.01, 1.05, 1000) < 0.98 * base
    assert spent(0.01, 1.0, 1000, by="rdp") > 1.02 * base


@pytest.mark.parametrize("by", ["pld", "rdp"])
def test_poisson_events_commute_and_merge(by):
    a, b, gauss = event(0.01, 1.0, 100), event(0.05, 2.0, 40), event(1.0, 30.0, 3)
    together = spent_epsilon([a, b, gauss], 1e-5, by)
    assert together == spent_epsilon([gauss, b, a], 1e-5, by)
    halves = [event(0.01, 1.0, 60), b, event(0.01, 1.0, 40), gauss]
    assert together == spent_epsilon(halves, 1e-5, by)
    parts = [spent_epsilon([e], 1e-5 / 3, by) for e in (a, b, gauss)]
    assert max(spent_epsilon([e], 1e-5, by) for e in (a, b, gauss)) < together < sum(parts)


@pytest.mark.parametrize(
    ("sigma", "steps", "epsilon"),
    [(1.0, 293, 11.5), (1.0, 586, 17.9), (2.0, 293, 4.98), (2.0, 586, 7.51)],
)
def test_unamplified_is_one_gaussian_per_pass(sigma, steps, epsilon):
    found = spent_epsilon([event(1024 / 60_000, sigma, steps, "unamplified")], 1e-5)
    assert found == pytest.approx(epsilon, rel=5e-3)


def test_unamplified_counts_every_pass_it_can_touch():
    def passes(*steps: int) -> float:
        events = [event(0.1, 2.0 + i * 1e-12, s, "unamplified") for i, s in enumerate(steps)]
        return spent_epsilon(events, 1e-5)

    by_passes = [spent(1.0, 2.0, k) for k in range(6)]
    assert [passes(k) for k in (1, 10, 11, 20, 21)] == by_passes[1:2] * 2 + by_passes[2:3] * 2 + [
        by_passes[3]
    ]
    # 3 + 10 steps: the second part may straddle a boundary and meet one sample twice.
    assert passes(3, 10) == pytest.approx(by_passes[3])
    assert passes(3, 1) == pytest.approx(by_passes[2])


def test_edges():
    assert spent_epsilon([], 1e-5) == 0.0
    assert spent(0.1, 1.0, 0) == spent(0.1, 0.0, 0) == 0.0
    assert spent(0.1, 0.0, 1) == spent(0.1, 0.0, 1, by="rdp") == math.inf
    assert spent(1e-12, 1.0, 1) == 0.0  # the sample is absent with probability above 1 - delta
    for by, q, sigma in itertools.product(
        ("pld", "rdp"), (1e-12, 0.3, 1 - 1e-12, 1.0), (1e-6, 1e9)
    ):
        assert 0.0 <= spent(q, sigma, 3, by=by) < math.inf
    assert spent(0.3, 0.02, 2) > 1000
    assert spent(1e-6, 1.0, 10**6, 1e-9) < spent(1e-6, 1.0, 10**6, 1e-9, "rdp")


def test_deltas_below_double_precision_fall_back_to_rdp():
    assert spent(0.01, 1.0, 1000, 1e-15) == spent(0.01, 1.0, 1000, 1e-15, "rdp")


def test_no_warning_of_rdp_orders():
    """dp-accounting logs a warning when the series of a fractional order does not converge."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    import dp_accounting.rdp.rdp_privacy_accountant as oracle

    logger = logging.getLogger("absl")
    logger.addHandler(handler)
    try:
        for q, sigma in itertools.product((1e-6, 0.03, 0.5, 0.99), (0.2, 0.7, 2.0, 1000.0)):
            spent(q, sigma, 10, by="rdp")
        assert heard == []
        assert not _converges(1.5, 0.1, 0.7)
        assert oracle._compute_log_a_frac(0.1, 0.7, 1.5) == math.inf
        assert len(heard) == 1
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda: event(0.0, 1.0, 1), "0"),
        (lambda: event(1.5, 1.0, 1), "1.5"),
        (lambda: event(math.nan, 1.0, 1), "nan"),
        (lambda: event(0.1, -1.0, 1), "-1"),
        (lambda: event(0.1, 1e-9, 1), "1e-09"),
        (lambda: event(0.1, math.inf, 1), "inf"),
        (lambda: event(0.1, 1.0, -1), "-1"),
        (lambda: event(0.1, 1.0, 2.5), "2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: event(0.1, "1", 1), "'1'"),  # pyright: ignore[reportArgumentType]
        (lambda: spent(0.1, 1.0, 1, delta=1.0), "1"),
        (lambda: spent(0.1, 1.0, 1, delta=0.0), "0"),
    ],
)
def test_errors_are_one_line_and_name_the_value(build, found):
    with pytest.raises(ValueError, match=re.escape(f"found {found}")) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_unknown_names_and_too_many_steps():
    with pytest.raises(ValueError, match="unknown sampling 'shuffled': choose one of poisson, una"):
        event(0.1, 1.0, 1, "shuffled")
    with pytest.raises(ValueError, match="unknown accountant 'prv': choose one of pld, rdp"):
        spent(0.1, 1.0, 1, by="prv")
    with pytest.raises(ValueError, match="1000000000 steps cannot be accounted"):
        spent(0.1, 1.0, 10**9)


@pytest.mark.parametrize("module", ["steelyard.plans.privacy", "steelyard.runs.ledger"])
def test_importing_is_light(module):
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'dp_accounting') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
