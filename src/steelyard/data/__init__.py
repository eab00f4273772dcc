"""Data sets: the embedded one, the packaged ones, the hub's, and the user's own files. NumPy only.

table = steelyard.data.load("rotten-tomatoes")      # a name of the catalog
table = steelyard.data.load("reviews.csv")          # a file or folder
table = steelyard.data.load("owner/name")           # the hub
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from .entries import Entry, hub_cache
from .files import SUFFIXES, load_path
from .hub import NAME, load_hub, reachable
from .known import ENTRIES, find
from .packaged import read
from .packages import get
from .suggest import did_you_mean
from .table import Table

__all__ = ["Entry", "Table", "catalog", "find", "get", "load"]


def load(
    name_or_path: str,
    *,
    text: str | None = None,
    label: str | None = None,
    test: str | None = None,
    seed: int = 0,
    size: int | None = None,
) -> Table:
    """A data set by the catalog's name, by path, or by the hub's `owner/name[:configuration]`.

    `text` and `label` name columns (label "none": language modelling); `test` is a second
    file or folder; without one, `seed` chooses the tenth to hold out; `size` resizes images.
    Guarantees: names of the catalog do not depend on `seed`; nothing in a file is run or unpickled.
    Raises: ValueError, one line with the fix.
    """
    if name_or_path in ENTRIES:
        for option, value in {"text": text, "label": label, "test": test, "size": size}.items():
            if value is not None:
                raise ValueError(
                    f"'{name_or_path}' is in the catalog: '{option}={value}' is for files"
                )
        return _load_entry(ENTRIES[name_or_path])
    on_hub = name_or_path.removeprefix("hub:")
    if name_or_path.startswith("hub:") or _is_hub_name(name_or_path):
        if not NAME.fullmatch(on_hub):
            raise ValueError(f"'{name_or_path}': the hub's names look like hub:owner/name")
        if test is not None or size is not None:
            raise ValueError(f"'{name_or_path}': a test file or a size is for local files only")
        return load_hub(on_hub, text=text, label=label, seed=seed)
    if _is_path(name_or_path):
        try:
            return load_path(name_or_path, text=text, label=label, test=test, seed=seed, size=size)
        except OSError as error:
            place = error.filename or name_or_path
            raise ValueError(f"{place} cannot be read: {error.strerror or error}") from None
    raise ValueError(
        f"unknown data set '{name_or_path}'{did_you_mean(name_or_path, _data_names())} "
        "`steelyard data list` shows all"
    )


def catalog() -> list[Entry]:
    """Every data set and model with a short name."""
    return list(ENTRIES.values())


def _load_entry(entry: Entry) -> Table:
    if entry.what == "model":
        raise ValueError(f"'{entry.name}' is a model, not a data set: use it as --model")
    if (folder := entry.location) is not None:
        return read(entry, folder)
    if (
        entry.hub is not None
        and importlib.util.find_spec("datasets") is not None
        and (hub_cache(entry.hub, "data") is not None or reachable())
    ):
        return dataclasses.replace(load_hub(entry.hub, licence=entry.licence), name=entry.name)
    raise ValueError(f"'{entry.name}' is not on this machine: run `{entry.how}`")


def _is_path(name: str) -> bool:
    known = name.lower().endswith(SUFFIXES)
    return known or "/" in name or "\\" in name or Path(name).expanduser().exists()


def _is_hub_name(name: str) -> bool:
    """owner/name, unless something local has that name or at least that folder."""
    return (
        NAME.fullmatch(name) is not None
        and not name.lower().endswith(SUFFIXES)
        and not Path(name).exists()
        and not Path(name).parent.is_dir()
    )


def _data_names() -> list[str]:
    return [entry.name for entry in ENTRIES.values() if entry.what == "data"]
