"""The harness around the engines: rows, reasons, the page."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import step_cost
from lib import memory, tables
from lib.engines import Kind
from lib.verdicts import verdicts
from lib.workloads import WORKLOADS, Workload, notices


def refuse(workload, settings):
    raise NotImplementedError("not\nfor this model")


def test_rows_and_page(linear, monkeypatch):
    broken = Kind(label="broken", family="peer", make=refuse)
    unclipped = Kind(label="unclipped", family="peer", make=step_cost.ENGINES["plain"].make)
    more = {"broken": broken, "wrong": unclipped}
    monkeypatch.setattr(step_cost, "ENGINES", {**step_cost.ENGINES, **more})
    names = ["plain", "steelyard", "steelyard-quiet", "peer-ghost", *more]
    listed, counted = step_cost.measure(linear, names, seconds=0.0, most=6, resident=False)
    rows = {row["engine"]: row for row in listed}
    assert rows["plain"]["ratio"] == rows["plain"]["whole"] == rows["plain"]["step"] == 1.0
    assert rows["steelyard"]["error"] < 1e-5
    assert rows["steelyard"]["low"] <= rows["steelyard"]["ratio"] <= rows["steelyard"]["high"]
    assert rows["steelyard"]["rounds"] == 5  # the fewest, as there is no time
    assert rows["steelyard"]["live_mib"] > 0
    assert "noise" in rows["steelyard"]
    assert rows["peer-ghost"]["speed_up"] > 0
    assert rows["broken"]["reason"] == "refuses: not for this model"
    assert rows["wrong"]["reason"].startswith("wrong (")
    assert "ratio" not in rows["wrong"]
    assert counted["measured"] >= 1

    monkeypatch.setitem(WORKLOADS, "linear", linear)
    report = {"machine": tables.machine(), "workloads": {"linear": counted}, "rows": listed}
    page = tables.markdown(json.loads(json.dumps(report)), verdicts(listed), ["a notice"])
    assert "| broken | all | refuses: not for this model | - |" in page
    assert "linear: speed-up over the fastest correct other (two passes, ghost)" in page
    assert "a notice" in page


def test_rows_that_do_not_fit_are_not_tried(linear, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 0.0)
    kind = step_cost.ENGINES["opacus-hooks"]
    truth = step_cost.Truth(linear)
    reason = step_cost.too_large(kind, truth)
    assert reason is not None
    assert "per-sample gradients" in reason
    assert step_cost.too_large(step_cost.ENGINES["steelyard"], truth) is None


def test_a_failure_of_ours_is_a_missed_target(linear, monkeypatch):
    broken = dataclasses.replace(step_cost.ENGINES["steelyard"], make=refuse)
    monkeypatch.setattr(step_cost, "ENGINES", {**step_cost.ENGINES, "steelyard": broken})
    rows, counted = step_cost.measure(
        linear, ["plain", "steelyard", "peer-ghost"], seconds=0.0, most=2, resident=False
    )
    assert counted == {}
    (missed,) = verdicts(rows)
    assert missed.target == "linear: steelyard, all: the right gradient"
    assert missed.met is False
    assert "speed_up" not in rows[2]


def test_the_workloads_are_the_seven():
    assert list(WORKLOADS) == ["mlp", "cnn", "vit", "gpt-128", "gpt-512", "lora", "minilm"]


def test_a_stand_in_is_announced(monkeypatch):
    monkeypatch.setattr("lib.workloads.minilm_installed", lambda: False)
    assert "random BERT" in notices(["minilm"])[0]
    assert notices(["mlp"]) == []


def test_a_workload_is_the_same_at_every_call():
    workload: Workload = WORKLOADS["cnn"]
    (one, x, y), (other, a, b) = workload.build(), workload.build()
    assert all(p.equal(q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert x.equal(a)
    assert y.equal(b)
    assert one.training


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--only", "gpt-129"), "unknown workload 'gpt-129': use mlp"),
        (("--engines", "opacus"), "unknown engine 'opacus': use plain"),
        (("--profile", "mlpp"), "unknown workload 'mlpp'"),
    ],
)
def test_unknown_names_are_refused(option, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step_cost.py", *option])
    with pytest.raises(SystemExit):
        step_cost.main()
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux")
def test_resident_memory_is_measured_in_a_process_of_its_own():
    found = step_cost.child("cnn", "plain", 1.0)
    assert found is not None
    assert 1 < found < 300
