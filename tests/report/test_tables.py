from __future__ import annotations

import csv
import io

from steelyard.report.read import number, read_run
from steelyard.report.summary import summarize
from steelyard.report.tables import (
    cards,
    clip_statistics,
    csv_text,
    differences,
    evaluations,
    settings,
)

CLIP = {"time": 1.0, "kind": "clip_statistics", "step": 7, "fraction_clipped": 0.123456}


def test_csv_holds_exactly_the_events(make_run):
    run = read_run(make_run(baseline=True))
    rows = list(csv.DictReader(io.StringIO(csv_text(run))))
    assert run.baseline is not None
    expected = [
        (name, event)
        for name, one in (("private", run), ("not private", run.baseline))
        for event in one.events
        if event["kind"] in ("eval", "train")
    ]
    assert len(rows) == len(expected)
    for row, (name, event) in zip(rows, sorted(expected, key=_order), strict=False):
        assert (row["run"], row["kind"], int(row["step"])) == (name, event["kind"], event["step"])
        for field in ("epsilon", "accuracy", "loss", "lr"):
            recorded = number(event.get(field))
            assert (float(row[field]) if row[field] else None) == recorded


def _order(item):
    name, event = item
    return name != "private", event["step"], event["kind"] != "eval"


def test_csv_leaves_out_a_private_training_loss_and_all_times(make_run):
    leaked = {"time": 5.0, "kind": "train", "step": 3, "loss": 0.987654, "samples_per_s": 77.7}
    text = csv_text(read_run(make_run(extra=[leaked])))
    assert "private,train,3," in text
    assert "0.987654" not in text
    assert "77.7" not in text
    assert "176000" not in text


def test_evaluations_are_thinned_but_keep_the_last(make_run):
    run = read_run(make_run())
    header, rows = evaluations(run, rows=5)
    assert header == ["step", "epoch", "accuracy", "loss", "ε spent"]
    assert len(rows) <= 5
    assert rows[-1][0] == 352
    assert len(evaluations(run, rows=100)[1]) == len(run.of_kind("eval"))


def test_clip_statistics_need_protection(make_run):
    kinds = ["noised", "public", "none", None, True, ["noised"]]
    events = [{**CLIP, "step": at, "protection": kind} for at, kind in enumerate(kinds)]
    found = clip_statistics(read_run(make_run(extra=[*events, CLIP])))
    assert [row[:2] for row in found["rows"]] == [[0, "noised"], [1, "public"]]
    assert (found["shown"], found["refused"]) == (2, 5)
    assert found["header"] == ["step", "protection", "fraction clipped"]


def test_settings_show_what_is_set_and_name_what_is_not(make_run):
    rows = dict(settings(read_run(make_run()).config))
    assert rows["batch"] == "1024"
    assert rows["weight decay"] == "0.0" or rows["weight decay"] == "0"
    assert "average" in rows["not set"]
    assert not {"command", "plan", "baseline", "run"} & set(rows)


def test_differences_of_the_twin(make_run):
    run = read_run(make_run(baseline=True))
    assert run.baseline is not None
    rows = dict(differences(run.config, run.baseline.config))
    assert rows["batch"] == "128"
    assert "momentum" not in rows


def test_cards_tell_infinity_only_where_the_ledger_does(make_run):
    def spent(folder):
        found = cards(summarize(read_run(folder)))
        return next((card["value"] for card in found if card["label"] == "ε spent"), None)

    assert spent(make_run()) == "2.993"
    assert spent(make_run("b", change={"ledger": {"epsilon": None}})) == "∞"
    assert spent(make_run("c", private=False)) is None
