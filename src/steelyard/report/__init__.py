"""One self-contained HTML page per run, with its curves as PNG and CSV beside it."""

from __future__ import annotations

from steelyard.report.page import write_report

__all__ = ["write_report"]
