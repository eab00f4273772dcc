"""One run of a fixed length: what it logs, and that its probe is never trained on."""

from __future__ import annotations

import pytest
import torch

from steelyard.trials import horizons
from steelyard.trials.horizons import horizon
from steelyard.trials.tasks import Task

SMALL = {"task": "images", "shape": "cosine", "steps": 40, "seed": 0, "batch": 4, "probe": 100}


def test_a_run_learns_and_logs_its_losses():
    one = horizon(**SMALL, reference=0.2, logs=8)
    assert one["at"] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert len(one["curve"]) == len(one["train"]) == 8
    assert one["loss"] == one["curve"][-1] < 0.9 * one["curve"][0]
    assert one["train"][0] == pytest.approx(2.3, abs=0.2)  # the mean of steps 1 to 5
    assert one["minibatches"] > 0
    assert not one["diverged"]
    again = horizon(**SMALL, reference=0.2, logs=8)
    assert {**again, "seconds": 0} == {**one, "seconds": 0}


def test_logging_changes_nothing_and_the_seed_does():
    one, other = (horizon(**SMALL, reference=0.2, logs=logs) for logs in (1, 8))
    assert (one["loss"], one["minibatches"]) == (other["loss"], other["minibatches"])
    assert horizon(**SMALL | {"seed": 1}, reference=0.2, logs=1)["loss"] != one["loss"]


def test_the_text_is_learnt_by_adamw():
    one = horizon(
        task="text", shape="wsd:0.8", reference=0.02, steps=20, seed=0, batch=4, probe=32, logs=2
    )
    assert one["curve"][1] < one["curve"][0] < 5.5


def test_no_run_trains_on_the_probe_nor_twice_on_a_sample():
    first, second = (horizons._split(Task("images", seed, batch=4), 100) for seed in (0, 1))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    for held, order in (first, second):
        assert len(held) == 100
        assert torch.equal(torch.cat([held, order]).sort().values, torch.arange(60_000))


def test_the_rate_follows_the_horizon(monkeypatch):
    seen = []

    def recorded(task, peak):
        seen.append(peak)
        return torch.optim.SGD(task.model.parameters(), lr=peak)

    monkeypatch.setattr(horizons, "_optimizer", recorded)
    for steps in (4, 16):
        horizon(**SMALL | {"steps": steps}, reference=0.2, logs=1)
    assert seen == pytest.approx([0.1, 0.05])


def test_a_run_that_diverges_has_no_loss(monkeypatch):
    monkeypatch.setattr(Task, "losses", lambda self, indices: torch.full((4,), torch.nan))
    one = horizon(**SMALL, reference=0.2, logs=8)
    assert one["diverged"]
    assert one["loss"] is None
    assert one["test_loss"] is None


def test_the_data_are_seen_once():
    with pytest.raises(ValueError, match="20,000 steps of 4 are more than the 59,900 samples"):
        horizon(**SMALL | {"steps": 20_000}, reference=0.2)
