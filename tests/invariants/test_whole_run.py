"""Whole runs: what must not matter does not, and what must be kept is kept."""

from __future__ import annotations

import json
import os
import signal
from itertools import count

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from steelyard import (
    AutoClip,
    Gaussian,
    Ledger,
    PerSample,
    PoissonSampler,
    attach,
    data,
    microbatches,
    models,
    plan_privacy,
)
from steelyard.runs.interrupt import Interrupted
from steelyard.runs.loop import At

Weights = dict[str, torch.Tensor]


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: Weights, b: Weights, tolerance: float = 1e-5) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance) for name in a
    )


# -- micro-batches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"epsilon": None}, {"groups": "layer", "clip": "flat:0.1"}]
)
def test_micro_batches_do_not_matter(new_training, carry_out, tmp_path, options):
    whole, *pieces = (
        carry_out(new_training(micro_batch=size, **options), tmp_path / str(size))
        for size in (96, 1, 4, 8)
    )
    for weights in pieces:
        assert close(whole, weights)
    other = carry_out(new_training(micro_batch=96, batch=25, **options), tmp_path / "other")
    assert not close(whole, other)  # the tolerance does see a difference


# -- plain loop == command line ------------------------------------------------------------------

SEED, STEPS, BATCH = 11, 4, 64


def plain_loop(micro_batch: int) -> Weights:
    """The README's loop, on the default data and model."""
    table = data.load("fashion-mnist-small")
    images = torch.from_numpy(table.train_x).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(table.train_y)
    task = models.Task(kind="image", shape=(28, 28, 1), classes=10)
    model = models.build("cnn", task, seed=0).train()
    plan = plan_privacy(
        n=len(images), batch=BATCH, steps=STEPS, epsilon=3.0, delta=1e-5, accountant="rdp"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    rows = PerSample(model, AutoClip(1.0), expected_batch=BATCH)
    mechanism = Gaussian(plan.noise_multiplier, seed=SEED)
    attach(optimizer, rows, mechanism, ledger=Ledger(plan))
    sampler = PoissonSampler(plan.n, plan.sampling_probability, plan.steps, seed=SEED)
    for _ in range(plan.steps):
        for piece in microbatches(sampler.draw(), micro_batch):
            x, y = images[piece].float() / 127.5 - 1.0, labels[piece]
            rows.backward(F.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


@pytest.mark.parametrize("micro_batch", [64, 16])
def test_a_plain_loop_is_the_command_line(command_line, tmp_path, micro_batch):
    settings = ("--batch", BATCH, "--micro-batch", micro_batch, "--steps", STEPS, "--lr", 1.0)
    seeds = ("--noise-seed", SEED, "--accountant", "rdp", "--device", "cpu")
    outcome = command_line("train", *settings, *seeds, "--no-baseline", "--out", "run")
    assert outcome.code == 0, outcome.err
    released = load_file(tmp_path / "run" / "model.safetensors")
    assert same(released, plain_loop(micro_batch))


# -- resume at step k == not interrupted ---------------------------------------------------------

VARIANTS = {
    "sgd": {"lr": 0.5, "momentum": 0.9},
    "adamw, average, cosine": {
        "optimizer": "adamw",
        "lr": 0.01,
        "average": 0.8,
        "schedule": "cosine",
        "warmup": 2,
        "weight_decay": 0.1,
    },
    "not private": {"epsilon": None, "noise_seed": None, "schedule": "linear"},
    "micro-batches, groups": {"micro_batch": 5, "groups": "layer", "clip": "flat:0.3"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_bit_exact(new_training, carry_out, tmp_path, variant):
    options = VARIANTS[variant]
    uninterrupted = new_training(**options)
    whole = carry_out(uninterrupted, tmp_path / "whole")
    for k in (1, 2, 5):
        folder = tmp_path / str(k)
        stop = At(step=k - 1, name="stop", action=stop_after)
        with pytest.raises(Interrupted):
            carry_out(new_training(actions=[stop], **options), folder)
        resumed = new_training(**options)
        assert resumed.resume(folder) == []
        assert resumed.step == k
        assert same(whole, carry_out(resumed, folder)), k
        assert same(dict(uninterrupted.model.state_dict()), dict(resumed.model.state_dict()))
        if resumed.ledger is not None:
            assert resumed.ledger.report() == uninterrupted.ledger.report()
            assert resumed.ledger.steps == 6


def stop_after(run) -> None:
    """Let `run` save and stop after the step it is about to take."""
    os.kill(os.getpid(), signal.SIGINT)


def with_dropout() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize("restored", [True, False])
def test_resume_goes_on_with_the_same_dropout(
    new_training, carry_out, tmp_path, monkeypatch, restored
):
    whole = carry_out(new_training(model=with_dropout()), tmp_path / "whole")
    stop = At(step=2, name="stop", action=stop_after)
    with pytest.raises(Interrupted):
        carry_out(new_training(model=with_dropout(), actions=[stop]), tmp_path / "cut")
    resumed = new_training(model=with_dropout())
    if not restored:
        monkeypatch.setattr("steelyard.runs.loop.restore_random_states", lambda states: [])
    resumed.resume(tmp_path / "cut")
    assert same(whole, carry_out(resumed, tmp_path / "cut")) is restored


def test_resume_again_and_again_is_bit_exact(new_training, carry_out, tmp_path):
    options = VARIANTS["adamw, average, cosine"]
    whole = carry_out(new_training(**options), tmp_path / "whole")
    folder = tmp_path / "cut"
    for k in count():
        training = new_training(
            actions=[At(step=k, name="stop", action=stop_after)] if k < 6 else [], **options
        )
        if k:
            training.resume(folder)
        if k == 6:
            break
        with pytest.raises(Interrupted):
            carry_out(training, folder)
    assert same(whole, carry_out(training, folder))


def test_what_a_resume_forgets_is_seen(new_training, carry_out, tmp_path, monkeypatch):
    """The comparison above can fail: without any one state the weights come out different."""
    options = VARIANTS["adamw, average, cosine"]
    whole = carry_out(new_training(**options), tmp_path / "whole")
    for forgotten in ("optimizer", "schedule", "sampler", "average", "mechanism"):
        folder = tmp_path / forgotten
        stop = At(step=2, name="stop", action=stop_after)
        with pytest.raises(Interrupted):
            carry_out(new_training(actions=[stop], **options), folder)
        resumed = new_training(**options)
        part = getattr(resumed.private if forgotten == "mechanism" else resumed, forgotten)
        with monkeypatch.context() as patch:
            patch.setattr(part, "load_state_dict", lambda state: None)
            resumed.resume(folder)
        assert not same(whole, carry_out(resumed, folder)), forgotten


# -- what a private run tells --------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [3.0, None])
def test_private_runs_never_log_what_is_not_noised(command_line, features_csv, tmp_path, epsilon):
    privacy = ("--epsilon", epsilon) if epsilon else ("--no-privacy",)
    settings = ("--steps", 5, "--accountant", "rdp", "--evaluate-every", 2)
    outcome = command_line(
        "train", "--data", features_csv, *settings, *privacy, "--tracker", "none", "--out", "run"
    )
    assert outcome.code == 0, outcome.err
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    losses = [event["loss"] for event in events if event["kind"] == "train"]
    assert len(losses) == 5
    assert all((loss is None) is (epsilon is not None) for loss in losses)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    told = {key for event in events for key in event} | result.keys()
    assert not [key for key in told if "norm" in key or "grad" in key or "train_loss" in key]
    shown = [line for line in outcome.err.splitlines() if "samples/s" in line]
    assert shown
    assert all(("loss" in line) is (epsilon is None) for line in shown)
