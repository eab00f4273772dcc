"""The picture's numbers, and that it is a picture."""

from __future__ import annotations

import csv
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from steelyard.report.parabola import csv_text, draw, png, svg, write_parabola
from steelyard.report.plots import LIGHT
from steelyard.steps.quadratic import Points, Quadratic, fit

X = np.array([[0.0, 0], [-1, 0], [1, 0], [0, -2], [0, -1], [0, 1], [0, 2]])


def fitted(a=(2.0, 1.0), b=(1.0, 1.5), cubic=0.0, sigma=0.0) -> Quadratic:
    y = 3 + X @ -np.array(b) + 0.5 * X**2 @ np.array(a) + cubic * X[:, 1] ** 3
    return fit(Points(X, np.stack([y, -y], 1), np.full(2, sigma)))


def drawn(q: Quadratic, direction: int, loss: int = 0):
    axes = Figure().subplots()
    draw(axes, q, LIGHT, direction=direction, loss=loss)
    return axes, {text.get_text() for text in axes.get_legend().get_texts()}


def test_only_the_points_of_the_direction_and_the_curve_through_them():
    axes, said = drawn(fitted(), 1)
    curve, points = axes.lines[0], axes.lines[1]
    assert points.get_xdata().tolist() == [-2, -1, 0, 1, 2]
    assert np.allclose(points.get_ydata(), [8, 5, 3, 2, 2])
    assert np.allclose(np.interp([-2, -1, 0, 1, 2], *curve.get_data()), [8, 5, 3, 2, 2], atol=1e-3)
    assert "minimum, x = 1.5" in said
    assert "parabola, R² = 1.0000" in said
    assert axes.lines[-1].get_xdata()[0] == pytest.approx(1.5)
    assert len(drawn(fitted(), 0)[0].lines[1].get_xdata()) == 3


@pytest.mark.parametrize(("a", "b"), [((1.0, -1.0), (1.0, 1.0)), ((1.0, 0.1), (1.0, 1.0))])
def test_no_minimum_is_drawn_where_there_is_none_or_far_away(a, b):
    _, said = drawn(fitted(a, b), 1)
    assert not any("minimum" in label for label in said)


def test_the_second_loss_and_a_bad_fit():
    axes, _ = drawn(fitted(), 1, loss=1)
    assert np.allclose(axes.lines[1].get_ydata(), [-8, -5, -3, -2, -2])
    _, said = drawn(fitted(cubic=0.5), 1)
    assert not any("1.0000" in label for label in said)


def test_noise_has_bars():
    assert not drawn(fitted(), 1)[0].containers[0].has_yerr
    bars = drawn(fitted(sigma=0.2), 1)[0].containers[0]
    assert bars.has_yerr
    segments = bars.lines[2][0].get_segments()
    assert np.ptp(segments[0][:, 1]) == pytest.approx(0.4)


def test_writes_a_picture_and_its_points(tmp_path):
    path = write_parabola(tmp_path / "step.png", fitted(), direction=1, title="step 8")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes() == png(fitted(), direction=1, title="step 8")
    assert png(fitted(), direction=1) != png(fitted(), direction=0)
    rows = list(csv.DictReader((tmp_path / "step.csv").open()))
    assert [float(row["x"]) for row in rows] == [-2, -1, 0, 1, 2]
    assert [float(row["loss"]) for row in rows] == pytest.approx([8, 5, 3, 2, 2])
    assert [float(row["fitted"]) for row in rows] == pytest.approx([8, 5, 3, 2, 2])
    assert csv_text(fitted()).startswith("x,loss,fitted\n-1,5,5\n")


def test_the_svg_is_for_the_page():
    text = svg(fitted(), direction=1)
    assert text.startswith("<svg")
    assert "var(--private)" in text
    assert text == svg(fitted(), direction=1)


def test_refusals(tmp_path):
    broken = fitted()
    broken.b[0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        png(broken)
    with pytest.raises(ValueError, match=r"2 directions and 2 losses.*direction 2, loss 0"):
        write_parabola(tmp_path / "x.png", fitted(), direction=2)
    with pytest.raises(ValueError, match="direction 0, loss -1"):
        svg(fitted(), loss=-1)
    assert not list(tmp_path.iterdir())


def test_needs_no_torch():
    code = "import sys; import steelyard.report.parabola; assert 'torch' not in sys.modules"
    code += "; import steelyard.steps.quadratic; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
