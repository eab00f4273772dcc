"""The unlearning loop: every method forgets, stops where it should, and resumes bit for bit."""

from __future__ import annotations

import io
import math
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


def interrupt(run: Unlearning, step: int, folder, monkeypatch) -> None:
    """Carry it out as far as `step`, where Ctrl-C is pressed."""

    @contextmanager
    def pressed():
        yield SimpleNamespace(is_set=lambda: run.step == step)

    with monkeypatch.context() as patch:
        patch.setattr("steelyard.runs.unlearning.interruptible", pressed)
        with pytest.raises(Interrupted):
            carry_out(run, folder)


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
    ("changes", "rate"),
    [({"adapter": "full"}, 1e-5), ({"adapter": "lora"}, 1e-4), ({"lr_start": 3e-3}, 3e-3)],
)
def test_where_a_rate_that_is_found_begins(start, changes, rate):
    run = start(method="ngdiff", lr=None, **changes)
    assert run.rate is not None
    assert run.rate.rates == [rate]
    assert start(method="ngdiff", lr=2e-3).rate is None


@pytest.mark.parametrize(
    "changes",
    [{"method": "ngdiff", "lr": None}, {"method": "pdu"}, {"method": "negation"}, {"method": "kl"}],
)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(start, tmp_path, monkeypatch, changes):
    whole = start(**changes)
    expected = carry_out(whole, tmp_path / "whole")
    cut = start(**changes)
    interrupt(cut, 5, tmp_path / "cut", monkeypatch)
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


def noisy(model, rate: float = 0.5):
    """The model with dropout at this rate everywhere, in training mode."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
    return model.train()


@pytest.fixture
def begin(memorised):
    """`begin(rate, method="npo")`: a run of a model with dropout that has not begun."""
    model, tokenizer, forget, retain = memorised

    def make(rate: float, **changes) -> Unlearning:
        config = BASE.replace(**changes)
        return Unlearning(config, noisy(model(), rate), tokenizer, forget, retain, run_id="tiny")

    return make


@pytest.mark.parametrize("checkpointing", [False, True])
def test_steps_have_no_dropout(begin, checkpointing):
    plain, dropping = (begin(rate, method="npo", beta=0.5) for rate in (0.0, 0.5))
    recomputed = []
    if checkpointing:
        dropping.model.gradient_checkpointing_enable()
        for block in dropping.model.transformer.h:
            inner = block._gradient_checkpointing_func
            block._gradient_checkpointing_func = lambda *a, inner=inner, **k: (
                recomputed.append(1),
                inner(*a, **k),
            )[1]
    modes = [module.training for module in dropping.model.modules()]
    for k in range(2):
        losses = [run._one_step()["losses"] for run in (plain, dropping)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        if k == 0:  # p = p0, to rounding
            assert losses[1]["forget"] == pytest.approx(2 / 0.5 * math.log(2), rel=1e-6)
        plain.step, dropping.step = k + 1, k + 1
    torch.testing.assert_close(weights(plain), weights(dropping), rtol=0, atol=1e-5)
    assert [module.training for module in dropping.model.modules()] == modes
    assert len(recomputed) == (2 * 2 * 2 if checkpointing else 0)  # steps, rows, blocks


def test_a_model_with_dropout_resumes_bit_for_bit(begin, tmp_path, monkeypatch):
    whole = begin(0.5, method="kl")
    expected = carry_out(whole, tmp_path / "whole")
    cut = begin(0.5, method="kl")
    interrupt(cut, 5, tmp_path / "cut", monkeypatch)
    again = begin(0.5, method="kl")
    again.resume(tmp_path / "cut")
    assert carry_out(again, tmp_path / "cut") == expected
    assert torch.equal(weights(again), weights(whole))


def test_interrupted_at_the_last_step_it_resumes_to_its_last_losses(start, tmp_path, monkeypatch):
    whole = start(method="npo")
    expected = carry_out(whole, tmp_path / "whole")
    cut = start(method="npo")
    interrupt(cut, cut.steps, tmp_path / "cut", monkeypatch)
    again = start(method="npo")
    again.resume(tmp_path / "cut")
    assert carry_out(again, tmp_path / "cut") == expected != again.first


def test_a_start_that_has_reached_the_reference_is_left_as_it_is(start, tmp_path):
    run = start(method="graddiff", stop_forget=1e-6)
    before = weights(run)
    found = carry_out(run, tmp_path)
    assert (run.step, found) == (0, run.first)
    assert torch.equal(weights(run), before)
    assert run.stopped == (
        f"forgotten: the forget metric {found['forget_loss']:.4g} has reached 1e-06 before the "
        "first step: the model is left as it was"
    )
    kinds = [e["kind"] for e in read_events(tmp_path / "events.jsonl")]
    assert kinds == ["eval", "stop"]


def test_it_stops_at_the_reference(start, tmp_path):
    run = start(method="graddiff", stop_forget=1.0, epochs=50.0, evaluate_every=1)
    found = carry_out(run, tmp_path)
    assert found["forget_loss"] >= 1.0
    assert run.step < run.steps
    assert run.stopped == f"forgotten: the forget metric {found['forget_loss']:.4g} has reached 1"


def test_a_state_beyond_the_tolerance_is_given_up(start, tmp_path):
    run = start(method="ga", tolerance=4.0, epochs=50.0, evaluate_every=1)
    found = carry_out(run, tmp_path)
    events = [e for e in read_events(tmp_path / "events.jsonl") if e["kind"] == "eval"]
    assert events[-1]["retain_loss"] > run.limit == pytest.approx(0.5)
    assert found["retain_loss"] <= 0.5
    assert found["retain_loss"] == events[-2]["retain_loss"]
    assert run.stopped == (
        f"lost: the retain loss {events[-1]['retain_loss']:.4g} is above 0.5: back to the state "
        f"after step {run.step - 1}"
    )
    told = [e for e in read_events(tmp_path / "events.jsonl") if e["kind"] == "stop"]
    assert [(e["step"], e["reason"]) for e in told] == [(run.step, run.stopped)]


def test_a_resumed_run_has_the_limit_and_the_state_to_go_back_to(start, tmp_path, monkeypatch):
    changes = {"method": "ga", "tolerance": 4.0, "epochs": 50.0, "evaluate_every": 3, "lr": 5e-4}
    whole = start(**changes)
    expected = carry_out(whole, tmp_path / "whole")
    assert whole.step > 3  # it has kept a state that is not the first
    cut = start(**changes)
    interrupt(cut, whole.step - 1, tmp_path / "cut", monkeypatch)
    again = start(**changes)
    again.resume(tmp_path / "cut")
    assert carry_out(again, tmp_path / "cut") == expected
    assert (again.stopped, again.limit) == (whole.stopped, whole.limit)
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("tolerance", [None, 50.0])
def test_a_loss_that_is_not_finite_is_given_up_whatever_the_tolerance(start, tmp_path, tolerance):
    run = start(method="graddiff", tolerance=tolerance, evaluate_every=1)
    evaluate = run.evaluate
    run.evaluate = lambda: evaluate() | ({"forget_loss": math.inf} if run.step == 3 else {})
    carry_out(run, tmp_path)
    assert run.stopped.startswith("not finite: retain loss ")
    assert run.stopped.endswith(", forget metric inf: back to the state after step 2")
    broken = start(method="graddiff")
    broken.evaluate = lambda: {"forget_loss": 1.0, "retain_loss": math.nan}
    with pytest.raises(FloatingPointError, match="the model to start from is broken: not finite"):
        carry_out(broken, tmp_path / "broken")


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


def test_wrong_rows_are_one_line(memorised, start):
    model, tokenizer, forget, retain = memorised
    with pytest.raises(ValueError, match="the forget set is empty"):
        Unlearning(BASE, model(), tokenizer, [], retain, run_id="x")
    long = [{**retain[0], "output": "9" * 120}]
    with pytest.raises(ValueError, match=r"retain set: row 0 \(id name0\) has 129 tokens"):
        Unlearning(BASE, model(), tokenizer, forget, long, run_id="x")
    with pytest.raises(ValueError, match="--method ngdiff has no beta: drop --beta 2"):
        start(beta=2.0)


def test_negation_needs_all_weights(memorised):
    model, tokenizer, forget, retain = memorised
    frozen = model()
    next(frozen.parameters()).requires_grad_(False)
    with pytest.raises(ValueError, match="walks back all weights: use --adapter full"):
        Unlearning(BASE.replace(method="negation"), frozen, tokenizer, forget, retain, run_id="x")
