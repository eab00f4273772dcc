from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "screenshot.py"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("screenshot", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_browser_is_one_line(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool.main([str(TOOL), str(tmp_path / "out.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no Chromium or Chrome found" in said
    assert not (tmp_path / "out.png").exists()


def test_no_page_is_one_line(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool.shutil, "which", lambda name: "/bin/false")
    assert tool.main([str(tmp_path / "none.html"), str(tmp_path / "out.png")]) == 2
    assert "no page at" in capsys.readouterr().err


def test_a_browser_that_fails_is_one_line(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool.shutil, "which", lambda name: "/bin/false")
    assert tool.main([str(TOOL), str(tmp_path / "out.png")]) == 2
    assert "wrote no picture" in capsys.readouterr().err


def test_the_empty_tail_is_cut(tool):
    pixels = np.ones((100, 80, 3))
    pixels[30, 5] = 0.0
    assert tool.without_tail(pixels).shape == (31 + 2, 80, 3)
    assert tool.without_tail(np.ones((10, 80, 3))).shape == (10, 80, 3)
