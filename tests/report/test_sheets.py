"""Sheets and panels: what a claim of any shape looks like on its page and in its picture."""

from __future__ import annotations

import io

import pytest

from steelyard.report.sheets import draw, markdown, panels_of, png, shown

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
