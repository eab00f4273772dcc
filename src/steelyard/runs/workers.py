"""Call functions on a few processes, and no call twice: results are kept, line by line, in a file.

A measurement that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """function(*arguments) -> a record of plain values (JSON). about: kept beside it in the file;
    told: one line for who waits."""

    function: Callable[..., Record]
    arguments: tuple[Any, ...]
    told: str
    about: Record = field(default_factory=dict)


@dataclass
class Workers:
    """`workers(calls)` -> {key: record}, from the file or computed on `workers` processes.

    workers 0: in this process; else the processes live until this is left (`with Workers(...)`).
    say: called with one line after every call. Functions must be importable by a new process.
    """

    file: Path
    workers: int
    say: Callable[[str], None] = field(default=lambda line: None)

    def __post_init__(self) -> None:
        self.file = Path(self.file).absolute()
        self.known: dict[str, Record] = dict(_read(self.file))
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """After an error or Ctrl-C, what has not begun does not begin."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def __call__(self, calls: Mapping[str, Call]) -> dict[str, Record]:
        missing = {key: call for key, call in calls.items() if key not in self.known}
        began = time.monotonic()
        for done, (key, record) in enumerate(self._compute(missing), start=1):
            self.known[key] = record
            self._append({"key": key, **record, **missing[key].about})
            left = (time.monotonic() - began) / done * (len(missing) - done)
            self.say(
                f"{done}/{len(missing)} {missing[key].told}: {_shown(record)}; "
                f"{left / 60:.0f} min left of these"
            )
        return {key: self.known[key] for key in calls}

    def _compute(self, missing: Mapping[str, Call]) -> Iterator[tuple[str, Record]]:
        if self.workers < 1 or not missing:
            for key, call in missing.items():
                yield key, call.function(*call.arguments)
            return
        if self._executor is None:  # kept: a new process spends seconds on imports
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, context, _begin)
        futures = {
            self._executor.submit(call.function, *call.arguments): key
            for key, call in missing.items()
        }
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _append(self, record: Record) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as file:
            # a line that a power cut tore stays alone
            file.seek(max(0, file.tell() - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _begin() -> None:
    """A new process: one thread, since two processes share two cores better than two threads twice.

    It ends with the process that made it, also when that one is killed.
    """
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _read(file: Path) -> Iterator[tuple[str, Record]]:
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            yield record.pop("key"), record
        except (ValueError, KeyError, TypeError, AttributeError):  # torn by a power cut: once more
            continue


def _shown(record: Record) -> str:
    numbers = [(k, v) for k, v in record.items() if isinstance(v, int | float)]
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers[:4])
