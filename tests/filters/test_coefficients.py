"""What a filter's coefficients promise, in closed form; designs; and every refusal."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from steelyard.filters.coefficients import float32_error, low_pass, normalised, whole_response
from steelyard.filters.doppler import Doppler
from steelyard.types import Noised

AUTHORS = ([1.6332e-4, 3.2665e-4, 1.6332e-4], [1.0, -1.98342955, 0.98549544])


def test_normalised():
    assert normalised([0.2, 0.0], [2, -1.8, 0]) == ((0.1,), (1.0, -0.9))
    assert all(type(x) is float for part in normalised([1], [2, 1]) for x in part)


def test_the_whole_response_ends_where_nothing_follows():
    for phi in (0.0, 0.5, 0.99, 0.9999):
        response = whole_response((1 - phi,), (1.0, -phi))
        assert phi ** len(response) < 1e-12
        assert response.sum() == pytest.approx(1, abs=1e-12)
    late = whole_response((*[0.0] * 500, 1.0), (1.0,))  # nothing for a long time is not the end
    assert late.sum() == 1


def test_noise_gain_and_settling_time_in_closed_form():
    for phi in (0.5, 0.8, 0.9, 0.95, 0.999):
        one = Doppler.first_order(phi)
        assert one.noise_gain == pytest.approx((1 - phi) / (1 + phi), rel=1e-10)
        assert one.settling_time == math.ceil(math.log(0.02) / math.log(phi))
        np.testing.assert_allclose(one.impulse_response(4), (1 - phi) * phi ** np.arange(4))
    assert Doppler([0.25] * 4).settling_time == 4
    twice = Doppler.cascade(0.8, 2)
    by_hand = np.convolve(*[Doppler.first_order(0.8).impulse_response(50)] * 2)[:50]
    np.testing.assert_allclose(twice.impulse_response(50), by_hand, atol=1e-15)


def test_the_table_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "doppler.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(Doppler\..*?)` \| ([\d.]+) \| (\d+)", page, re.MULTILINE)
    assert len(rows) == 7
    for code, left, steps in rows:
        one = eval(code, {"Doppler": Doppler})
        assert f"{one.noise_left:.3g}" == f"{float(left):.3g}", code
        assert one.settling_time == int(steps), code


def peak(one: Doppler, stream: torch.Tensor) -> float:
    """The largest of the last forty outputs."""
    found = [float(one.filter(Noised([x.clone()], 1.0, 1.0)).tensors[0]) for x in stream]
    return max(abs(x) for x in found[-40:])


@pytest.mark.parametrize("kind", ["butter", "bessel", "cheby1"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_designs_pass_the_slow_and_stop_the_fast(kind, order):
    one = Doppler.design(0.05, order=order, kind=kind)
    assert abs(one.dc_gain - 1) < 1e-9
    slow_part, fast_part = (
        peak(one, torch.cos(2 * math.pi * f * torch.arange(300.0))) for f in (0.005, 0.4)
    )
    assert slow_part > 0.9
    assert fast_part < 0.15 ** (1 if order == 1 else 1.5)


@pytest.mark.parametrize(
    ("b", "a"),
    [
        AUTHORS,
        (0.05**3, np.poly([0.95] * 3)),
        (0.1**4, np.poly([0.9] * 4)),
        low_pass(0.03, 4, "butter"),
    ],
    ids=["authors", "cascade 3", "cascade 4", "butter 4"],
)
def test_float32_error_is_an_upper_bound_and_not_a_loose_one(b, a):
    """Measured: float32 against float64 on the same noise, root mean square."""
    b, a = normalised(np.atleast_1d(b).tolist(), list(a))
    stream = torch.randn(1500, 200, dtype=torch.float64)
    exact, single = (Doppler(b, a, gain="corrected") for _ in range(2))
    wrong = right = 0.0
    for x in stream:
        (one,) = exact.filter(Noised([x.clone()], 1.0, 1.0)).tensors
        (other,) = single.filter(Noised([x.float()], 1.0, 1.0)).tensors
        wrong += float((one - other).square().sum())
        right += float(one.square().sum())
    error = math.sqrt(wrong / right)
    assert error < float32_error(b, a) < 100 * error


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Doppler([], [1.0]), "b needs a coefficient that is not 0"),
        (lambda: Doppler([0.0], [1.0]), "b needs a coefficient"),
        (lambda: Doppler([1.0], []), "a needs a coefficient"),
        (lambda: Doppler([math.nan], [1.0]), "b must be finite"),
        (lambda: Doppler([1.0], [1.0, math.inf]), "a must be finite"),
        (lambda: Doppler([1.0], [0.0, 1.0]), "a.0. must not be 0"),
        (lambda: Doppler([0.1], [1.0, -1.1]), "unstable.*1.1"),
        (lambda: Doppler([1.0], [1.0, -1.0]), "unstable"),
        (lambda: Doppler([0.3], [1.0, -1.9, 1.2]), "unstable"),
        (lambda: Doppler(*AUTHORS), "DC gain.*0.316"),
        (lambda: Doppler([0.1 + 2e-7], [1.0, -0.9]), "DC gain"),
        (lambda: Doppler([0.0, 1.0]), "step response falls to 0"),
        (lambda: Doppler([-0.5, 1.5]), "step response falls to -0.5"),
        (lambda: Doppler([1.0, -1.0], [1.0, -0.5], gain="corrected"), "step response"),
        (lambda: Doppler([-1.0], [1.0, -0.5], gain="corrected"), "step response"),
        (lambda: Doppler([1.0], gain="any"), "unknown gain 'any'"),
        (lambda: Doppler.first_order(1.0), "phi must be.*found 1"),
        (lambda: Doppler.first_order(-0.1), "phi must be"),
        (lambda: Doppler.cascade(0.5, 0), "order of a cascade.*found 0"),
        (lambda: Doppler.cascade(0.99, 4), "float32 .* error"),
        (lambda: Doppler.first_order(1 - 1e-9), "has not settled"),
        (lambda: Doppler.design(0.5), "cut-off must be.*found 0.5"),
        (lambda: Doppler.design(0.1, order=0), "order of a filter"),
        (lambda: Doppler.design(0.1, kind="brick"), "unknown kind.*'brick'"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
