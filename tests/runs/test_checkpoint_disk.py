"""Checkpoints on disks that fail, and in processes that are killed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from steelyard.runs import checkpoint
from steelyard.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def save(folder: Path, step: int) -> Path:
    states = {"step": step, "momentum": torch.full((2000,), step)}
    return save_checkpoint(folder, step, run_id="r", model={"w": torch.ones(50)}, states=states)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_fails_cleanly(folder: Path, *says: str) -> BaseException | None:
    """Step 2 cannot be saved, in one line that has `says`; step 1 stays. Returns the cause."""
    before = bytes_of(folder)
    with pytest.raises(CheckpointError) as caught:
        save(folder, 2)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in (str(folder / "step-00000002"), *says)), message
    assert bytes_of(folder) == before
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    assert load_checkpoint(folder, run_id="r").states["step"] == 1
    return caught.value.__cause__


def test_too_little_space_is_seen_before_writing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_345))
    assert_fails_cleanly(tmp_path, "no space left", "kB needed", "12.3 kB free")


def test_enough_space_is_enough(tmp_path, monkeypatch):
    size = sum(len(content) for content in bytes_of(save(tmp_path, 1)).values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size + 65_536 + 8192))
    save(tmp_path, 2)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_rust(tensors, path):
    path.write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


def full_in_torch(content, file):
    try:
        full()
    except OSError:
        raise RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos") from None


@pytest.mark.parametrize(
    ("where", "name", "writer"),
    [
        (checkpoint, "save_file", full),
        (checkpoint, "save_file", full_in_rust),
        (torch, "save", full),
        (torch, "save", full_in_torch),
        (checkpoint, "fsync_file", full),
        (checkpoint, "write_manifest", full),
    ],
)
def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch, where, name, writer):
    save(tmp_path, 1)
    monkeypatch.setattr(where, name, writer)
    assert_fails_cleanly(tmp_path, "no space left", "needed", "free")


def test_a_write_that_really_fails(tmp_path):
    """Both writers' own errors, by a limit on the size of files."""
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        cause = assert_fails_cleanly(tmp_path, "File too large")
        assert isinstance(cause, SafetensorError)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
        cause = assert_fails_cleanly(tmp_path, "File too large")
        assert isinstance(cause, OSError | RuntimeError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    save(tmp_path, 2)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write '.*step-00000001'"):
        save(tmp_path / "file" / "checkpoints", 1)


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    calls: list[str] = []
    for where, name in ((checkpoint, "fsync_file"), (checkpoint, "fsync_folder"), (os, "replace")):
        real = getattr(where, name)

        def noted(path, *more, real=real, name=name):
            calls.append(f"{name} {Path(path).name}")
            return real(path, *more)

        monkeypatch.setattr(where, name, noted)
    save(tmp_path, 1)
    files = ("model.safetensors", "states.pt", "manifest.json")
    assert set(calls[:3]) == {f"fsync_file {name}" for name in files}
    temporary = "step-00000001.tmp"
    last = [f"fsync_folder {temporary}", f"replace {temporary}", f"fsync_folder {tmp_path.name}"]
    assert calls[3:] == last


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from steelyard.runs.checkpoint import load_checkpoint, save_checkpoint

torch.set_num_threads(1)
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])

def tensor(step):
    return torch.randn(30_000, generator=torch.Generator().manual_seed(step))

def save(step):
    states = {"momentum": tensor(-step), "step": step}
    save_checkpoint(folder, step, run_id="r", model={"w": tensor(step)}, states=states)

def check():
    found = load_checkpoint(folder, run_id="r")
    assert not found.notices, found.notices
    assert found.states["step"] == found.step
    assert torch.equal(found.model["w"], tensor(found.step))
    assert torch.equal(found.states["momentum"], tensor(-found.step))
    return found.step

def kill_at(count):
    left = iter(range(count))
    def armed(call):
        def wrapper(*args, **options):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)
        return wrapper
    for name in ("replace", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, name, armed(getattr(os, name)))

save(1)
for again in (1, 0):  # a new step; the same step once more
    count = 0
    while True:
        before = check()
        child = os.fork()
        if not child:
            kill_at(count)
            save(before + again)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert check() in (before, before + again)
        if not killed:
            break
        count += 1
    print("boundaries", count)

unfinished, chance = 0, random.Random(0)
for _ in range(rounds):
    before = check()
    child = os.fork()
    if not child:
        while True:
            before += 1
            save(before)
    time.sleep(chance.uniform(0.001, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert check() >= before
    unfinished += any(folder.glob("*.tmp"))
print("unfinished", unfinished)
save(check() + 1)
print("kept", len(list(folder.iterdir())))
"""


def test_a_kill_at_any_moment_leaves_a_usable_checkpoint(tmp_path):
    """SIGKILL before each system call that matters, then at random moments of a loop of saves."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    new, again, unfinished, kept = (int(line.split()[1]) for line in done.stdout.splitlines())
    assert new >= 10
    assert again >= 10
    assert unfinished >= 1  # some kills did come in the middle of writing
    assert kept == 2
