"""The catalog: complete, pinned, and looked up without importing anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.data import catalog, find
from steelyard.data.entries import Entry, Source, data_home, hub_cache
from steelyard.data.hub import NAME
from steelyard.data.packaged import READERS


def test_every_data_set_has_a_reader_and_every_package_a_hash() -> None:
    entries = {entry.name: entry for entry in catalog()}
    assert {e.name for e in entries.values() if e.what == "data"} == set(READERS)
    assert {e.name for e in entries.values() if e.what == "model"} == {"minilm", "smollm2"}
    for entry in entries.values():
        assert entry.sources
        assert entry.how
        assert entry.licence
        assert entry.status in ("embedded", "installed", "not installed", "in the hub's cache")
        if entry.source.registry in ("pip", "npm"):
            assert re.fullmatch("[0-9a-f]{64}", entry.source.sha256)
            assert entry.source.version
        if entry.hub:
            assert NAME.fullmatch(entry.hub)
    assert entries["fashion-mnist-small"].status == "embedded"


def test_unknown_names_suggest_the_closest() -> None:
    with pytest.raises(ValueError, match=r"'cfar10': did you mean 'cifar10'\? `steelyard data"):
        find("cfar10")
    with pytest.raises(ValueError, match="'qqqq': `steelyard data list` shows all"):
        find("qqqq")


def test_location_never_imports_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "steelyard_probe"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = Source(registry="pip", package="p", module="steelyard_probe", inside="data")
    entry = Entry(name="p", what="data", kind="text", task="", size="", licence="", source=source)
    assert entry.location == package / "data"
    assert entry.status == "installed"
    assert "steelyard_probe" not in sys.modules


def test_where_things_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_DATA", str(tmp_path / "sd"))
    assert data_home() == tmp_path / "sd"
    assert find("cifar10").location is None
    (tmp_path / "sd" / "cifar10").mkdir(parents=True)
    assert find("cifar10").location == tmp_path / "sd" / "cifar10"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    assert hub_cache("o/n", "data") is None
    assert hub_cache("o/n", "model") is None
    (tmp_path / "hf" / "datasets" / "o___n").mkdir(parents=True)
    assert hub_cache("o/n", "data") == tmp_path / "hf" / "datasets" / "o___n"
    model = tmp_path / "hf" / "hub" / "models--o--n"
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    assert hub_cache("o/n", "model") == model / "snapshots" / "abc"


def test_import_is_light() -> None:
    heavy = ("torch", "transformers", "datasets", "huggingface_hub", "pyarrow", "PIL", "pandas")
    code = (
        f"import sys, steelyard.data; sys.exit(str([m for m in {heavy} if m in sys.modules] or 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() in ("", "0"), done.stderr
