"""--noise: the mechanism of a run, and what settings, ledger and report say of it."""

from __future__ import annotations

import json

import pytest
import torch

from steelyard.filters.gaussian import Gaussian
from steelyard.filters.grid import GridGaussian
from steelyard.plans.privacy import plan_privacy
from steelyard.report.read import read_run
from steelyard.report.summary import summarize
from steelyard.report.words import release
from steelyard.runs.config import TrainConfig
from steelyard.runs.ledger import NOISES, Ledger
from steelyard.runs.private import MECHANISMS

PLAN = plan_privacy(n=1000, batch=100, steps=5, noise_multiplier=3.0, accountant="rdp")


def test_every_noise_has_a_mechanism_and_words():
    assert (MECHANISMS["gaussian"], MECHANISMS["grid"]) == (Gaussian, GridGaussian)
    assert MECHANISMS.keys() == NOISES.keys()
    assert TrainConfig(model="mlp", data="x", steps=1).noise == "gaussian"
    with pytest.raises(ValueError, match="unknown --noise 'gird': did you mean 'grid'"):
        TrainConfig(model="mlp", data="x", steps=1, noise="gird")


def test_the_ledger_says_which_noise_and_keeps_it():
    ledger = Ledger(PLAN)
    assert ledger.report()["noise"] == "gaussian"
    ledger.noise = "grid"
    report, saved = ledger.report(), ledger.state_dict()
    assert report["noise"] == "grid"
    assert NOISES["grid"] in report["assumptions"]
    assert NOISES["gaussian"] not in report["assumptions"]
    resumed = Ledger(PLAN)
    resumed.load_state_dict(json.loads(json.dumps(saved)))
    assert resumed.report() == report
    with pytest.raises(ValueError, match="not a saved privacy ledger: unknown noise 'white'"):
        resumed.load_state_dict({**saved, "noise": "white"})


TRAIN = ("train", "--data", "rows.csv", "--label", "label", "--batch", 40, "--accountant", "rdp")


def test_a_run_on_the_grid(command_line, features_csv, tmp_path):
    out = tmp_path / "run"
    options = ("--noise", "grid", "--steps", 4, "--noise-seed", 1, "--out", out)
    assert command_line(*TRAIN, *options).code == 0
    assert json.loads((out / "config.json").read_text())["noise"] == "grid"
    record = json.loads((out / "ledger.json").read_text())
    assert record["noise"] == "grid"
    assert NOISES["grid"] in record["assumptions"]
    run = read_run(out)
    assert "discrete Gaussian noise, on a grid," in " ".join(release(run, summarize(run)))
    other = tmp_path / "plain"
    assert command_line(*TRAIN, "--steps", 4, "--out", other).code == 0
    run = read_run(other)
    assert run.ledger is not None
    assert run.ledger["noise"] == "gaussian"
    assert "on a grid" not in " ".join(release(run, summarize(run)))


def test_a_run_on_the_grid_resumes_bit_for_bit(new_training, carry_out, tmp_path):
    def training(**changes):
        return new_training(noise="grid", epsilon=4.0, **changes)

    whole = training()
    assert isinstance(whole.private.mechanism.mechanism, GridGaussian)
    wanted = carry_out(whole, tmp_path / "whole")
    half = training()
    half.steps = 3
    carry_out(half, tmp_path / "half")
    resumed = training()
    assert resumed.resume(tmp_path / "half") == []
    assert resumed.step == 3
    found = carry_out(resumed, tmp_path / "half")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert resumed.ledger is not None
    assert resumed.ledger.noise == "grid"
    with pytest.raises(ValueError, match="not a saved state of Gaussian"):
        new_training(epsilon=4.0).resume(tmp_path / "half")


def test_a_grid_that_is_too_coarse_is_refused_before_the_first_step(new_training, monkeypatch):
    monkeypatch.setattr("steelyard.filters.grid.LARGEST_PART", 1e-9)
    with pytest.raises(ValueError, match="a grid of 24 bits is too coarse for"):
        new_training(noise="grid", epsilon=4.0)
    new_training(epsilon=4.0)
