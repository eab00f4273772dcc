from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from steelyard.hf import sources
from steelyard.hf.models import load_hf
from steelyard.models import Task

TEXT = Task(kind="text", classes=3, shape=(8,))


def test_a_silent_hub_fails_fast(monkeypatch):
    import huggingface_hub

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)  # accepts, never answers
        where = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", where)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(sources, "HUB_TIMEOUT", 0.5)
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"'nobody/nothing' .* the hub cannot be reached"):
            sources.locate("nobody/nothing")
        assert time.monotonic() - start < 5


def test_offline_asks_no_hub_and_uses_the_cache(folder, tmp_path, monkeypatch, batch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "_newest", lambda name: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match=r"switched off .HF_HUB_OFFLINE"):
        sources.locate("nobody/nothing")
    cached = tmp_path / "models--nobody--nothing"
    snapshot = cached / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    for file in Path(folder["bert"]).iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    assert sources.locate("nobody/nothing") == snapshot
    assert load_hf("nobody/nothing", TEXT)[0](batch(TEXT)).shape == (3, 3)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(sources, "LIBRARIES", ("transformers", "no_such_library"))
    with pytest.raises(ValueError, match=r"needs no_such_library: pip install 'steelyard\[hf\]'"):
        load_hf("minilm", TEXT)
