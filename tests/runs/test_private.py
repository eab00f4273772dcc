"""The private side of a run, as the settings name it: what is built, refused, told and written."""

from __future__ import annotations

import csv
import json

import pytest

from steelyard.filters.dice import Dice
from steelyard.filters.disk import Disk
from steelyard.filters.doppler import Doppler
from steelyard.filters.gaussian import Gaussian
from steelyard.filters.record import Recorder
from steelyard.plans.feedback import assumption, inflation
from steelyard.plans.privacy import plan_privacy
from steelyard.report import write_report
from steelyard.report.read import read_run
from steelyard.report.summary import summarize
from steelyard.report.words import release
from steelyard.rows.sources import PublicRows

DICE = {"clip": "flat:0.5", "filters": ["dice:2,accounting=paper", "doppler:0.5"]}


def kinds(training) -> list[type]:
    return [type(part) for part in training.private.mechanism.parts]


def test_the_chain_is_in_the_order_of_the_settings(new_training):
    training = new_training(
        filters=["disk:0.7", "doppler:0.9"], public_part=0.3, public_weight="0.4"
    )
    assert kinds(training) == [Gaussian, PublicRows, Recorder, Disk, Doppler, Recorder]
    assert training.private.buffers == 4  # public sum, two of DiSK, one of DOPPLER
    assert kinds(new_training()) == [Gaussian, Recorder]
    assert new_training().private.buffers == 0


def test_error_feedback_takes_the_noise_s_place(new_training, carry_out, tmp_path):
    training = new_training(**DICE)
    assert kinds(training) == [Dice, Recorder, Doppler, Recorder]
    noise = training.private.mechanism.mechanism
    assert noise.bound == 0.5
    assert noise.feedback == 2.0
    assert training.rows.raw_bound == noise.largest
    carry_out(training, tmp_path)
    assert training.ledger.steps == 6
    assert assumption("paper") in training.ledger.report()["assumptions"]
    (before, _) = training.private.recorders
    plan = training.plan
    factor = inflation("paper", rho=2.0, bound=0.5, largest=noise.largest)
    assert factor == 3.0  # sqrt(1 + 2 rho^2)
    expected = plan.noise_multiplier * factor * 0.5 / plan.expected_batch
    assert before.noise_std == pytest.approx([expected] * 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (DICE | {"clip": "auto-s"}, "needs flat clipping, found --clip auto-s: use --clip flat:1"),
        (DICE | {"noise": "grid"}, "draws Gaussian noise: drop --noise grid"),
        (DICE | {"filters": ["doppler:0.5", "dice:1"]}, "comes once, before every other filter"),
        (DICE | {"filters": ["dice:1"]}, "accounting 'none' is not for the command line"),
        (DICE | {"filters": ["dice:1,accounting=one-pass"]}, "accounting 'one-pass' is not for"),
        (DICE | {"filters": ["dice:-1,accounting=paper"]}, "0 or positive, found -1"),
        ({"public_part": 0.3, "public_weight": "1"}, "use --no-privacy --public-first 1"),
        ({"public_part": 0.3, "public_weight": "1.5"}, r"in \[0, 1\], found 1.5"),
        ({"public_part": 0.3, "public_weight": "best"}, "'best': choose samples, cosine, optimal"),
        ({"filters": ["disk:0.7", "disk:0.5"]}, "one Disk per optimizer"),
        ({"clip": "flat:inf"}, "bounds nothing"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    new_training, changes, message
):
    with pytest.raises(ValueError, match=message) as error:
        new_training(**changes)
    assert "\n" not in str(error.value)


def test_a_slow_filter_is_noted_beforehand(new_training):
    assert new_training(filters=["doppler:0.9"]).private.warnings
    assert not new_training(filters=["doppler:0.0"]).private.warnings


# -- what a run writes ---------------------------------------------------------------------------


def rows_of(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def train(command_line, features_csv, *options: object):
    common = ("--data", features_csv, "--accountant", "rdp", "--batch", 32, "--tracker", "none")
    return command_line("train", *common, *options, "--out", "run")


def test_a_run_writes_its_spectrum(command_line, features_csv, tmp_path):
    outcome = train(command_line, features_csv, "--steps", 40, "--filter", "doppler:0.9")
    assert outcome.code == 0, outcome.err
    found = rows_of(tmp_path / "run" / "spectrum.csv")
    assert [*found[0]] == ["frequency", "released", "filtered", "noise", "noise_filtered"]
    # at the highest frequency the filter leaves ((1 - phi) / (1 + phi))^2 of the noise
    last = {name: float(value) for name, value in found[-1].items()}
    assert last["frequency"] == 0.5
    assert last["noise_filtered"] / last["noise"] == pytest.approx((0.1 / 1.9) ** 2, rel=1e-3)
    page = write_report(tmp_path / "run").read_text()
    assert (tmp_path / "run" / "spectrum.png").stat().st_size > 5_000
    assert "Spectrum of the released gradient" in page
    assert page.count("<svg") == page.count("</svg>")


def test_a_run_too_short_for_a_spectrum_has_none(command_line, features_csv, tmp_path):
    outcome = train(command_line, features_csv, "--steps", 4)
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "run" / "spectrum.csv").exists()
    assert "Spectrum" not in write_report(tmp_path / "run").read_text()


def test_a_damaged_spectrum_is_one_line(command_line, features_csv, tmp_path):
    assert train(command_line, features_csv, "--steps", 20).code == 0
    (tmp_path / "run" / "spectrum.csv").write_text("frequency,released\n0,nothing\n")
    with pytest.raises(ValueError, match="is not the spectrum of a run"):
        write_report(tmp_path / "run")


def test_everything_on_the_command_line_with_lora(command_line, pretrained, reviews, tmp_path):
    model = ("--model", pretrained("bert"), "--adapter", "lora", "--length", 8)
    options = (
        *("--filter", "disk:0.7", "--filter", "doppler:0.5", "--groups", "layer"),
        *("--public-part", 0.3, "--public-weight", "optimal", "--public-first", 0.3),
        *("--optimizer", "adamw", "--lr", 0.01, "--batch", 12, "--micro-batch", 4),
        *("--steps", 6, "--accountant", "rdp", "--tracker", "none"),
    )
    outcome = command_line("train", "--data", reviews, *model, *options, "--out", "run")
    assert outcome.code == 0, outcome.err
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["public_steps"], ledger["steps"]) == (6, 2, 4)
    n, delta = ledger["n"], ledger["delta"]
    alone = plan_privacy(n=n, batch=12, steps=4, epsilon=3.0, delta=delta, accountant="rdp")
    assert (ledger["epsilon"], ledger["sigma"]) == (alone.epsilon, alone.noise_multiplier)
    assert ledger["q"] == 12 / n
    run = read_run(tmp_path / "run")
    said = " ".join(release(run, summarize(run)))
    assert "first 2 steps trained on public samples only" in said
    assert "In each of the 4 steps" in said
    assert "weight: optimal" in said
    assert "disk:0.7, doppler:0.5" in said


def test_the_plan_names_public_samples_and_filters(command_line, features_csv):
    outcome = train(
        command_line,
        features_csv,
        *("--steps", 10, "--dry-run", "--filter", "doppler:0.9", "--public-part", 0.2),
        *("--public-first", 0.3),
    )
    assert outcome.code == 0, outcome.err
    for part in ("the first 3 steps", "doppler:0.9", "stale gradients", "filters"):
        assert part in outcome.out
