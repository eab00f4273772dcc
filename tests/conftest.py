"""The command line in this process, and tiny data: what the tests of whole runs share."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from steelyard import cli
from steelyard.report.read import read_run


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only line on standard error."""
        assert "Traceback" not in self.err
        (line,) = self.err.splitlines()
        return line


@pytest.fixture
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are tests/report's matter: here an empty page takes their place."""

    def write_report(folder: Path) -> Path:
        read_run(folder)  # refuses what is no run, as the real one
        (folder / "report.html").write_text("")
        return folder / "report.html"

    monkeypatch.setattr("steelyard.report.page.write_report", write_report)


@pytest.fixture
def command_line(tmp_path, monkeypatch, quick_report) -> Callable[..., Outcome]:
    """`command_line("train", "--steps", 3)`: what `steelyard train --steps 3` does in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    threads = torch.get_num_threads()

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["steelyard", *map(str, arguments)])
        out, err, code = io.StringIO(), io.StringIO(), 0
        torch.set_num_threads(1)
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("default")
                cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            torch.set_num_threads(threads)
        return Outcome(code=code, out=out.getvalue(), err=err.getvalue())

    return run


@pytest.fixture
def features_csv(tmp_path) -> Path:
    """240 rows of four numbers, two classes that a straight line parts."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(240, 4))
    labels = (rows.sum(1) > 0).astype(int)
    lines = [",".join(f"{value:.4f}" for value in row) for row in rows]
    path = tmp_path / "rows.csv"
    body = "\n".join(f"{line},{label}" for line, label in zip(lines, labels, strict=True))
    path.write_text(f"a,b,c,d,label\n{body}\n")
    return path
