"""Tests that need a data set which is not on this machine are skipped, and say which."""

from __future__ import annotations

import pytest

from steelyard.trials import tasks


@pytest.fixture(autouse=True)
def skipped_without_data(monkeypatch):
    load = tasks.load

    def load_or_skip(name: str):
        try:
            return load(name)
        except ValueError as error:
            if "is not on this machine" in str(error):
                pytest.skip(str(error))
            raise

    monkeypatch.setattr(tasks, "load", load_or_skip)
