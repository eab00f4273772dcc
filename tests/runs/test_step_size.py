"""Rates that a run finds: when it looks, at which samples, what it logs, and that it resumes."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from steelyard.runs import step_size
from steelyard.runs.events import Events, read_events
from steelyard.runs.loop import At, Interrupted
from steelyard.runs.loss_curves import read_curves
from steelyard.runs.problem import Problem

GEN = {"step": "gen", "step_bootstrap": 2, "step_every": 2, "steps": 8, "epsilon": None}
HIDLR = {**GEN, "step": "hidlr", "optimizer": "adamw", "lr": 0.003}
PRIVATE = {**GEN, "epsilon": 3.0, "public_part": 0.3}
KINDS = {
    "gen": {**GEN, "average": 0.8},
    "hidlr": {**HIDLR, "schedule": "linear"},
    "gen, private": PRIVATE,
    "hidlr, private, DiSK, public steps first": {
        **HIDLR, **PRIVATE, "step": "hidlr", "step_groups": "coarse", "filters": ("disk:0.7",),
        "public_first": 0.4, "public_batch": 8, "reschedule": True, "schedule": "linear",
    },
}  # fmt: skip


def rates(folder) -> list[dict]:
    events = [e for e in read_events(folder / "events.jsonl") if e["kind"] == "rate"]
    return [{k: v for k, v in event.items() if k != "time"} for event in events]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(run) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_one_event_for_each_fit(new_training, carry_out, tmp_path):
    training = new_training(**GEN, schedule="linear")
    carry_out(training, tmp_path)
    found = rates(tmp_path)
    assert [event["step"] for event in found] == [1, 2, 4, 6, 8]
    for event in found:
        (fit,) = event["fits"].values()
        assert fit.keys() == {"slope", "curvature", "r2", "accepted", "multiple", "reason"}
        assert (fit["reason"] == "") == fit["accepted"]
        assert event["factor"] == pytest.approx(1 - (event["step"] - 1) / 8)  # the schedule
        assert event["protection"] == "none"
    assert any(event["fits"]["all"]["accepted"] for event in found)
    points = found[0]["points"]["all"]
    assert points["x"][2] == 0
    assert len(points["loss"]) == 5
    train = [e for e in read_events(tmp_path / "events.jsonl") if e["kind"] == "train"]
    fifth = next(e for e in train if e["step"] == 5)  # behind the fit at step 4
    assert fifth["lr"] == pytest.approx(found[2]["rates"]["all"] * (1 - 4 / 8))


def test_the_samples_of_the_gradients_are_those_of_a_fixed_rate(new_training):
    one, other = new_training(**GEN), new_training(epsilon=None, steps=8)
    for _ in range(4):
        one._one_step()
        other._one_step()
    assert torch.equal(one.sampler.draw(), other.sampler.draw())


def test_half_a_batch_is_probed_in_micro_batches_and_each_time_another(new_training):
    schedule = new_training(**GEN, micro_batch=5).schedule
    first, second = ([f() for f in schedule._losses()] for _ in range(2))
    assert [len(part) for part in first] == [5, 5, 2]  # of 24, half
    assert not torch.equal(first[0], second[0])


def test_private_probes_look_at_public_samples_only(new_training, carry_out, tmp_path, monkeypatch):
    training = new_training(**PRIVATE)
    carry_out(training, tmp_path)
    assert training.ledger.steps == 8  # the fits cost nothing
    assert {event["protection"] for event in rates(tmp_path)} == {"public"}
    seen: list[int] = []
    monkeypatch.setattr(Problem, "batch", lambda *_: pytest.fail("a private sample"))
    public = Problem.public_batch
    monkeypatch.setattr(
        Problem, "public_batch", lambda self, i: seen.extend(i.tolist()) or public(self, i)
    )
    for _ in range(20):
        training.schedule._losses()
    assert 0 <= min(seen) < max(seen) < training.problem.n_public


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_exact(new_training, carry_out, tmp_path, kind):
    options = KINDS[kind]
    whole = carry_out(new_training(**options), tmp_path / "whole")
    for k in (1, 3, 4, 7):
        folder = tmp_path / str(k)
        stop = At(step=k - 1, name="stop", action=stop_after)
        with pytest.raises(Interrupted):
            carry_out(new_training(actions=[stop], **options), folder)
        resumed = new_training(**options)
        resumed.resume(folder)
        assert resumed.step == k
        assert same(whole, carry_out(resumed, folder)), k
        assert rates(folder) == rates(tmp_path / "whole")


@pytest.mark.parametrize("forgotten", ["method", "draws"])
def test_what_a_resume_forgets_is_seen(new_training, carry_out, tmp_path, monkeypatch, forgotten):
    whole = carry_out(new_training(**GEN), tmp_path / "whole")
    stop = At(step=2, name="stop", action=stop_after)
    with pytest.raises(Interrupted):
        carry_out(new_training(actions=[stop], **GEN), tmp_path / "cut")
    resumed = new_training(**GEN)
    fresh, load = resumed.schedule.state_dict(), resumed.schedule.load_state_dict
    if forgotten == "method":  # its counts alone are right
        fresh["method"]["steps"], fresh["method"]["fits"] = 3, 2
    monkeypatch.setattr(
        resumed.schedule, "load_state_dict", lambda s: load({**s, forgotten: fresh[forgotten]})
    )
    resumed.resume(tmp_path / "cut")
    assert not same(whole, carry_out(resumed, tmp_path / "cut"))


def test_a_new_schedule_at_an_early_switch_is_taken_at_once(new_training, tmp_path, monkeypatch):
    options = {"public_first": 0.5, "reschedule": True, "schedule": "linear", "public_batch": 8}
    training = new_training(**{**PRIVATE, "steps": 12, **options})

    def over(step, model):
        training.phase.steps = min(step, 3) if step >= 3 else 6
        return step >= 3

    monkeypatch.setattr(training.phase, "over", over)
    seen: list[tuple[float, float]] = []
    with Events(tmp_path / "events.jsonl") as events:
        while training.step < training.steps:
            found = training.schedule._method.rates[0]
            seen.append((training.schedule.lr / found, training._rate(training.step)))
            training._one_step()
            training.step += 1
            if training._public:
                training._switch(events)
    assert [real for real, _ in seen] == pytest.approx([meant for _, meant in seen])
    assert [meant for _, meant in seen][:4] == pytest.approx([1, 5 / 6, 4 / 6, 1])  # begun again


def test_behind_disk_it_is_said_that_a_step_keeps_its_length(new_training):
    plain, filtered = (new_training(**PRIVATE, filters=f) for f in ((), ("disk:0.7",)))
    assert not plain.schedule.notes
    assert "keeps its length" in filtered.schedule.notes[0]  # `settle` sees to it


def test_many_fits_are_logged_without_their_points(new_training, carry_out, tmp_path, monkeypatch):
    monkeypatch.setattr(step_size, "PICTURES", 2)
    monkeypatch.setattr(step_size, "REFUSED", 0)
    carry_out(new_training(**{**GEN, "step_every": 1}), tmp_path)
    found = rates(tmp_path)
    assert len(found) == 8
    assert [bool(event["points"]) for event in found] == [True, *[False] * 3] * 2


def test_what_it_is_said_to_cost(new_training):
    about = new_training(**{**GEN, "steps": 100, "step_bootstrap": 20}).schedule.about
    assert "GeN: 5 losses of 12 samples every 2 steps, at each of the first 20" in about
    assert "50% more time" in about  # (20 + 40) fits x 5 losses x 1/2 batch over 300
    three = new_training(**{**GEN, "step_probes": 3, "step_part": 1.0}).schedule.about
    assert "3 losses of 24 samples" in three
    groups = new_training(**HIDLR, step_groups="*.bias,*.weight").schedule
    assert "Hi-DLR, 2 groups: 9 losses of 12 samples every 2 steps" in groups.about
    assert groups.lr == 0.003


WRONG = {
    "unknown": ({"step": "geN"}, r"unknown --step 'geN': choose one of fixed, gen, hidlr"),
    "fixed": ({"step_every": 3}, "--step-every is about rates that are found"),
    "zero": ({**GEN, "step_every": 0}, "--step-every must be positive, found 0"),
    "groups": ({**GEN, "step_groups": "roles"}, "--step-groups is of --step hidlr"),
    "probes of hidlr": ({**HIDLR, "step_probes": 3}, "--step-probes is of --step gen"),
    "probes": ({**GEN, "step_probes": 4}, "must be 3 or 5, found 4"),
    "part": ({**GEN, "step_part": 1.5}, r"--step-part must be in \(0, 1\], found 1.5"),
    "bootstrap": ({**GEN, "step_bootstrap": -1}, "--step-bootstrap must be 0 or more, found -1"),
    "private": ({**GEN, "epsilon": 3.0}, "data is private: give --public-part 0.05"),
    "pattern": ({**HIDLR, "step_groups": "haed.*"}, r"--step-groups haed.\*.*matched no"),
    "rate": (
        {**PRIVATE, "public_lr": 0.1, "public_first": 0.5},
        "--public-lr sets a rate that --step gen finds: drop one",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_refusals_are_one_line(new_training, what):
    settings, words = WRONG[what]
    with pytest.raises(ValueError, match=words) as caught:
        new_training(**settings)
    assert "\n" not in str(caught.value)


def test_a_run_on_the_command_line_that_plan_lr_reads(command_line, features_csv, tmp_path):
    given = ("--steps", 20, "--step-every", 4, "--step-bootstrap", 3, "--lr", 1e-4)
    outcome = command_line(
        "train", "--data", features_csv, "--no-privacy", "--step", "gen", *given, "--out", "run"
    )
    assert outcome.code == 0
    assert "GeN: 5 losses of" in outcome.err
    (curve,) = read_curves(tmp_path / "run")
    assert curve.horizon == 20
    assert curve.lr[0] == pytest.approx(1e-4)
    assert curve.lr.max() > 1e-3  # found
    preview = command_line(
        "train", "--data", features_csv, "--no-privacy", "--step", "hidlr", "--dry-run"
    )
    assert "step size" in preview.out
    assert "probes" in preview.out  # their memory


def test_public_samples_that_only_the_step_size_uses(command_line, features_csv):
    given = ("train", "--data", features_csv, "--accountant", "rdp", "--steps", 4, "--out", "run")
    outcome = command_line(*given, "--public-part", 0.2, "--step", "gen")
    assert outcome.code == 0, outcome.err
    assert "public samples every 8 steps" in outcome.err
    unused = command_line(*given[:-1], "other", "--public-part", 0.2)
    assert "or --step gen (to find the rate)" in unused.error
