"""The event log of a run: one JSON object a line, only ever appended to.

Every line has `time` (Unix seconds), `kind` and `step`. A resumed run goes on in the same file: its
`resume` event says from which step, and `read_events` leaves out what was done again after it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from steelyard.runs.files import explain_write_failure
from steelyard.runs.trackers import Tracker

_MEASURED = ("train", "eval")
_ONCE = (*_MEASURED, "phase", "checkpoint")  # per step, split and name: the later one counts
_DURABLE = ("checkpoint", "interrupt", "finish")  # worth an fsync


@runtime_checkable
class _Listable(Protocol):
    """Arrays and scalars of NumPy and torch, without importing either."""

    def tolist(self) -> Any: ...


class Events:
    """Append-only JSON lines at `path`; measurements also go to `trackers`.

    Guarantees: a line is written by one system call, so a killed run leaves at most one torn line,
    the last. Opening cuts that line off, and changes nothing else. Numbers that JSON does not have
    (NaN, infinities) become null; scalars and arrays of NumPy and torch become numbers and lists.

    Raises:
        ValueError: `path` cannot be written (one line).
    """

    def __init__(self, path: str | Path, trackers: Iterable[Tracker] = ()) -> None:
        self.path = Path(path)
        self.trackers = tuple(trackers)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
            self._descriptor = os.open(self.path, flags, 0o666)
            self._cut_torn_line()
        except OSError as error:
            raise ValueError(explain_write_failure(self.path, error, 0)) from error

    def emit(self, kind: str, step: int, **fields: Any) -> None:
        """Append one event. All of a step's events belong before the checkpoint of that step.

        Raises:
            ValueError: a field that JSON cannot hold, or no space; nothing of the line is written.
        """
        event = {"time": time.time(), "kind": kind, "step": int(step)}
        if clash := event.keys() & fields.keys():
            raise ValueError(f"field name {min(clash)!r} of a {kind!r} event is taken: rename it")
        event |= {name: _plain(value, f"{kind}.{name}") for name, value in fields.items()}
        self._append(json.dumps(event, allow_nan=False).encode() + b"\n")
        if kind in _DURABLE:
            os.fsync(self._descriptor)
        if kind in _MEASURED and self.trackers:
            numbers = _numbers(event)
            for tracker in self.trackers:
                tracker.log(event["step"], numbers)

    def resume(self, step: int, source: str) -> None:
        """Append a `resume` event: `from` is `source`, `replaced` counts the events undone."""
        undone = sum(not _survives(event, step) for event in read_events(self.path))
        self.emit("resume", step, **{"from": source, "replaced": undone})

    def close(self) -> None:
        """Close the file and the trackers; a second call does nothing."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        for tracker in self.trackers:
            tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        before = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):  # a full disk takes a part first, then refuses
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise ValueError(explain_write_failure(self.path, error, len(line))) from error

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end == len(content):
            return
        if _parse(content[end:]) is not None:  # whole, only its line end is missing
            os.write(self._descriptor, b"\n")
        else:
            os.ftruncate(self._descriptor, end)


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """The effective history: what a run without interruptions would have logged, and its resumes.

    A `resume` event at step s takes away all earlier events after step s and an earlier `finish`.
    Of two `train`, `eval`, `phase` or `checkpoint` events with one step, `split` and `name` the
    later one stays. A torn last line is left out.

    Raises:
        ValueError: no such file, or a damaged line (names it).
    """
    path = Path(path)
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror or error}") from error
    events = [_parse(line) for line in lines]
    if None in events:
        number = events.index(None) + 1
        raise ValueError(f"'{path}' line {number} is not an event: the file was damaged or edited")
    history: list[dict[str, Any]] = []
    for event in (*events, _parse(last)):
        if event is None:  # the torn last line, or the nothing after the last line end
            continue
        if event["kind"] == "resume":
            history = [earlier for earlier in history if _survives(earlier, event["step"])]
        history.append(event)
    latest = {_slot(event, position): position for position, event in enumerate(history)}
    return [history[position] for position in sorted(latest.values())]


def _survives(event: Mapping[str, Any], step: int) -> bool:
    return event["step"] <= step and event["kind"] != "finish"


def _slot(event: Mapping[str, Any], position: int) -> tuple[Any, ...]:
    if event["kind"] in _ONCE:
        return event["kind"], event["step"], str(event.get("split")), str(event.get("name"))
    return (position,)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(event, dict) and isinstance(event.get("step"), int) and "kind" in event
    return event if whole else None


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON has it."""
    if isinstance(value, _Listable):
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise ValueError(f"event field {where!r} is a {type(value).__name__}: JSON has no such thing")


def _numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """'train/lr', 'test/accuracy', ...: the numeric fields of a measurement."""
    group = event.get("split") or event["kind"]
    fields = {name: value for name, value in event.items() if name not in ("time", "step")}
    return {
        f"{group}/{name}": float(value)
        for name, value in fields.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
