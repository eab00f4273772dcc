"""The user's own data: CSV, TSV, JSONL, Parquet, `.npz`, a folder of images, a folder of idx files.

Nothing in a file is run or unpickled. Every error is one line: file, line or row, value, fix.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from .arrays import idx_folder, is_idx_folder, npz
from .columns import Columns, to_table
from .images import image_folder
from .json_lines import decoded, parse_json_lines
from .suggest import listed, reason
from .table import Table

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".npz")
LABELLED = '{"text": "...", "label": 0}'
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072


def load_path(
    path: str,
    *,
    text: str | None = None,
    label: str | None = None,
    test: str | None = None,
    seed: int = 0,
    size: int | None = None,
) -> Table:
    """A file or folder as a Table; `text` and `label` name columns, `test` is a second one.

    Without a test part a tenth of the rows is held out by content and `seed`. `size`: of images.
    Raises: ValueError, one line.
    """
    place = _existing(path)
    if place.is_dir():
        _refuse(path, "a folder", text=text, label=label)
        if is_idx_folder(place):
            _refuse(path, "a folder of idx files", test=test, size=size)
            return idx_folder(
                place, name=place.resolve().name, source=path, licence="the user's own"
            )
        test_place = None if test is None else _existing(test)
        return image_folder(place, test_place, seed=seed, size=size)
    _refuse(path, "a file", size=size)
    if place.suffix.lower() == ".npz":
        _refuse(path, "an .npz file", text=text, label=label, test=test)
        return npz(place, seed=seed)
    train = read_columns(path)
    held = None if test is None else read_columns(test)
    return to_table(train, held, text=text, label=label, seed=seed)


def read_columns(path: str) -> Columns:
    """The named columns of a CSV, TSV, JSONL or Parquet file. Raises: ValueError, one line."""
    place = _existing(path)
    suffix = place.suffix.lower()
    if place.is_dir() or suffix not in SUFFIXES or suffix == ".npz":
        kind = "is a folder" if place.is_dir() else f"has the unknown suffix '{place.suffix}'"
        raise ValueError(f"{path} {kind}: use one of {listed(SUFFIXES)} or a folder of images")
    if place.stat().st_size == 0:
        raise ValueError(f"{path} is empty: 0 bytes")
    if suffix == ".parquet":
        columns = _parquet(path, place)
    elif suffix in (".jsonl", ".ndjson"):
        columns = _jsonl(path, decoded(place.read_bytes(), path))
    else:
        columns = _csv(path, decoded(place.read_bytes(), path), "\t" if suffix == ".tsv" else ",")
    if not len(columns.places):
        raise ValueError(f"{path} is empty: it has no rows")
    return columns


def _existing(path: str) -> Path:
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    return place


def _refuse(path: str, what: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{path} is {what}: '{name}={value}' does not apply to it")


def _csv(path: str, text: str, delimiter: str) -> Columns:
    limit = csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    places: list[int] = []
    line = 0
    try:
        names = next(reader, [])
        line = reader.line_num
        for row in reader:
            if row:
                _check_width(path, line + 1, row, names)
                rows.append(row)
                places.append(line + 1)
            line = reader.line_num
    except csv.Error as error:
        raise ValueError(f"{path}, line {line + 1}: not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)
    if not names:
        raise ValueError(f"{path}, line 1: no header: the first line names the columns")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}, line 1: column '{twice}' occurs twice: rename one")
    cells = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    return Columns(
        path=path, unit="line", cells=dict(zip(names, cells, strict=True)), places=places
    )


def _check_width(path: str, line: int, row: list[str], names: list[str]) -> None:
    if len(row) != len(names):
        raise ValueError(
            f"{path}, line {line}: {len(row)} cells, the header has {len(names)} "
            f"({listed(names, 6)}): quote cells that contain the separator"
        )


def _jsonl(path: str, text: str) -> Columns:
    found = parse_json_lines(text, path, like=LABELLED)
    names = list(dict.fromkeys(name for _, row in found for name in row))
    cells = {name: [row.get(name) for _, row in found] for name in names}
    return Columns(path=path, unit="line", cells=cells, places=[number for number, _ in found])


def _parquet(path: str, place: Path) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet needs pyarrow: pip install 'steelyard[hf]'") from None
    try:
        table = pyarrow.parquet.read_table(place)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {reason(error)}") from None
    cells = {name: table.column(name).to_pylist() for name in table.column_names}
    return Columns(path=path, unit="row", cells=cells, places=range(1, table.num_rows + 1))
