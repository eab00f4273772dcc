from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from steelyard.report.curves import Line, Panel, panels
from steelyard.report.plots import LIGHT, png, svg
from steelyard.report.read import read_run


def _panel(*ends: float, key: str = "accuracy") -> Panel:
    roles = (("private", "private"), ("not private", "plain"))
    lines = [
        Line(label=label, role=role, points=[(0.0, 10.0), (5.0, end)])
        for (label, role), end in zip(roles, ends, strict=False)
    ]
    return Panel(
        key=key, title="test accuracy", unit=" %", clock="epoch", lines=lines, low=0.0, high=100.0
    )


def _texts(drawing: str) -> dict[str, tuple[float, float]]:
    """The labels of a drawing and their places; y grows downwards."""
    drawing = drawing.replace("xlink:href", "href")
    found = {}
    for element in ET.fromstring(drawing).iter("text"):
        found["".join(element.itertext())] = (
            float(element.get("x", 0)),
            float(element.get("y", 0)),
        )
    return found


def test_colours_are_variables_of_the_page_only(make_run):
    for panel in panels(read_run(make_run(baseline=True)), 3.0):
        drawing = svg(panel)
        assert not re.search(r"#[0-9a-f]{3,8}\b(?=[;\"])", drawing.replace('href="#', ""))
        assert set(re.findall(r"var\(--(\w+)\)", drawing)) <= set(LIGHT)
        assert "var(--private)" in drawing


def test_a_drawing_fits_into_a_page():
    drawing = svg(_panel(80.0, 90.0))
    assert drawing.startswith("<svg")
    assert drawing.endswith("</svg>")
    assert "viewBox" in drawing
    for foreign in ("xmlns", "http", "<style", "<script", "font-family", "<metadata", "DejaVu"):
        assert foreign not in drawing
    ids = re.findall(r'\bid="([^"]+)"', drawing)
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("accuracy-") for name in ids)
    assert set(re.findall(r'href="#([^"]+)"', drawing)) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", drawing)) <= set(ids)


def test_the_same_panel_gives_the_same_drawing():
    assert svg(_panel(80.0, 90.0)) == svg(_panel(80.0, 90.0))


@pytest.mark.parametrize(
    "ends", [(80.0, 90.0), (90.0, 80.0), (80.0, 80.0), (3.0, 1.0), (40.0, 2.0)]
)
def test_direct_labels_do_not_overlap(ends):
    texts = _texts(svg(_panel(*ends)))
    one, twin = texts[f"private {ends[0]:.1f} %"], texts[f"not private {ends[1]:.1f} %"]
    assert abs(one[1] - twin[1]) > 10  # the height of a line
    if abs(ends[0] - ends[1]) > 1:
        assert (one[1] < twin[1]) == (
            ends[0] > ends[1]
        )  # the upper label belongs to the upper line


def test_accuracy_ticks_carry_their_unit():
    assert {"0 %", "100 %"} <= set(_texts(svg(_panel(80.0))))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_png_has_a_picture_for_any_number_of_panels(count):
    picture = png([_panel(80.0, 90.0)] * count)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture == png([_panel(80.0, 90.0)] * count)


def test_the_users_matplotlib_settings_are_left_alone_and_do_not_matter():
    import matplotlib

    plain = svg(_panel(80.0))
    with matplotlib.rc_context({"font.size": 33.0, "svg.fonttype": "path"}):
        assert svg(_panel(80.0)) == plain
        assert matplotlib.rcParams["font.size"] == 33.0
