from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from steelyard.runs import checkpoint
from steelyard.runs.checkpoint import (
    CheckpointError,
    NoCheckpointError,
    load_checkpoint,
    save_checkpoint,
)

FILES = ("model.safetensors", "states.pt", "manifest.json")


def payload(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    model = {"w": torch.randn(50, 3, generator=generator), "b": torch.randn(3, generator=generator)}
    return {"model": model, "states": {"step": step, "generator": generator.get_state()}}


def save(folder: Path, step: int, run_id: str = "mine", **options) -> Path:
    return save_checkpoint(folder, step, run_id=run_id, **payload(step), **options)


def assert_holds(found, step: int) -> None:
    assert found.step == found.states["step"] == step
    expected = payload(step)
    assert torch.equal(found.states["generator"], expected["states"]["generator"])
    assert found.model.keys() == expected["model"].keys()
    assert all(torch.equal(found.model[name], expected["model"][name]) for name in found.model)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_falls_back(folder: Path, says: str, run_id: str | None = "mine") -> None:
    """Step 2 is refused in one line that has `says`, and step 1 is used."""
    found = load_checkpoint(folder, run_id=run_id)
    assert_holds(found, 1)
    (notice,) = found.notices
    assert "\n" not in notice
    assert says in notice
    assert "step-00000002" in notice
    assert notice.endswith("; using step-00000001 instead")


# --- which checkpoints stay ----------------------------------------------------------------------


def test_the_last_two_are_kept_and_the_newest_is_used(tmp_path):
    for step in (5, 90, 100, 1000):
        assert save(tmp_path, step) == tmp_path / f"step-{step:08d}"
    assert names(tmp_path) == ["step-00000100", "step-00001000"]
    assert_holds(load_checkpoint(tmp_path, run_id="mine"), 1000)
    save(tmp_path, 1001, keep=1)
    assert names(tmp_path) == ["step-00001001"]


def test_the_same_step_can_be_saved_again(tmp_path):
    save(tmp_path, 4)
    save_checkpoint(tmp_path, 4, run_id="mine", model={}, states={"second": 2})
    assert names(tmp_path) == ["step-00000004"]
    assert load_checkpoint(tmp_path).states == {"second": 2}


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path, file):
    (save(tmp_path, 4) / file).write_bytes(b"{")
    save(tmp_path, 4)
    found = load_checkpoint(tmp_path)
    assert_holds(found, 4)
    assert found.notices == []


def test_other_things_in_the_folder_are_not_touched(tmp_path):
    save(tmp_path, 1, run_id="other")
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "step-00000009" / "notes.txt").write_text("mine")
    before = bytes_of(tmp_path)
    for step in (2, 3, 4):
        save(tmp_path, step)
    assert before.items() <= bytes_of(tmp_path).items()
    for step, says in ((1, "belongs to run 'other'"), (9, "is not a checkpoint of this run")):
        with pytest.raises(CheckpointError, match=says):
            save(tmp_path, step)
    assert before.items() <= bytes_of(tmp_path).items()


def test_leftovers_of_a_crash_are_ignored_then_removed(tmp_path):
    shutil.copytree(save(tmp_path, 1), tmp_path / "step-00000002.tmp")
    assert_holds(load_checkpoint(tmp_path), 1)
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def test_a_crash_while_replacing_the_only_checkpoint_loses_nothing(tmp_path):
    save(tmp_path, 1).rename(tmp_path / "step-00000001.old")
    assert_holds(load_checkpoint(tmp_path), 1)
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert_holds(load_checkpoint(tmp_path), 2)


def test_ctrl_c_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    save(tmp_path, 1)
    before = bytes_of(tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert bytes_of(tmp_path) == before


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", [0, 1, 0.5, -1])
def test_a_truncated_file_falls_back_to_the_previous(tmp_path, file, place):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    size = path.stat().st_size
    os.truncate(path, int(size * place) if isinstance(place, float) else place % size)
    assert_falls_back(tmp_path, f"truncated: {file}" if file != FILES[2] else f"damaged {file}")


@pytest.mark.parametrize("file", FILES)
def test_every_changed_byte_is_noticed(tmp_path, file):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    good = path.read_bytes()
    for position in range(0, len(good), len(good) // 40):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        assert_falls_back(tmp_path, "step-00000002")
    path.write_bytes(good + b"\0")
    assert_falls_back(tmp_path, "damaged" if file == FILES[2] else "was changed")


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_falls_back_to_the_previous(tmp_path, file):
    save(tmp_path, 1)
    (save(tmp_path, 2) / file).unlink()
    assert_falls_back(tmp_path, file)


def test_another_runs_checkpoint_is_refused(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2, run_id="other")
    assert_falls_back(tmp_path, "belongs to run 'other', not to 'mine'")
    assert_holds(load_checkpoint(tmp_path), 2)  # no run named: any


def test_a_renamed_checkpoint_is_refused(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000002")
    assert_falls_back(tmp_path, "was renamed: it holds step 1")


def rewrite_manifest(path: Path, **changes) -> None:
    """As someone would who knows the format: all hashes agree."""
    manifest = json.loads((path / FILES[2]).read_bytes())
    del manifest["sha256"]
    for name in FILES[:2]:
        content = (path / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    manifest |= changes
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / FILES[2]).write_text(json.dumps(manifest | {"sha256": digest}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "has format 2; this version reads 1"),
        ({"files": {}}, "cannot be read"),
        ({"files": {"model.safetensors": 1, "states.pt": 2}}, "cannot be read"),
        ({"aliases": {"x": "no such"}}, "cannot be read"),
        ({"aliases": None}, "was changed: 'aliases' in manifest.json is None"),
        ({"step": "2"}, "was changed: 'step' in manifest.json is '2'"),
        ({"run_id": None}, "was changed: 'run_id' in manifest.json is None"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path, changes, says):
    save(tmp_path, 1)
    rewrite_manifest(save(tmp_path, 2), **changes)
    assert_falls_back(tmp_path, says)
    save(tmp_path, 3)  # and it is in nobody's way


class Malice:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_malicious_pickle_is_not_executed(tmp_path, form):
    folder, marker = tmp_path / "checkpoints", tmp_path / "executed"
    save(folder, 1)
    path = save(folder, 2)
    content = {"step": 2, "x": Malice(marker)}
    if form == "pickle":
        (path / "states.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path / "states.pt", _use_new_zipfile_serialization=form == "zip")
    rewrite_manifest(path)
    assert_falls_back(folder, "is unsafe")
    assert not marker.exists()
    if form == "pickle":
        pickle.loads((path / "states.pt").read_bytes())
    else:
        torch.load(path / "states.pt", weights_only=False)
    assert marker.exists()  # the trap itself works


def test_garbage_with_right_hashes_is_refused(tmp_path):
    save(tmp_path, 1)
    for name in FILES[:2]:
        path = save(tmp_path, 2)
        (path / name).write_bytes(b"\x00garbage" * 100)
        rewrite_manifest(path)
        assert_falls_back(tmp_path, "step-00000002")


def test_nothing_usable_says_what_was_found(tmp_path):
    with pytest.raises(NoCheckpointError, match="nothing saved yet; start without --resume"):
        load_checkpoint(tmp_path / "absent")
    (tmp_path / "step-00000003.tmp").mkdir()
    with pytest.raises(NoCheckpointError, match="only 1 unfinished"):
        load_checkpoint(tmp_path)
    save(tmp_path, 1)
    (save(tmp_path, 2) / FILES[0]).unlink()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, run_id="other")
    assert not isinstance(caught.value, NoCheckpointError)
    message = str(caught.value)
    assert "step-00000002 belongs to run 'mine'" in message
    assert "step-00000001 belongs to run 'mine'" in message
    assert "\n" not in message
