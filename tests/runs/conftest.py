"""What the tests of interrupted runs compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from steelyard.runs.events import read_events


@pytest.fixture
def outcome_of() -> Callable[[Path], dict[str, object]]:
    """`outcome_of(run)`: all of a finished run that must not depend on interruptions."""
    return _outcome


def _outcome(run: Path) -> dict[str, object]:
    result = json.loads((run / "result.json").read_text())
    clock = ("seconds", "samples_per_s", "time")
    logged = [
        {name: value for name, value in event.items() if name not in clock}
        for event in read_events(run / "events.jsonl")
        if event["kind"] in ("train", "eval")
    ]
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "ledger": (run / "ledger.json").read_text(),
        "result": {name: value for name, value in result.items() if name not in clock},
        "logged": logged,
    }
