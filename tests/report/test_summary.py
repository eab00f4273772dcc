from __future__ import annotations

import pytest

from steelyard.report.read import read_run
from steelyard.report.summary import half_width, summarize


def test_numbers_come_from_result_and_ledger(make_run):
    s = summarize(read_run(make_run(baseline=True)))
    assert (s.epsilon, s.delta, s.target, s.sigma) == (2.993, 1e-5, 3.0, 0.823)
    assert s.score is not None
    assert s.baseline is not None
    assert s.score.value < s.baseline.value
    assert s.protected
    assert s.complete


def test_an_unfinished_run_has_its_latest_evaluation(make_run):
    folder = make_run(complete=False)
    s = summarize(read_run(folder))
    assert not s.complete
    assert (s.steps, s.planned) == (176, 352)
    assert s.epsilon == pytest.approx(2.993 * (176 / 352) ** 0.5, abs=1e-4)
    assert s.score is not None
    assert s.score.value == read_run(folder).of_kind("eval")[-1]["accuracy"]


def test_without_a_ledger_an_unfinished_run_tells_the_logged_epsilon(make_run):
    folder = make_run(complete=False)
    (folder / "ledger.json").unlink()
    s = summarize(read_run(folder))
    assert s.epsilon == pytest.approx(2.993 * 0.5**0.5, abs=1e-4)
    assert not s.unbounded


def test_without_a_ledger_a_finished_run_has_no_epsilon(make_run):
    folder = make_run()
    (folder / "ledger.json").unlink()
    s = summarize(read_run(folder))
    assert s.epsilon is None
    assert not s.protected


@pytest.mark.parametrize(
    "ledger", [{"epsilon": None}, {"sigma": 0.0}, {"noise_seeded_by_user": True}]
)
def test_no_protection_is_claimed_without_finite_epsilon_noise_and_secrecy(make_run, ledger):
    assert not summarize(read_run(make_run(change={"ledger": ledger}))).protected


def test_a_noise_seed_in_the_settings_voids_the_claim(make_run):
    s = summarize(read_run(make_run(change={"config": {"noise_seed": 7}})))
    assert s.seeded
    assert not s.protected


def test_a_run_without_privacy_has_no_epsilon(make_run):
    s = summarize(read_run(make_run(private=False)))
    assert (s.epsilon, s.delta, s.sigma, s.protected) == (None, None, None, False)


def test_language_models_have_a_perplexity(make_run):
    s = summarize(read_run(make_run(language=True)))
    assert s.score is not None
    assert s.score.name == "perplexity"
    assert s.score.half_width is None


@pytest.mark.parametrize(
    ("name", "short"),
    [("/home/somebody/reviews.csv", "reviews.csv"), ("data/reviews.parquet", "reviews.parquet"),
     ("organisation/model", "organisation/model"), ("cnn", "cnn")],
)  # fmt: skip
def test_a_path_is_shown_by_its_last_part(make_run, name, short):
    assert summarize(read_run(make_run(change={"result": {"data": name}}))).data == short


def test_half_width_is_wilson():
    # 81 of 263: the interval (0.2553, 0.3662), Newcombe (1998), table I, method 3
    assert half_width(81 / 263, 263) == pytest.approx((0.3662 - 0.2553) / 2, abs=1e-4)
    assert half_width(1.0, 100) == pytest.approx(0.0185, abs=1e-4)  # not zero at the edge
    assert half_width(0.5, None) is None
    assert half_width(1.5, 10) is None
