from __future__ import annotations

import errno
import os
import shutil
from types import SimpleNamespace

import pytest

from steelyard.runs.files import readable_size, sha256_of, write_atomically


def test_text_and_bytes_replace_the_old_content(tmp_path):
    path = tmp_path / "new" / "result.json"
    assert write_atomically(path, '{"epsilon": "ε"}') == path
    assert path.read_text(encoding="utf-8") == '{"epsilon": "ε"}'
    write_atomically(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert os.listdir(path.parent) == ["result.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, error):
    path = write_atomically(tmp_path / "result.json", "old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, call, fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7))
    with pytest.raises((ValueError, KeyboardInterrupt)) as caught:
        write_atomically(path, "new" * 1000)
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"no space left to write '{path}': 3.0 kB needed, 7 B free; "
            "free some space or choose another folder"
        )
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_folder_in_the_way_is_one_line(tmp_path):
    (tmp_path / "result.json").mkdir()
    with pytest.raises(ValueError, match=r"^cannot write '.*result.json': Is a directory$"):
        write_atomically(tmp_path / "result.json", "x")


def test_small_things(tmp_path):
    assert [readable_size(n) for n in (0, 999, 1000, 1_536_000, 7 * 10**12)] == [
        *("0 B", "999 B", "1.0 kB", "1.5 MB", "7.0 TB"),
    ]
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert sha256_of(write_atomically(tmp_path / "abc", "abc")) == digest
