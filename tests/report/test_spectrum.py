"""Densities against what is known of white noise and of the filter; the picture and its numbers."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
from scipy.signal import lfilter

from steelyard.report.spectrum import png, spectrum, write_spectrum

B, A = [0.1], [1.0, -0.9]


@pytest.fixture
def noise() -> np.ndarray:
    return 0.3 * np.random.default_rng(0).normal(size=(600, 100))


def test_white_noise_lies_on_its_floor_before_and_behind_the_filter(noise):
    filtered = lfilter(B, A, noise, axis=0)
    found = spectrum(noise, filtered, noise_std=0.3, b=B, a=A)
    assert list(found) == ["frequency", "released", "filtered", "noise", "noise_filtered"]
    assert found["frequency"][0] == 0
    assert found["frequency"][-1] == 0.5
    assert len({len(column) for column in found.values()}) == 1
    assert np.allclose(found["noise"], 0.09)
    # 600 steps are about 9 segments, of 100 coordinates: 3 % a bin
    assert np.allclose(found["released"], found["noise"], rtol=0.15)
    inner = found["frequency"] > 0.02  # where the window does not blur the steep part
    assert np.allclose(found["filtered"][inner], found["noise_filtered"][inner], rtol=0.2)


def test_the_integral_is_the_mean_square(noise):
    found = spectrum(noise, noise_std=0.3)
    two_sided = np.concatenate([found["released"], found["released"][1:-1]])
    assert two_sided.mean() == pytest.approx((noise**2).mean(), rel=0.03)


def test_a_wave_stands_at_its_frequency_and_a_constant_at_zero(noise):
    wave = np.cos(2 * np.pi * 0.25 * np.arange(600))[:, None]
    found = spectrum(noise + wave, noise_std=0.3)
    assert found["frequency"][found["released"].argmax()] == pytest.approx(0.25, abs=0.01)
    assert spectrum(noise + 1.0, noise_std=0.3)["released"].argmax() == 0


def test_the_filters_response_in_closed_form():
    steps = np.ones((64, 1))
    found = spectrum(steps, noise_std=2.0, b=[0.5], a=A)  # DC gain 5: corrected, as mhat is
    cosine = np.cos(2 * np.pi * found["frequency"])
    expected = 4.0 * 0.01 / (1 - 1.8 * cosine + 0.81)
    assert np.allclose(found["noise_filtered"], expected)
    assert "filtered" not in found


def test_noise_that_changes_counts_by_its_mean_square():
    found = spectrum(np.ones((20, 2)), noise_std=np.array([1.0, 2.0] * 10))
    assert np.allclose(found["noise"], 2.5)


@pytest.mark.parametrize(
    ("released", "filtered", "words"),
    [
        (np.ones(50), None, r"released must be \[steps, coordinates\].*found \[50\]"),
        (np.ones((15, 3)), None, "16 steps or more.*15, 3"),
        (np.ones((20, 0)), None, "released must be"),
        (np.ones((20, 3)), np.ones((20, 2)), "filtered must be.*20, 2.*20, 3"),
        (np.full((20, 3), np.nan), None, "released has values that are not finite"),
    ],
)
def test_refusals(released, filtered, words):
    with pytest.raises(ValueError, match=words):
        spectrum(released, filtered, noise_std=1.0)


def test_writes_a_picture_and_its_numbers(tmp_path, noise):
    found = spectrum(noise, lfilter(B, A, noise, axis=0), noise_std=0.3, b=B, a=A)
    path = write_spectrum(tmp_path / "new" / "spectrum.png", found, title="A run")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.read_bytes() == png(found, title="A run")
    assert path.read_bytes() != png(found)
    with (tmp_path / "new" / "spectrum.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["frequency"])
    for name, column in found.items():
        assert np.allclose([float(row[name]) for row in rows], column, rtol=1e-5)


def test_a_run_without_noise_can_be_drawn():
    found = spectrum(np.ones((32, 1)), noise_std=0.0, b=B, a=A)
    drawn = {name: found[name] for name in ("frequency", "released")}
    assert png(found) == png(drawn)


def test_needs_no_torch():
    code = "import sys, steelyard.report.spectrum; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
