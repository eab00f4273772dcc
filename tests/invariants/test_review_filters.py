"""What a review of filters, public samples and the two phases found; each must not come back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steelyard.data import Table
from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.dice import Dice
from steelyard.filters.disk import Disk
from steelyard.filters.doppler import Doppler
from steelyard.filters.gaussian import Gaussian
from steelyard.plans.feedback import noise_for
from steelyard.plans.privacy import plan_privacy
from steelyard.report import words
from steelyard.report.read import read_run
from steelyard.report.summary import summarize
from steelyard.rows.per_sample import PerSample
from steelyard.rows.sources import PublicRows
from steelyard.runs.config import TrainConfig
from steelyard.runs.events import Events, read_events
from steelyard.runs.ledger import BudgetExceeded, Ledger
from steelyard.runs.loop import Training
from steelyard.runs.preview import plan_for
from steelyard.runs.problem import make_problem
from steelyard.runs.progress import RunProgress
from steelyard.types import Noised
from steelyard.weightings.clip import FlatClip
from steelyard.weightings.coupling import ConstantWeight


def losses(net: nn.Module, x: Tensor) -> Tensor:  # [B]
    return net(x).square().sum(1)


def parts(bound: float = 0.5) -> tuple[nn.Module, PerSample, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    rows = PerSample(net, FlatClip(bound), expected_batch=4)
    return net, rows, torch.optim.SGD(net.parameters(), lr=0.1)


def norm(tensors: Any) -> float:
    return math.sqrt(sum(float(t.detach().square().sum()) for t in tensors))


# -- the run on the command line -------------------------------------------------------------------


def training(**options: Any) -> Training:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 3)).astype(np.float32)
    y = (np.arange(200) % 2).astype(np.int64)
    table = Table(
        name="x", kind="features", train_x=x, train_y=y, test_x=x[:10] + 1, test_y=y[:10],
        classes=("a", "b"), source="made up", licence="none",
    )  # fmt: skip
    settings = {"model": "mlp", "data": "x", "steps": 20, "batch": 8, "public_part": 0.25}
    config = TrainConfig(**(settings | options))  # pyright: ignore[reportArgumentType]
    problem = make_problem(config, table)
    plan, steps = plan_for(config, problem.n)
    return Training(problem, config, plan, steps, run_id="review")


def run(made: Training, folder: Path) -> None:
    with (
        Events(folder / "events.jsonl", []) as events,
        RunProgress(made.steps, False, title="x", target_epsilon=None, start=0) as progress,
    ):
        made.run(folder, events, progress)


def test_training_on_public_samples_alone_never_reads_another_one(tmp_path, monkeypatch):
    """A rule that ends the public phase early left one plain step on the private samples."""
    made = training(
        steps=60, epsilon=None, public_first=1.0, public_stop="validation", lr=5.0, batch=8
    )
    read: list[int] = []
    inner = type(made.problem).batch

    def watched(self: Any, indices: Tensor) -> Any:
        read.append(len(indices))
        return inner(self, indices)

    monkeypatch.setattr(type(made.problem), "batch", watched)
    run(made, tmp_path)
    assert made.public_steps < 60  # the rule did say so
    assert read == []
    assert made.step == made.steps
    assert (tmp_path / "checkpoints" / f"step-{made.step:08d}").is_dir()


def test_the_advice_to_train_on_public_samples_alone_can_be_followed(command_line, features_csv):
    found = command_line(
        "train", "--data", features_csv, "--model", "mlp", "--steps", 4, "--batch", 16,
        "--public-part", 0.3, "--no-privacy", "--public-first", 1, "--out", "out",
    )  # fmt: skip
    assert found.code == 0, found.err


@pytest.mark.parametrize("option", [("--filter", "doppler:0.9"), ("--public-weight", 0.3)])
def test_options_that_need_privacy_are_not_dropped_in_silence(command_line, features_csv, option):
    found = command_line(
        "train", "--data", features_csv, "--model", "mlp", "--steps", 2, "--batch", 16,
        "--public-part", 0.3, "--no-privacy", *option, "--out", "out",
    )  # fmt: skip
    assert found.code == 2
    assert option[0] in found.error


def test_a_filter_too_slow_for_the_run_is_said_in_training_too(command_line, features_csv):
    found = command_line(
        "train", "--data", features_csv, "--model", "mlp", "--steps", 2, "--batch", 16,
        "--filter", "doppler:0.95", "--out", "out",
    )  # fmt: skip
    assert found.code == 0
    assert "steps to settle" in found.err


def test_a_run_without_privacy_has_no_private_phase(tmp_path):
    made = training(epsilon=None, public_first=0.5)
    run(made, tmp_path)
    (phase,) = [e for e in read_events(tmp_path / "events.jsonl") if e["kind"] == "phase"]
    assert not phase["name"].startswith("private")


def test_the_report_says_that_public_samples_are_not_protected(command_line, features_csv):
    command_line(
        "train", "--data", features_csv, "--model", "mlp", "--steps", 4, "--batch", 16,
        "--public-part", 0.3, "--public-first", 0.5, "--out", "out",
    )  # fmt: skip
    found = read_run(Path("out"))
    assert any("public" in what.lower() for what, _ in words.not_protected(found))
    # "one sample of the training data" is not protected if it is one of the public share
    assert "private" in words.meaning(summarize(found))


def test_the_report_of_error_feedback_has_no_dp_sgd_sentence_about_its_noise(
    command_line, features_csv
):
    command_line(
        "train", "--data", features_csv, "--model", "mlp", "--steps", 4, "--batch", 16,
        "--filter", "dice:1,accounting=paper", "--clip", "flat:1", "--out", "out",
    )  # fmt: skip
    found = read_run(Path("out"))
    said = " ".join(words.release(found, summarize(found)))
    assert "times the largest change that one sample can make" not in said
    kept = dict(words.not_protected(found))["The checkpoints folder"]
    assert "without noise" in kept  # e is in them


class Killed(BaseException):
    pass


def test_killed_between_charge_and_release_nothing_is_released_or_paid_twice(tmp_path):
    options = {"noise_seed": 3, "public_first": 0.4, "checkpoint_every": 3}
    options |= {"filters": ("dice:1,accounting=paper", "disk:0.7"), "clip": "flat:1"}
    whole = training(**options)
    run(whole, tmp_path / "whole")
    assert whole.public_steps == 8
    for at in (8, 13):  # the first private step, and a later one
        cut = training(**options)
        assert cut.private is not None
        noise = cut.private.mechanism.mechanism
        inner = noise.privatise

        def privatise(gradient: Any, cut=cut, inner=inner, at=at) -> Noised:
            if cut.step == at:
                raise Killed
            return inner(gradient)

        noise.privatise = privatise  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(Killed):
            run(cut, tmp_path / str(at))
        again = training(**options)
        again.resume(tmp_path / str(at))
        run(again, tmp_path / str(at))
        assert again.ledger is not None
        assert again.ledger.steps == 12
        for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(one, other)


# -- what the rows claim ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"), [("weighting", FlatClip(0.01)), ("expected_batch", 400.0)]
)
def test_settings_changed_afterwards_cannot_claim_less_than_the_sums_hold(name, value):
    net, rows, _ = parts(bound=1.0)
    try:
        setattr(rows, name, value)
    except AttributeError:
        return  # refused: just as well
    rows.backward(100 * losses(net, torch.ones(1, 3)))
    taken = rows.take()
    assert norm(taken.tensors) <= taken.sensitivity * (1 + 1e-5)


def test_raw_sums_end_with_the_mechanism_that_asked_for_them():
    _, rows, optimizer = parts()
    attach(optimizer, rows, Dice(1.0, bound=0.5)).detach()
    assert rows.raw_bound is None
    attach(optimizer, rows, chain(Gaussian(1.0), Disk()))
    with pytest.raises(ValueError, match="these rows look ahead"):
        attach(optimizer, rows, chain(Dice(1.0, bound=0.5), Disk()))
    assert rows.raw_bound is None  # nor where attach failed behind it


# -- chains ----------------------------------------------------------------------------------------


def test_a_chain_inside_a_chain_is_connected_or_refused():
    _, rows, optimizer = parts()
    disk = Disk()
    try:
        nested = chain(chain(Gaussian(0.0), disk), Doppler.first_order(0.5))
    except ValueError:
        return
    attach(optimizer, rows, nested)
    assert rows.points is disk


def test_a_refused_step_of_two_releases_is_charged_for_neither():
    net, rows, optimizer = parts()
    plan = plan_privacy(n=100, batch=4, steps=3, epsilon=1.0, delta=1e-3)
    sigma = noise_for("conservative", n=100, batch=4, steps=3, epsilon=1.0, delta=1e-3)
    ledger = Ledger(plan)
    attach(optimizer, rows, Dice(sigma, bound=0.5, accounting="conservative"), ledger=ledger)
    paid: list[Any] = []

    def train() -> None:
        for _ in range(9):
            paid[:] = ledger.report()["history"]
            rows.backward(losses(net, torch.ones(4, 3)))
            optimizer.step()
            optimizer.zero_grad()

    with pytest.raises(BudgetExceeded):
        train()
    assert ledger.report()["history"] == paid


# -- public rows -----------------------------------------------------------------------------------


def test_private_rows_taken_inside_the_public_function_do_not_swap_the_sums():
    net, rows, _ = parts()
    public = PublicRows(rows, ConstantWeight(0.5))
    x, p = torch.ones(4, 3), 2 * torch.ones(3, 3)
    rows.backward(losses(net, x))
    alone = rows.take().tensors

    def both() -> Tensor:
        rows.backward(losses(net, x))
        return losses(net, p)

    try:
        public.backward(both)
    except (RuntimeError, ValueError):
        return  # refused: just as well
    torch.testing.assert_close(list(rows.take().tensors), list(alone))


# -- DiSK ------------------------------------------------------------------------------------------


def test_interrupted_while_the_parameters_are_exchanged_they_come_back(monkeypatch):
    net, rows, optimizer = parts()
    attach(optimizer, rows, chain(Gaussian(0.0), Disk()))
    x = torch.ones(4, 3)
    for _ in range(2):
        rows.backward(lambda: losses(net, x))
        optimizer.step()
        optimizer.zero_grad()
    before = [p.detach().clone() for p in net.parameters()]
    inner, calls = torch.autograd.graph.increment_version, []

    def interrupted(tensors: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        inner(tensors)

    monkeypatch.setattr("torch.autograd.graph.increment_version", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rows.backward(lambda: losses(net, x))
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old)
