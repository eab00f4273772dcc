"""Equation 10 of `weightings/coupling.py` against grids and exact moments."""

from __future__ import annotations

import math

import pytest
import torch

from steelyard.weightings.coupling import inverse_variance_alpha, optimal_alpha

# tr(H Cov), tr(H), sigma, B, B_pub, cbar: with them the published check value is 0.170268
REFERENCE = {
    "trace_covariance": 2e4,
    "trace": 2e8,
    "noise_multiplier": 0.5,
    "batch": 4000.0,
    "public_batch": 500.0,
    "clip_factor": 0.6,
}


def improvement(alphas, *, trace_covariance, trace, noise_multiplier, batch, public_batch,
                clip_factor):  # fmt: skip
    """Of one step at its best learning rate, for G'G = 1 and no curvature along G: the second-order
    expansion of the loss, written out."""
    drift = alphas + (1 - alphas) * clip_factor
    public = alphas**2 * trace_covariance / public_batch
    private = (1 - alphas) ** 2 * (
        clip_factor**2 * trace_covariance / batch + noise_multiplier**2 * trace / batch**2
    )
    return drift**2 / (2 * (public + private))


def test_equation_10_gives_the_reference_value():
    assert optimal_alpha(**REFERENCE) == pytest.approx(0.170268, abs=5e-7)
    alphas = torch.arange(0, 1, 1e-5, dtype=torch.float64)
    best = alphas[improvement(alphas, **REFERENCE).argmax()]
    assert float(best) == pytest.approx(0.17027, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_equation_10_is_the_maximum_on_a_grid(seed):
    draw = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a, b, c, d, e, f = draw.tolist()
    terms = {
        "trace_covariance": 10 ** (4 * a),
        "trace": 10 ** (8 * b),
        "noise_multiplier": 0.3 + 2 * c,
        "batch": 10 + 1000 * d,
        "public_batch": 2 + 200 * e,
        "clip_factor": 0.05 + f,
    }
    alphas = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    best = alphas[improvement(alphas, **terms).argmax()]
    assert optimal_alpha(**terms) == pytest.approx(float(best), abs=1e-5)


def quadratic(*, cbar: float, shift: float = 0.0):
    """A quadratic 0.5 x'Hx, and equally likely pairs of a public and a private mean gradient.

    One step's expected decrease depends on their first two moments only, and those are exact here:
    means Hx (+ shift) and cbar Hx, covariances of 3 public and 12 clipped, noised private rows.
    """
    generator, d, B_pub, B, sigma = torch.Generator().manual_seed(1), 4, 3, 12, 2.0
    draws = torch.randn(40, 1 + 3 * d, generator=generator, dtype=torch.float64)
    draws[:, 0] = 1  # what is orthogonal to ones has mean 0
    white = torch.linalg.qr(draws).Q[:, 1:] * math.sqrt(len(draws))
    one, other, noise = white.split(d, 1)  # each of mean 0 and covariance I, uncorrelated
    H = torch.diag(torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64))
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)  # Cov = root root'
    x = torch.ones(d, dtype=torch.float64)
    away = torch.tensor([0, shift, 0, 0], dtype=torch.float64)  # the curvature there is 1
    public = H @ x + away + one @ root.T / math.sqrt(B_pub)
    private = cbar * (H @ x + other @ root.T / math.sqrt(B)) + sigma * noise / B
    terms = {
        "trace_covariance": float((H @ root @ root.T).trace()),
        "trace": float(H.trace()),
        "noise_multiplier": sigma,
        "batch": float(B),
        "public_batch": float(B_pub),
        "clip_factor": cbar,
    }
    return H, x, public, private, terms


@pytest.mark.parametrize("eta", [0.01, 0.2])
def test_the_expected_decrease_on_a_quadratic_is_a_parabola_with_its_top_at_alpha(eta):
    H, x, public, private, terms = quadratic(cbar=1.0)

    def decrease(alpha: float) -> float:
        moved = x - eta * (alpha * public + (1 - alpha) * private)
        return float(0.5 * x @ H @ x - 0.5 * ((moved @ H) * moved).sum(1).mean())

    low, middle, high = decrease(0.0), decrease(0.5), decrease(1.0)
    bend, slope = 2 * (low + high - 2 * middle), 4 * middle - 3 * low - high
    for alpha in (0.2, 0.7):
        assert decrease(alpha) == pytest.approx(low + slope * alpha + bend * alpha**2, rel=1e-12)
    assert bend < 0
    assert -slope / (2 * bend) == pytest.approx(optimal_alpha(**terms), rel=1e-8)


def test_unnormalised_gradients_are_best_at_alpha_and_their_own_learning_rate():
    H, x, public, private, terms = quadratic(cbar=0.3)
    alphas = torch.linspace(0, 1, 2001, dtype=torch.float64)
    mixed = alphas[:, None, None] * public + (1 - alphas)[:, None, None] * private
    along = (mixed @ H @ x).mean(1)
    best = along**2 / (2 * ((mixed @ H) * mixed).sum(2).mean(1))  # at eta = along / curvature
    found = float(alphas[best.argmax()])
    assert found == pytest.approx(optimal_alpha(**terms), abs=5e-4)
    assert abs(found - optimal_alpha(**{**terms, "clip_factor": 1.0})) > 0.05


def test_a_shift_of_the_public_data_lowers_alpha_as_one_more_variance():
    H, x, public, private, terms = quadratic(cbar=1.0, shift=2.0)
    alphas = torch.linspace(0, 1, 2001, dtype=torch.float64)
    error = alphas[:, None, None] * public + (1 - alphas)[:, None, None] * private - H @ x
    found = float(alphas[((error @ H) * error).sum(2).mean(1).argmin()])
    public_variance = terms["trace_covariance"] / terms["public_batch"]
    noise = terms["noise_multiplier"] ** 2 * terms["trace"] / terms["batch"] ** 2
    private_variance = terms["trace_covariance"] / terms["batch"] + noise
    expected = inverse_variance_alpha(public_variance, private_variance, bias2=2.0**2)
    assert found == pytest.approx(expected, abs=5e-4)
    assert expected < optimal_alpha(**terms) - 0.01


def test_on_equal_footing_it_is_inverse_variance_weighting():
    even = {**REFERENCE, "clip_factor": 1.0}
    public, private = 2e4 / 500, 2e4 / 4000 + 0.25 * 2e8 / 4000**2
    assert optimal_alpha(**even) == pytest.approx(private / (private + public), rel=1e-12)
    assert inverse_variance_alpha(public, private) == optimal_alpha(**even)
    assert inverse_variance_alpha(1.0, 3.0) == 0.75


def test_without_noise_every_sample_counts_alike():
    terms = {**REFERENCE, "clip_factor": 1.0, "noise_multiplier": 0.0}
    assert optimal_alpha(**terms) == pytest.approx(500 / 4500, rel=1e-12)


@pytest.mark.parametrize(
    ("term", "grows"),
    [
        ("noise_multiplier", True),
        ("trace", True),
        ("public_batch", True),
        ("bound", True),
        ("batch", False),
        ("trace_covariance", False),
    ],
)
def test_what_moves_alpha_and_that_both_sources_always_help(term, grows):
    values = [{"bound": 1.0, **REFERENCE}[term] * factor for factor in (0.1, 0.5, 1, 3, 20)]
    found = [optimal_alpha(**{**REFERENCE, term: value}) for value in values]
    assert found == sorted(found, reverse=not grows)
    assert len(set(found)) == 5
    assert all(0 < alpha < 1 for alpha in found)


def test_variances_without_an_answer_are_refused():
    with pytest.raises(ValueError, match="both variances are 0"):
        inverse_variance_alpha(0.0, 0.0)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="public variance must be 0 or positive"):
            inverse_variance_alpha(wrong, 1.0)
        with pytest.raises(ValueError, match="private variance must be 0 or positive"):
            inverse_variance_alpha(1.0, wrong)
