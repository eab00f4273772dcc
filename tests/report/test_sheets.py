"""Sheets and panels: what a claim of any shape looks like on its page and in its picture."""

from __future__ import annotations

import io

import pytest

from steelyard.report.sheets import _shared, draw, markdown, panels_of, png, shown

PANEL = {
    "title": "loss",
    "x": "first rate",
    "y": "test loss",
    "log_x": True,
    "log_y": True,
    "lines": [
        {
            "name": "ours",
            "role": "method",
            "x": [1e-3, 1e-2, 1e-1],
            "y": [0.5, None, 0.3],
            "low": [0.4, None, 0.2],
            "high": [0.6, None, 0.4],
        },
        {"name": "theirs", "role": "baseline", "x": [1e-3, 1e-1], "y": [0.7, 0.6]},
    ],
}
ROWS = {
    "one": {
        "paper": "arXiv 1", "claim": "it works", "published": "yes", "verdict": "partly",
        "numbers": {"best": "0.3"}, "setting": "small", "cost_s": 7200.0,
        "sheets": [
            {"title": "all", "columns": ["a|b", "n"], "rows": [["x", 0.123456], [None, 1200]],
             "note": "three seeds"}
        ],
        "panels": [PANEL],
    },
}  # fmt: skip


def test_cells():
    assert [shown(v) for v in (None, "as is", 0.123456, 1200, 3e-9)] == [
        "", "as is", "0.1235", "1,200", "3e-09",
    ]  # fmt: skip


def test_the_page_has_verdict_numbers_table_note_and_cost():
    text = markdown(ROWS, "steps")
    assert "## one: partly" in text
    assert "- best: 0.3" in text
    assert "| a\\|b | n |" in text
    assert "| x | 0.1235 |" in text
    assert "|  | 1,200 |" in text
    assert "three seeds" in text
    assert "2.0 core hours" in text
    assert "![steps](steps.png)" in text


def test_a_gap_breaks_the_line_and_the_spread_is_drawn():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw(axes, PANEL)
    ours, theirs = axes.get_lines()
    assert [bool(v == v) for v in ours.get_ydata()] == [True, False, True]
    assert ours.get_color() != theirs.get_color()
    assert len(axes.collections) == 1  # the spread of ours
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_the_picture_has_all_panels():
    from PIL import Image

    rows = {"one": {**ROWS["one"], "panels": [PANEL] * 4}}
    assert [panel["title"] for panel in panels_of(rows)] == ["one: loss"] * 4
    wide, high = Image.open(io.BytesIO(png(rows))).size
    small = Image.open(io.BytesIO(png(ROWS))).size
    assert wide > 2.5 * small[0]
    assert high > 1.5 * small[1]


def test_nothing_to_draw_is_one_line():
    with pytest.raises(ValueError, match="no row has panels"):
        png({"one": {**ROWS["one"], "panels": []}})


def many(lines, points):
    """A panel of so many lines over the same points, each with its spread."""
    x = [0.001 * 4**k for k in range(points)]
    own = {"x": x, "y": [0.5] * points, "low": [0.4] * points, "high": [0.6] * points}
    names = [f"line {k}" for k in range(lines)]
    roles = ["method" if k < 4 else "baseline" for k in range(lines)]
    both = zip(names, roles, strict=True)
    return {**PANEL, "log_y": False, "lines": [{"name": n, "role": r, **own} for n, r in both]}


def test_many_lines_have_whiskers_that_do_not_hide_each_other():
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw(axes, many(12, 3))
    assert all(isinstance(one, LineCollection) for one in axes.collections)
    whiskers = [[part[0][0] for part in one.get_segments()] for one in axes.collections]
    places = [x for own in whiskers for x in own]
    assert len(places) == len(set(places)) == 36
    for line, own in zip(axes.get_lines(), whiskers, strict=True):
        assert list(line.get_xdata()) == pytest.approx(own)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.001", "0.004", "0.016"]


def test_many_points_have_some_markers_not_where_the_neighbour_has_them():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw(axes, many(9, 51))
    whiskers = [[part[0][0] for part in one.get_segments()] for one in axes.collections]
    assert all(5 < len(own) < 10 for own in whiskers)
    assert not set(whiskers[0]) & set(whiskers[1])


def test_twelve_lines_are_twelve_looks():
    (looks,) = _shared([many(12, 3)])
    assert len({(one.color, one.marker, one.dash) for one in looks.values()}) == 12
    (looks,) = _shared([{**PANEL, "lines": [{"name": str(k)} for k in range(12)]}])
    assert len({(one.color, one.marker, one.dash) for one in looks.values()}) == 12


def test_a_name_looks_the_same_in_all_panels_of_a_claim():
    def panel(*names):
        return {**PANEL, "lines": [{"name": name, "role": "method"} for name in names]}

    one, two, three, alone = _shared(
        [panel("a", "b"), panel("c", "b"), panel("d", "c"), panel("e")]
    )
    assert one["b"] == two["b"]
    assert two["c"] == three["c"]
    assert len({one["a"], one["b"], two["c"], three["d"]}) == 4
    assert alone["e"] == one["a"]  # nothing in common: from the first colour again


def test_long_headings_are_broken_and_numbers_stand_to_the_right():
    sheet = {
        "title": "all", "columns": ["method", "mean over rates, best weight", "share", "none"],
        "rows": [["ours", "0.512 ± 0.020", 0.5, None], ["3 of 4", "-0.1 ± 0.1", None, None]],
    }  # fmt: skip
    text = markdown({"one": {**ROWS["one"], "sheets": [sheet]}}, "steps")
    assert "| method | mean over rates,<br>best weight | share | none |" in text
    assert "| --- | ---: | ---: | --- |" in text
