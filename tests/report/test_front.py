"""The front's picture and its numbers."""

from __future__ import annotations

import csv
import subprocess
import sys
from types import SimpleNamespace

import pytest

from steelyard.report.front import csv_text, png, svg, write_front


def selections():
    rows = [
        (("head",), 0.001, 0.4),
        (("head", "norm"), 0.003, 0.5),
        (("head", "norm", "mlp"), 1.0, 0.9),
    ]
    return [SimpleNamespace(names=names, share=share, gain=gain) for names, share, gain in rows]


def test_writes_a_picture_and_its_numbers(tmp_path):
    found = selections()
    path = write_front(tmp_path / "new" / "front.png", found, chosen=found[1], title="GPT-2")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.read_bytes() == png(found, chosen=found[1], title="GPT-2")
    assert path.read_bytes() != png(found, title="GPT-2")
    with (tmp_path / "new" / "front.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["added"] for row in rows] == ["head", "norm", "mlp"]
    assert [float(row["share"]) for row in rows] == [0.001, 0.003, 1.0]
    assert [float(row["gain"]) for row in rows] == [0.4, 0.5, 0.9]


def test_the_pages_drawing_names_every_group():
    text = svg(selections())
    assert text.startswith("<svg")
    for name in ("+ head", "+ norm", "+ mlp", "parameters trained"):
        assert name in text


def test_an_empty_front_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the front is empty"):
        write_front(tmp_path / "front.png", [])
    assert not list(tmp_path.iterdir())
    assert csv_text([]) == "share,gain,added\n"


def test_needs_no_torch():
    code = "import sys, steelyard.report.front; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
