"""The plan of planted pilots, of real ones, and of our own runs; its doubts and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from steelyard.plans.bound import constants, features
from steelyard.plans.schedule_shapes import Shape, parse_shape
from steelyard.runs.plan_lr import plan_lr

REAL = Path(__file__).parents[1] / "plans" / "data" / "pilots.csv"
FLOOR, D, G = 1.0, 2.0, 0.5


@pytest.fixture
def planted(tmp_path):
    """`planted([(eta_ref, T), ...])`: a CSV file of runs whose whole curves follow the law."""

    def make(runs, kind="cosine", name="pilots", noise=0.0, squared=G**2):
        rng = np.random.default_rng(0)
        lines = ["run,step,lr,loss"]
        for reference, T in runs:
            eta = reference / math.sqrt(T) * parse_shape(kind, 0.02)(T)
            steps = np.unique(np.linspace(2, T, min(T - 1, 200)).astype(int))
            x1, x2 = features(eta, steps - 1)
            losses = FLOOR + D**2 * x1 + squared * x2 + noise * rng.normal(size=len(steps))
            for step, loss in zip(steps, losses, strict=True):
                lines.append(f"{reference:g}-{T},{step},{eta[step - 1]:.10g},{loss:.10g}")
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


GRID = [(r, T) for T in (300, 900, 2700) for r in (1.5, 4.0, 12.0)]


def test_planted_pilots(planted):
    plan = plan_lr([planted(GRID)], 20_000, target=1.05)
    shape = Shape(kind="cosine", warmup=0.02)
    assert [held.name for held in plan.held_out] == ["1.5-2700", "4-2700", "12-2700"]
    assert plan.protocol == "the runs of 2,700 steps, from runs of up to 900 steps"
    assert plan.error("law") < 0.002
    assert plan.error("lines") < 0.002
    assert plan.regret() == 0
    law = plan.forecasts["law"].best(20_000)
    assert law.rate == pytest.approx(4 * constants(shape, 20_000).best_peak, rel=0.02)
    assert plan.best.loss == pytest.approx(
        FLOOR + constants(shape, 20_000).price / math.sqrt(20_000), rel=1e-3
    )
    assert plan.required == pytest.approx((constants(shape, 2000).price / 0.05) ** 2, rel=0.05)
    assert plan.schedule == "that of 1.5-2700"


def test_the_planned_schedule_may_be_another(planted):
    """Lines know one schedule, the law all of them."""
    plan = plan_lr([planted(GRID)], 5_000, schedule=Shape(kind="wsd", stable=0.9, warmup=0.02))
    assert plan.method == "law"
    assert list(plan.forecasts) == ["law"]
    assert plan.schedule == "wsd:0.9"
    expected = 4 * constants(Shape(kind="wsd", stable=0.9, warmup=0.02), 5000).best_peak
    assert plan.best.rate == pytest.approx(expected, rel=0.02)


def test_real_pilots_predict_the_longest_four_times_their_length():
    """From at most 940 steps to 3,750: within 8 % of the loss, the best of five rates is chosen."""
    rest = [f"{r}-1880" for r in ("0.01", "0.03", "0.06", "0.1", "0.2")]
    longest = [name.replace("1880", "3750") for name in rest]
    plan = plan_lr([REAL], 15_000, loss="test_loss", held_out=[*rest, *longest])
    assert plan.method == "lines"
    assert plan.error() < 0.08
    assert plan.regret() == 0
    assert plan.error("law") > 0.15  # one bowl for all rates does not fit these runs


def test_real_pilots_predict_a_run_that_is_not_among_them():
    """At 15,000 steps and eta_ref = 0.2 the same training reached 0.3428, once."""
    plan = plan_lr([REAL], 15_000, loss="test_loss")
    assert plan.error() < 0.05
    assert plan.best.rate == pytest.approx(0.2 / math.sqrt(15_000), rel=0.01)
    assert plan.best.loss == pytest.approx(0.3428, rel=0.04)
    low, high = plan.best.loss_interval
    assert low < 0.3428 < high
    assert any("largest tried" in note for note in plan.notes)  # 0.4 was as good: 0.3418


def test_short_runs_can_be_left_out():
    plan = plan_lr([REAL], 15_000, loss="test_loss", at_least=400)
    assert min(p.steps for p in plan.pilots) == 470
    with pytest.raises(ValueError, match="no runs of 4000 steps"):
        plan_lr([REAL], 15_000, at_least=4000)


def test_one_horizon_leaves_one_out(planted):
    plan = plan_lr([planted([(r, 900) for r in (1, 2, 4, 8, 16)])], 900)
    assert "each run from the others" in plan.protocol
    assert len(plan.held_out) == 5
    assert plan.method == "law"
    assert plan.error() < 0.001


def test_few_runs_are_fitted_by_their_curves(planted):
    plan = plan_lr([planted([(4.0, 3000)], kind="cyclic:4", noise=0.005)], 20_000)
    assert plan.method == "curves"
    assert plan.error() < 0.02
    assert plan.protocol == "the end of each run from its first half"
    assert any("1 pilots" in note for note in plan.notes)
    low, high = plan.best.loss_interval
    assert low < plan.best.loss < high
    with pytest.raises(ValueError, match="too few to hold one out"):
        plan_lr([planted([(4.0, 3000)], name="b")], 20_000, held_out=["4-3000"])


def test_doubts(planted):
    plan = plan_lr([planted([(r, T) for T in (200, 400) for r in (20.0, 40.0)])], 40_000)
    notes = "\n".join(plan.notes)
    for said in ("4 pilots", "smallest tried", "not yet tight", "100 times longer"):
        assert said in notes, said
    plan = plan_lr([planted(GRID, kind="constant")], 20_000)
    assert any("not qualified" in note for note in plan.notes)
    plan = plan_lr([planted(GRID)], 20_000)
    assert not any("guess" in note for note in plan.notes)


def test_a_law_that_misses_says_so(tmp_path):
    lines = ["run,step,lr,loss"]
    for k, T in enumerate((100, 200, 400, 800)):
        for r in (1, 2, 4):
            loss = 3.0 if T < 800 else 1.0  # what no law of the shorter runs can know
            lines += [f"{r}-{T},{s},{r / math.sqrt(T):g},{loss + 0.01 * k}" for s in (1, T)]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    plan = plan_lr([tmp_path / "a.csv"], 1000)
    assert plan.error() > 1.5
    assert any("treat the plan as a guess" in note for note in plan.notes)


def test_our_own_runs(command_line, features_csv, tmp_path):
    """Trained, read and planned; a mixture of settings is refused."""
    common = ("--data", features_csv, "--label", "label", "--model", "mlp", "--no-baseline")
    folders = []
    for steps in (40, 160):
        for reference in (0.1, 1.0):
            lr = reference / math.sqrt(steps)
            out = tmp_path / f"run-{steps}-{reference}"
            done = command_line(
                "train", *common, "--no-privacy", "--steps", steps, "--lr", lr, "--batch", 32,
                "--schedule", "linear", "--out", out,
            )  # fmt: skip
            assert done.code == 0, done.err
            folders.append(out)
    plan = plan_lr(folders, 320)
    assert {p.steps for p in plan.pilots} == {40, 160}
    assert plan.schedule == "linear"
    assert plan.best.rate > 0
    config = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps(config | {"batch": 64}))
    with pytest.raises(ValueError, match=r"has batch 32 and .* 64: a law is of one setting"):
        plan_lr(folders, 320)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be"),
        ({"held_out": ["nobody"]}, "no run 'nobody' to hold out"),
        ({"held_out": [f"{r:g}-{T}" for r, T in GRID[:7]]}, "hold out fewer"),
        ({"target": 0.5}, "no horizon"),
    ],
)
def test_refusals(planted, options, said):
    with pytest.raises(ValueError, match=said) as error:
        plan_lr([planted(GRID)], **{"steps": 5000, **options})
    assert "\n" not in str(error.value)


def test_runs_without_a_best_rate_are_refused(planted):
    """The larger, the better, and each eta_ref at one horizon."""
    runs = [(1.0 + k, 300 + 10 * k) for k in range(6)]
    with pytest.raises(ValueError, match="none was hurt by a large rate"):
        plan_lr([planted(runs, squared=-0.1)], 1000)


def test_no_runs_and_twice_the_same(planted):
    with pytest.raises(ValueError, match="no runs"):
        plan_lr([], 100)
    with pytest.raises(ValueError, match="given twice"):
        plan_lr([planted(GRID)] * 2, 100)
