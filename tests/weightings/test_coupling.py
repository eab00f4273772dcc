"""The weights of the public gradient: schedules, the estimated optimum, names."""

from __future__ import annotations

import math

import pytest
import torch

from steelyard.types import Stateful
from steelyard.weightings.coupling import (
    ConstantWeight,
    CosineWeight,
    Known,
    OptimalWeight,
    SampleWeight,
    inverse_variance_alpha,
    optimal_alpha,
    parse_weight,
)


def known(**changes) -> Known:
    of = {
        "step": 0,
        "public_batch": 8,
        "batch": 40.0,
        "public_variance": 0.3,
        "noise_variance": 0.2,
    }
    return Known(**{**of, **changes})


def test_constant_and_samples():
    assert ConstantWeight(0.3).alpha(known(step=99)) == 0.3
    assert SampleWeight(3_000, 57_000).alpha(known()) == 0.05
    assert SampleWeight(0, 10).alpha(known()) == 0
    assert SampleWeight(10, 0).alpha(known()) == 1


def test_the_cosine_falls_from_1_to_0_and_stays_there():
    weight = CosineWeight(90)
    found = [weight.alpha(known(step=step)) for step in range(91)]
    assert found[0] == 1
    assert found[30] == pytest.approx(math.cos(math.pi / 6))
    assert found[60] == pytest.approx(0.5)
    assert found[90] == weight.alpha(known(step=10_000)) == 0
    assert found == sorted(found, reverse=True)


def test_the_cosine_of_mirror_descent_rises():
    weight = CosineWeight(90, start=0.0, end=1.0)
    found = [weight.alpha(known(step=step)) for step in (0, 60, 90, 91)]
    assert found == pytest.approx([0, 1 - math.cos(math.pi / 3), 1, 1])


@pytest.mark.parametrize("cbar", [1.0, 0.3])
def test_the_optimal_weight_is_equation_10_with_the_estimated_spread(cbar):
    """d numbers with the identity for H: tr(H) = d, and tr(H Cov) = V_pub B_pub."""
    d, sigma, bound, spread = 1000, 1.5, 0.7, 4.0
    found = OptimalWeight(clip_factor=cbar).alpha(
        known(public_variance=spread / 8, noise_variance=(sigma * bound / 40) ** 2 * d)
    )
    expected = optimal_alpha(
        trace_covariance=spread, trace=d, noise_multiplier=sigma, batch=40, public_batch=8,
        clip_factor=cbar, bound=bound,
    )  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_spread_is_averaged_over_steps_without_a_bias_to_zero():
    weight = OptimalWeight(memory=0.75)
    values, sizes = [0.3, 0.9, 0.1, 0.5], [8, 4, 8, 16]
    for t, (variance, size) in enumerate(zip(values, sizes, strict=True)):
        found = weight.alpha(known(public_variance=variance, public_batch=size))
        ages = [0.75 ** (t - s) for s in range(t + 1)]
        spread = sum(a * v * n for a, v, n in zip(ages, values, sizes, strict=False)) / sum(ages)
        assert found == pytest.approx(inverse_variance_alpha(spread / size, spread / 40 + 0.2))


def test_a_step_too_small_to_see_the_spread_uses_that_of_the_steps_before():
    weight = OptimalWeight()
    weight.alpha(known(public_variance=0.3, public_batch=8))
    found = weight.alpha(known(public_variance=None, public_batch=1))
    assert found == pytest.approx(inverse_variance_alpha(2.4, 2.4 / 40 + 0.2))


@pytest.mark.parametrize(("metric", "what"), [("identity", "samples"), ("adam", "micro-batches")])
def test_without_any_spread_the_optimal_weight_says_what_it_needs(metric, what):
    with pytest.raises(ValueError, match=f"needs two public {what} in the first step"):
        OptimalWeight(metric=metric).alpha(known(public_variance=None))


def test_bias_lowers_alpha():
    private = 0.3 * 8 / 40 + 0.2
    for bias2 in (0.0, 0.1, 1.0):
        found = OptimalWeight(bias2=bias2).alpha(known())
        assert found == pytest.approx(private / (private + 0.3 + bias2), rel=1e-12)


def test_equal_rows_without_noise_have_an_answer():
    found = OptimalWeight().alpha(known(public_variance=0.0, noise_variance=0.0))
    assert found == pytest.approx(8 / 48)
    assert OptimalWeight().alpha(known(public_variance=0.0)) == 1  # the public gradient is exact


def test_the_optimal_weight_resumes(properties):
    class Driver:
        def __init__(self):
            self.weight, self.step = OptimalWeight(), 0

        def drive(self):
            self.step += 1
            found = self.weight.alpha(known(public_variance=1.0 / self.step))
            return [torch.tensor(found, dtype=torch.float64)]

        def state_dict(self):
            return {"step": self.step, "weight": self.weight.state_dict()}

        def load_state_dict(self, state):
            self.step = state["step"]
            self.weight.load_state_dict(state["weight"])

    properties.assert_resumes(Driver, Driver.drive)
    assert isinstance(OptimalWeight(), Stateful)
    assert not isinstance(ConstantWeight(0.5), Stateful)


# -- texts and refusals ------------------------------------------------------------------------


def test_weights_by_name():
    sizes = {"n_public": 30, "n_private": 90, "steps": 12}
    assert parse_weight("0.3", **sizes) == ConstantWeight(0.3)
    assert parse_weight("1", **sizes) == ConstantWeight(1.0)
    assert parse_weight("samples", **sizes) == SampleWeight(30, 90)
    assert parse_weight("cosine", **sizes) == CosineWeight(12)
    assert isinstance(parse_weight("optimal", **sizes), OptimalWeight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "cosin",
            r"unknown weight of the public gradient 'cosin': choose samples, cosine, optimal",
        ),
        ("", "unknown weight"),
        ("1.5", r"in \[0, 1\], found 1.5"),
        ("-0.1", r"in \[0, 1\], found -0.1"),
        ("nan", r"in \[0, 1\], found nan"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_weight(text, n_public=1, n_private=1, steps=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantWeight(1.01), "found 1.01"),
        (lambda: SampleWeight(0, 0), "found 0 public and 0 private"),
        (lambda: SampleWeight(-1, 5), "found -1 public"),
        (lambda: CosineWeight(0), "steps must be positive, found 0"),
        (lambda: CosineWeight(5, start=2.0), "found 2"),
        (lambda: CosineWeight(5, end=-1.0), "found -1"),
        (lambda: OptimalWeight(metric="muon"), "unknown metric 'muon': choose one of identity, ad"),
        (lambda: OptimalWeight(memory=1.0), r"in \[0, 1\), found 1"),
        (lambda: OptimalWeight(bias2=-1.0), "bias2.*found -1"),
        (lambda: OptimalWeight(clip_factor=0.0), "clip factor must be positive, found 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
