"""Read a run folder: its JSON files and its events, defensively, without torch.

A run may be read while it is still going on, or after it was killed at any moment: what is not
there yet is None, and a line of the event log that was cut in two is left out.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.runs.events import read_events

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, parsed; `ledger` and `result` are None where the file is not there (yet)."""

    folder: Path
    config: Record
    environment: Record
    events: list[Record]  # as if never interrupted: what a resume redid is here once
    ledger: Record | None
    result: Record | None
    baseline: Run | None  # the twin without privacy, from the subfolder baseline/

    @property
    def start(self) -> Record:
        return next((event for event in self.events if event["kind"] == "start"), {})

    @property
    def private(self) -> bool:
        """What the run says of itself: result.json, else the start event, else ledger.json."""
        said = (self.result or {}).get("private", self.start.get("private"))
        return self.ledger is not None if said is None else bool(said)

    @property
    def last_step(self) -> int:
        return max((event["step"] for event in self.events), default=0)

    @property
    def epochs_per_step(self) -> float | None:
        """B / n, the expected part of the data that one step reads; None if it was not recorded.

        Private and not private usually differ in their batch: in epochs they can be compared. None
        too where the first steps read public samples only.
        """
        if self.config.get("public_first"):
            return None
        batch, n = number(self.start.get("expected_batch")), number(self.start.get("n"))
        return batch / n if batch and n and batch > 0 and n > 0 else None

    def of_kind(self, kind: str) -> list[Record]:
        """Events of one kind by rising step; of several at one step the last written counts."""
        latest = {event["step"]: event for event in self.events if event["kind"] == kind}
        return [latest[step] for step in sorted(latest)]


def number(value: object) -> float | None:
    """`value` as a finite float, or None for anything else (null, text, true, NaN, Infinity)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the floats
        return None


def read_run(folder: Path) -> Run:
    """The run in `folder`, with its non-private twin if baseline/ holds one that has begun.

    Raises: ValueError, one line naming the file: missing, not JSON, or contradicting another.
    """
    if not folder.is_dir():
        raise ValueError(f"no run folder at '{folder}': give the --out folder of a training run")
    begun = (folder / "baseline" / "events.jsonl").is_file()
    return _read(folder, _read(folder / "baseline", None) if begun else None)


def _read(folder: Path, baseline: Run | None) -> Run:
    if not (folder / "events.jsonl").is_file():
        raise _missing(folder / "events.jsonl")
    run = Run(
        folder=folder,
        config=_object(folder / "config.json"),
        environment=_object(folder / "environment.json"),
        events=read_events(folder / "events.jsonl"),
        ledger=_optional(folder / "ledger.json"),
        result=_optional(folder / "result.json"),
        baseline=baseline,
    )
    if run.ledger is not None and not run.private:
        raise ValueError(
            f"'{folder}' has a ledger.json but says that it is not private: "
            "files of two runs are mixed; train again into an empty folder"
        )
    if baseline is not None and baseline.private:
        raise ValueError(f"'{baseline.folder}' is private: baseline/ holds the run without")
    return run


def _optional(path: Path) -> Record | None:
    return _object(path) if path.exists() else None


def _object(path: Path) -> Record:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _missing(path) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not JSON ({error}): restore it or train again") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, not an object: restore it")
    return content


def _missing(path: Path) -> ValueError:
    return ValueError(
        f"'{path.name}' is missing in '{path.parent}': is this the --out folder of a run?"
    )
