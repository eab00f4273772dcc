"""The unlearning loop: every method forgets, stops where it should, and resumes bit for bit."""

from __future__ import annotations

import io
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from steelyard.runs.events import Events, read_events
from steelyard.runs.interrupt import Interrupted
from steelyard.runs.methods import METHODS
from steelyard.runs.progress import RunProgress
from steelyard.runs.unlearn_config import UnlearnConfig
from steelyard.runs.unlearn_eval import rows_of_step
from steelyard.runs.unlearning import Unlearning

BASE = UnlearnConfig(
    model="tiny", forget="f", retain="r", adapter="full", lr=2e-3, epochs=6.0, batch=5, length=96,
    tolerance=50.0, evaluate_every=2, device="cpu",
)  # fmt: skip


@pytest.fixture
def start(memorised):
    """`start(method="npo")`: a run that has not begun."""
    model, tokenizer, forget, retain = memorised

    def make(**changes) -> Unlearning:
        config = BASE.replace(**changes)
        return Unlearning(config, model(), tokenizer, forget, retain, run_id="tiny")

    return make


def carry_out(run: Unlearning, folder) -> dict[str, float]:
    with (
        Events(folder / "events.jsonl") as events,
        RunProgress(run.steps, False, Console(file=io.StringIO())) as progress,
    ):
        return run.run(folder, events, progress)


def weights(run: Unlearning) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.parameters])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_forgets(start, tmp_path, method):
    run = start(method=method)
    found = carry_out(run, tmp_path)
    assert run.first["forget_loss"] < 0.1
    assert found["forget_loss"] > 2 * run.first["forget_loss"]
    assert not run.model.training


@pytest.mark.parametrize("method", ["ngdiff", "simnpo", "lossnorm"])
def test_and_forgets_more_of_the_one_than_of_the_other(start, tmp_path, method):
    found = carry_out(start(method=method), tmp_path)
    assert found["forget_loss"] > 2 * found["retain_loss"]


def test_without_a_rate_it_is_found_on_the_retain_loss(start, tmp_path):
    run = start(method="ngdiff", lr=None)
    found = carry_out(run, tmp_path)
    rates = {e["lr"] for e in read_events(tmp_path / "events.jsonl") if e["kind"] == "train"}
    assert len(rates) > 3
    assert found["retain_loss"] < 2 * run.first["retain_loss"] + 0.05


@pytest.mark.parametrize(
    "changes",
    [{"method": "ngdiff", "lr": None}, {"method": "pdu"}, {"method": "negation"}, {"method": "kl"}],
)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(start, tmp_path, monkeypatch, changes):
    whole = start(**changes)
    expected = carry_out(whole, tmp_path / "whole")
    cut = start(**changes)

    @contextmanager
    def pressed():
        yield SimpleNamespace(is_set=lambda: cut.step == 5)

    with monkeypatch.context() as patch:
        patch.setattr("steelyard.runs.unlearning.interruptible", pressed)
        with pytest.raises(Interrupted):
            carry_out(cut, tmp_path / "cut")
    again = start(**changes)
    assert again.resume(tmp_path / "cut") == []
    assert again.step == 5
    assert carry_out(again, tmp_path / "cut") == expected
    assert torch.equal(weights(again), weights(whole))
    logged = [
        [(e["step"], e["losses"]) for e in read_events(f / "events.jsonl") if e["kind"] == "train"]
        for f in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert logged[0] == logged[1]


def test_it_stops_at_the_reference(start, tmp_path):
    run = start(method="graddiff", stop_forget=1.0, epochs=50.0, evaluate_every=1)
    found = carry_out(run, tmp_path)
    assert found["forget_loss"] >= 1.0
    assert run.step < run.steps
    assert run.stopped == "the forget loss reached 1"


def test_a_state_beyond_the_tolerance_is_given_up(start, tmp_path):
    run = start(method="ga", tolerance=4.0, epochs=50.0, evaluate_every=1)
    found = carry_out(run, tmp_path)
    events = [e for e in read_events(tmp_path / "events.jsonl") if e["kind"] == "eval"]
    assert events[-1]["retain_loss"] > run.limit == pytest.approx(0.5)
    assert found["retain_loss"] <= 0.5
    assert found["retain_loss"] == events[-2]["retain_loss"]
    assert f"back to the state after step {run.step - 1}" in run.stopped


def test_micro_batches_change_nothing(start, tmp_path):
    plain = {"method": "npo", "epochs": 2.0, "optimizer": "sgd", "lr": 0.05}
    one = start(**plain)
    carry_out(one, tmp_path / "a")
    small = start(**plain, micro_batch=2)
    carry_out(small, tmp_path / "b")
    torch.testing.assert_close(weights(one), weights(small), rtol=0, atol=1e-5)


def test_rows_come_in_epochs_and_depend_on_the_step_alone():
    n, batch = 10, 4
    steps = [rows_of_step(k, batch, n, 3) for k in range(5)]
    epochs = torch.cat(steps).view(2, n)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(n))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(rows_of_step(3, batch, n, 3), steps[3])
    assert not torch.equal(rows_of_step(0, batch, n, 4), steps[0])
    assert len(rows_of_step(0, 16, n, 3)) == n  # a batch larger than the set is the set


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "ngdif"}, "unknown --method 'ngdif': did you mean 'ngdiff'"),
        ({"method": "ga", "lr": None}, "no retain loss to find a learning rate by: give --lr"),
        ({"batch": 0}, "--batch must be positive, found 0"),
        ({"retain_weight": -1.0}, "--retain-weight must be 0 or more, found -1.0"),
        ({"stop_forget": 1.0, "reference": "m"}, "--stop-forget 1 and --reference m: give one"),
        ({"adapter": "lorra"}, "unknown --adapter 'lorra': did you mean 'lora'"),
    ],
)
def test_wrong_settings_are_one_line(changes, told):
    with pytest.raises(ValueError, match=told) as caught:
        BASE.replace(**changes)
    assert "\n" not in str(caught.value)


def test_wrong_rows_are_one_line(memorised, start):
    model, tokenizer, forget, retain = memorised
    with pytest.raises(ValueError, match="the forget set is empty"):
        Unlearning(BASE, model(), tokenizer, [], retain, run_id="x")
    long = [{**retain[0], "output": "9" * 120}]
    with pytest.raises(ValueError, match=r"retain set: row 0 \(id name0\) has \d+ tokens"):
        Unlearning(BASE, model(), tokenizer, forget, long, run_id="x")
    with pytest.raises(ValueError, match="--method ngdiff has no beta: drop --beta 2"):
        start(beta=2.0)


def test_negation_needs_all_weights(memorised):
    model, tokenizer, forget, retain = memorised
    frozen = model()
    next(frozen.parameters()).requires_grad_(False)
    with pytest.raises(ValueError, match="walks back all weights: use --adapter full"):
        Unlearning(BASE.replace(method="negation"), frozen, tokenizer, forget, retain, run_id="x")
