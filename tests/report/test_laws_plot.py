"""The two pictures: what is drawn where, and files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from steelyard.plans.bound import features
from steelyard.plans.curve_law import fit_curve
from steelyard.plans.schedule_shapes import parse_shape
from steelyard.report import laws
from steelyard.report.laws import write_curve, write_ends
from steelyard.runs.plan_lr import plan_lr

PILOTS = Path(__file__).parents[1] / "plans" / "data" / "pilots.csv"


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the last picture."""
    seen, real = [], laws._png

    def spy(draw, title):
        return real(lambda axes: (draw(axes), seen.append(axes)), title)

    monkeypatch.setattr(laws, "_png", spy)
    return lambda: seen[-1]


def curve(**options):
    lr = 0.3 * parse_shape("cosine", 0.02)(1000)
    steps = np.arange(10, 1001, 10)
    x1, x2 = features(lr, steps)
    noise = 0.01 * np.random.default_rng(0).normal(size=100)
    return fit_curve(lr, steps, 1 + 4 * x1 + 0.25 * x2 + noise, bootstrap=0, **options)


def test_the_curve_is_fitted_to_its_middle_and_predicted_from_there(tmp_path, drawn):
    fit = curve()
    path = write_curve(tmp_path / "curve.png", fit, title="A run")
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = drawn()
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert lines["measured"] == pytest.approx(np.stack([fit.steps, fit.losses], 1))
    assert lines["fitted"][-1, 0] <= 500 < lines["predicted"][0, 0]
    assert lines["predicted"][:, 1] == pytest.approx(fit.predicted[~fit.fitted])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        "measured",
        "fitted",
        "predicted",
    ]
    assert axes.get_title(loc="left") == "A run"


def test_a_curve_that_was_fitted_whole_has_no_prediction(tmp_path, drawn):
    write_curve(tmp_path / "curve.png", curve(fit_on=1.0))
    assert {line.get_label() for line in drawn().get_lines()} == {"measured", "fitted"}


def test_ends_lie_against_one_over_root_t(tmp_path, drawn):
    plan = plan_lr([PILOTS], 15_000, loss="test_loss")
    write_ends(tmp_path / "ends.png", plan)
    axes = drawn()
    points = {
        tuple(point)
        for line in axes.get_lines()
        if line.get_marker() == "o"
        for point in line.get_xydata().round(12).tolist()
    }
    assert points == {(round(1 / math.sqrt(p.steps), 12), round(p.loss, 12)) for p in plan.pilots}
    straight = [line for line in axes.get_lines() if len(line.get_xydata()) == 2]
    assert len(straight) == 6  # five references and the plan's interval
    for line in straight[:5]:
        assert line.get_xydata()[0, 0] == pytest.approx(1 / math.sqrt(15_000))  # drawn to the plan
    (star,) = [line for line in axes.get_lines() if line.get_marker() == "*"]
    assert star.get_xydata()[0] == pytest.approx([1 / math.sqrt(15_000), plan.best.loss])
    texts = [t.get_text() for t in axes.get_legend().get_texts()]
    assert texts == ["0.01", "0.03", "0.06", "0.1", "0.2", "plan"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        write_curve(tmp_path, curve())
