"""`--dry-run`: the plan, the memory, and nothing written."""

from __future__ import annotations

import pytest

from steelyard.plans.privacy import plan_privacy
from steelyard.runs import recipes

QUICK = ("--accountant", "rdp", "--steps", 3)


def test_dry_run_shows_the_plan_and_writes_nothing(command_line, features_csv, tmp_path):
    before = set(tmp_path.rglob("*"))
    outcome = command_line("train", "--data", features_csv, *QUICK, "--dry-run")
    assert outcome.code == 0
    for part in ("sigma", "q 0.", "epsilon by step", "memory", "activations", "3 of expected"):
        assert part in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert set(tmp_path.rglob("*")) == before
    without = command_line("train", "--data", features_csv, "--no-privacy", "--dry-run")
    assert "nothing is protected" in without.out


def test_memory_estimate_grows_with_the_micro_batch(features_csv):
    settled = recipes.settle({"data": str(features_csv), "steps": 1}, private=False)
    small, large = (
        recipes.preview(settled.config.replace(batch=64, micro_batch=size), settled.table).memory
        for size in (8, 64)
    )
    assert large["activations"] == pytest.approx(8 * small["activations"])
    assert small["parameters"] == pytest.approx(4 * (4 * 256 + 256 + 256 * 2 + 2) / 2**20)


@pytest.mark.parametrize("epochs", [0.01, 1, 2.5, 30])
@pytest.mark.parametrize(("n", "batch"), [(12_000, 128), (100, 7), (50, 50)])
def test_epochs_are_the_same_number_of_steps_with_and_without_privacy(epochs, n, batch):
    config = recipes.DEFAULT.replace(epsilon=None, epochs=epochs, batch=batch)
    private = plan_privacy(n=n, batch=batch, epochs=epochs, noise_multiplier=5, accountant="rdp")
    assert recipes.plan_for(config, n) == (None, private.steps)
