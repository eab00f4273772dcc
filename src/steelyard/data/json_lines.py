"""JSON lines: one object a line, UTF-8, blank lines skipped.

A line ends at a line feed and nowhere else: other separators may stand inside a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .suggest import reason, short

ROW = '{"input": "...", "output": "..."}'


def read_json_lines(path: str | Path, *, like: str = ROW) -> list[tuple[int, dict[str, Any]]]:
    """(line, object) of every line that is not blank; lines count from 1. like: an object, shown
    where there is none.

    Raises ValueError, one line, with file, line, value and fix: no such file, not readable, not
    UTF-8, no rows, not JSON, no object.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"no such file: {str(path)!r}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or reason(error)}") from None
    found = parse_json_lines(decoded(raw, path), path, like=like)
    if not found:
        raise ValueError(f"{path} has no rows: write one object like {like} a line")
    return found


def parse_json_lines(
    text: str, path: str | Path, *, like: str = ROW
) -> list[tuple[int, dict[str, Any]]]:
    """The same of a text that is there already; path: what errors call it. No rows are no error."""
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not valid JSON: {error.msg} at column {error.colno}: "
                f"{short(line, 40)}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not readable: {reason(error)}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: {short(value)} is not an object like {like}")
        found.append((number, value))
    return found


def decoded(raw: bytes, path: str | Path) -> str:
    """UTF-8, with or without a mark. Raises ValueError naming the line of what is not."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8: save it as UTF-8"
        ) from None
