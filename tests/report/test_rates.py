"""The found rates on the page: what is drawn, what is counted, and what a private run hides."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from matplotlib.figure import Figure

from steelyard.report.page import html, write_report
from steelyard.report.plots import LIGHT
from steelyard.report.rates import (
    _draw,
    _spread,
    csv_text,
    parabola_svgs,
    png,
    points_csv,
    rates_of,
    svg,
)
from steelyard.report.read import read_run

X = [-2.0, -1.0, 0.0, 1.0, 2.0]


def event(step: int, reason: str = "", *, group: str = "all", drawn: bool = True, **more) -> dict:
    a, b = (-1.0 if reason else 2.0), 1.0 + step / 100
    fit = {"slope": b, "curvature": a, "r2": 1.0, "multiple": 1.1, "accepted": not reason}
    loss = [2 - b * x + a * x * x / 2 for x in X]
    return {
        "time": 1.0, "kind": "rate", "step": step, "protection": "none", "factor": 0.5,
        "rates": {group: 0.01 * step}, "fits": {group: fit | {"reason": reason}},
        "points": {group: {"x": X, "loss": loss, "noise": 0.0}} if drawn else {}, **more,
    }  # fmt: skip


EVENTS = [
    event(1, drawn=False),
    event(2),
    event(3, "the slope is not positive: -0.1; uphill 3 times: rates halved"),
    event(4),
    event(5),
    event(6, "no parabola: R2 0.5 < 0.99"),
    event(7, "no parabola: R2 0.7 < 0.99", drawn=False),
    event(8),
]


@pytest.fixture
def rates(make_run):
    found = rates_of(read_run(make_run(private=False, extra=EVENTS)))
    assert found is not None
    return found


def test_rates_as_they_were_applied(rates):
    assert rates.lines["all"][0] == (0, 0.05 * 0.5)  # the setting, before the first fit
    assert rates.lines["all"][1:3] == [(1, 0.005), (2, 0.01)]
    assert [step for step, _ in rates.refused["all"]] == [3, 6, 7]


def test_the_refused_are_counted_by_reason(rates):
    first, done = rates.sentences
    assert "made 8 fits and refused 3 of them (38%)" in first
    assert "2 × no parabola (R² too low), 1 × uphill: the slope was not positive" in first
    assert done == "1 times the rate was halved, uphill several times in a row."
    assert rates_of is not None


def test_first_middle_last_and_a_refused_parabola(rates):
    assert [one.step for one in rates.parabolas] == [2, 5, 8, 6]
    assert [bool(one.reason) for one in rates.parabolas] == [False, False, False, True]
    last = rates.parabolas[2]
    assert last.title == "Step 8"
    assert float(last.fitted.b[0, 0]) == pytest.approx(1.08)
    assert float(last.fitted.a[0, 0]) == pytest.approx(2.0)
    rows = list(csv.DictReader(points_csv(rates).splitlines()))
    assert len(rows) == 4 * 5
    assert rows[0] == {"step": "2", "group": "all", "x": "-2", "loss": "8.04", "fitted": "8.04"}


def test_every_fit_is_in_the_csv(rates):
    rows = list(csv.DictReader(csv_text(rates).splitlines()))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 9)]
    assert rows[3]["rate"] == "0.04"
    assert rows[3]["factor"] == "0.5"
    assert rows[2]["accepted"] == "False"
    assert rows[2]["reason"].startswith("the slope is not positive")


def test_the_drawing(rates):
    axes = Figure().subplots()
    _draw(axes, LIGHT, rates=rates)
    assert axes.get_yscale() == "log"
    line, crosses = axes.lines[:2]
    assert len(line.get_xdata()) == 9
    assert crosses.get_xdata().tolist() == [3, 6, 7]
    assert axes.get_legend().get_texts()[0].get_text() == "fit refused"
    assert png(rates).startswith(b"\x89PNG")
    assert "var(--private)" in svg(rates)
    ids = [drawing.split('id="')[1].split("-")[0] for _, drawing in parabola_svgs(rates)]
    assert ids == ["parabola0", "parabola1", "parabola2", "parabola3"]  # apart on one page


def test_labels_keep_their_distance():
    places = _spread({"a": 1.0, "b": 1.01, "c": 50.0}, 0.5, np.log(200))
    assert list(places) == ["a", "b", "c"]
    assert places["b"] / places["a"] > 1.3
    assert places["c"] == pytest.approx(50.0)


def test_groups_have_lines_of_their_own(make_run):
    events = [
        {
            **event(step, group="head"),
            "rates": {"head": 0.1, "bias": 2.0},
            "fits": {**event(step, group="head")["fits"], **event(step, "no parabola")["fits"]},
        }
        for step in (1, 9)
    ]
    run = read_run(make_run(private=False, extra=events, change={"config": {"step": "hidlr"}}))
    found = rates_of(run)
    assert found is not None
    assert found.method == "Hi-DLR"
    assert list(found.lines) == ["head", "bias"]
    assert found.parabolas[0].title == "Step 1, head"
    assert "made 4 fits of single groups" in found.sentences[0]
    axes = Figure().subplots()
    _draw(axes, LIGHT, rates=found)
    assert {text.get_text() for text in axes.texts} == {"head", "bias"}


def test_the_page_has_a_section_and_its_files(make_run):
    folder = make_run(private=False, extra=EVENTS)
    page = write_report(folder).read_text()
    assert 'id="rates"' in page
    assert "refused 3 of them" in page
    assert "Refused: no parabola: R2 0.5 &lt; 0.99." in page
    for name in ("rates.png", "rates.csv", "parabolas.csv"):
        assert (folder / name).stat().st_size
    plain = make_run("plain", private=False)
    assert 'id="rates"' not in html(read_run(plain))
    write_report(plain)
    assert not (plain / "rates.csv").exists()


@pytest.mark.parametrize(
    ("protection", "shown"), [("none", 0), (None, 0), ("public", 1), ("noised", 1)]
)
def test_a_private_run_shows_public_and_noised_fits_only(make_run, protection, shown):
    events = [event(step, protection=protection) for step in (1, 2)]
    run = read_run(make_run(private=True, extra=events))
    assert (rates_of(run) is not None) == shown
    assert ('id="rates"' in html(run)) == shown


def test_damaged_events_are_left_out(make_run):
    broken = event(2)
    broken["points"]["all"]["loss"][0] = None  # a loss that was not finite
    bare = {"time": 1.0, "kind": "rate", "step": 3}
    nothing = {**event(4, "the learning rate is 0"), "rates": {"all": 0.0}, "points": {}}
    run = read_run(make_run(private=False, extra=[event(1, drawn=False), broken, bare, nothing]))
    found = rates_of(run)
    assert found is not None
    assert [step for step, _ in found.lines["all"]] == [0, 1, 2]
    assert found.parabolas == []
    assert "1 × no fit was possible" in found.sentences[0]
    assert png(found).startswith(b"\x89PNG")
