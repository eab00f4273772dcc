"""`get`: the hub first, then a pinned package; a wrong hash leaves nothing. No network is used."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.data import get, hub, known, packages
from steelyard.data.entries import Entry, Source

WHEEL = b"the wheel"
PINNED = hashlib.sha256(WHEEL).hexdigest()
PIP = Source(registry="pip", package="probe", version="1.2", sha256=PINNED, module="probe_data")
ENTRY = Entry(name="probe", what="data", kind="text", task="", size="", licence="", source=PIP)


class Registry:
    """Stands in for pip and npm: `download` writes `content`, `install` makes a package."""

    def __init__(self, place: Path, content: bytes = WHEEL) -> None:
        self.place, self.content, self.calls = place, content, []

    def __call__(self, command: list[str], what: str) -> None:
        self.calls.append(command)
        if "download" in command:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "probe-1.2-py3-none-any.whl").write_bytes(self.content)
        elif "pack" in command:
            folder = Path(command[command.index("--pack-destination") + 1])
            (folder / "probe-1.2.tgz").write_bytes(self.content)
        else:
            (self.place / "probe_data").mkdir()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setitem(known.ENTRIES, "probe", ENTRY)
    monkeypatch.setenv("STEELYARD_DATA", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_pip_package_with_the_pinned_hash(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(offline)
    monkeypatch.setattr(packages, "_call", registry)
    lines: list[str] = []
    assert get("probe", lines.append) == offline / "probe_data"
    download, install = registry.calls
    assert {"--no-deps", "--only-binary=:all:", "probe==1.2"} <= set(download)
    assert {"--no-deps", "--no-index"} <= set(install)
    assert any("sha256 as pinned" in line for line in lines)
    get("probe", lines.append)
    assert len(registry.calls) == 2
    assert "here already" in lines[-1]


def test_wrong_hash_leaves_nothing(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(offline, content=b"another wheel")
    monkeypatch.setattr(packages, "_call", registry)
    with pytest.raises(ValueError, match=r"probe 1\.2: sha256 .* is not the pinned .*nothing"):
        get("probe")
    assert len(registry.calls) == 1
    assert not (offline / "probe_data").exists()
    monkeypatch.setitem(known.ENTRIES, "probe", replace(ENTRY, source=replace(PIP, sha256="")))
    with pytest.raises(ValueError, match="nothing was installed"):
        get("probe")


def _tarball(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("package/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


def test_npm_tarball_lands_in_its_folder_only(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _tarball(
        {
            "package/data/a.png": b"a",
            "../../evil.json": b"e",
            "/abs.json": b"b",
            "package/index.js": b"code",
        }
    )
    digest = hashlib.sha256(content).hexdigest()
    source = Source(registry="npm", package="probe", version="1.2", sha256=digest)
    monkeypatch.setitem(known.ENTRIES, "probe", replace(ENTRY, source=source))
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/bin/{name}")
    registry = Registry(offline, content)
    monkeypatch.setattr(packages, "_call", registry)
    folder = get("probe")
    assert folder == offline / "home" / "probe"
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "abs.json", "evil.json"]
    assert [path.name for path in (offline / "home").iterdir()] == ["probe"]
    assert "--ignore-scripts" in registry.calls[0]


def test_broken_tarball_leaves_nothing(tmp_path: Path) -> None:
    whole = _tarball({"package/a.png": bytes(range(256)) * 400})
    (tmp_path / "t.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((EOFError, tarfile.TarError)):
        packages.unpack(tmp_path / "t.tgz", tmp_path / "home" / "x")
    assert list((tmp_path / "home").iterdir()) == []


def test_no_npm_and_commands_and_models_names(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(registry="npm", package="probe", version="1.2", sha256=PINNED)
    monkeypatch.setitem(known.ENTRIES, "probe", replace(ENTRY, source=source))
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="there is no npm here"):
        get("probe")
    command = Source(registry="command", folder=str(offline / "no"), command="apt-get install x")
    monkeypatch.setitem(known.ENTRIES, "probe", replace(ENTRY, source=command))
    with pytest.raises(ValueError, match="'probe' is brought by: apt-get install x"):
        get("probe")
    with pytest.raises(ValueError, match="did you mean 'imdb'"):
        get("imbd")


def test_hub_first_and_the_package_when_it_fails(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(offline)
    monkeypatch.setattr(packages, "_call", registry)
    monkeypatch.setattr(packages, "_hub_library", lambda what: True)
    monkeypatch.setitem(known.ENTRIES, "probe", replace(ENTRY, hub="owner/probe"))
    monkeypatch.setattr(hub, "reachable", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr(hub, "fetch", asked.append)
    get("probe")
    assert asked == ["owner/probe"]
    assert registry.calls == []

    def fails(name: str) -> None:
        raise ValueError("gone")

    monkeypatch.setattr(hub, "fetch", fails)
    lines: list[str] = []
    assert get("probe", lines.append) == offline / "probe_data"
    assert any("gone; trying pip probe 1.2" in line for line in lines)


def test_a_silent_hub_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the hf extra")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: time.sleep(5))
    start = time.monotonic()
    assert not hub.reachable(timeout=0.2)
    assert time.monotonic() - start < 2


def test_any_answer_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the hf extra")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refuse(request: urllib.request.Request, timeout: float) -> None:
        raise urllib.error.HTTPError(request.full_url, 403, "no", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert hub.reachable(timeout=5)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable(timeout=5)


def test_a_failing_command_is_one_line() -> None:
    code = "import sys; sys.stderr.write('noise\\nERROR: no such version\\nhint\\n'); sys.exit(1)"
    with pytest.raises(ValueError, match=r"^probe cannot be had: ERROR: no such version$"):
        packages._call([sys.executable, "-c", code], "probe")
