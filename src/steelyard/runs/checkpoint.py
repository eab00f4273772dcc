"""Atomic checkpoints: complete or absent, verified before use, and never a pickle.

A checkpoint is a folder `step-00000120` with three files:

    model.safetensors   the model's tensors; tied tensors once
    states.pt           everything else as nested dicts, lists, tensors, numbers and strings
    manifest.json       format, run, step, tied names, size and SHA-256 of both files and of itself

It is written as `step-00000120.tmp`, fsynced and renamed. Where it replaces one of the same step,
that one is first renamed to `step-00000120.old`, which counts as a checkpoint until the new one is
in place: there is no moment without one.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from steelyard.runs.files import (
    explain_no_space,
    explain_write_failure,
    free_bytes,
    fsync_file,
    fsync_folder,
)
from steelyard.runs.manifest import (
    MANIFEST,
    MODEL,
    STATES,
    CheckpointError,
    read_manifest,
    verify_files,
    write_manifest,
)
from steelyard.runs.states import bytes_of, plain, random_states, restore_random_states, untie

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "NoCheckpointError",
    "load_checkpoint",
    "random_states",
    "restore_random_states",
    "save_checkpoint",
]

_FILES = {MODEL, STATES, MANIFEST}
_NAME = re.compile(r"step-(\d{8,})(?:\.old)?")
# What the parsers of JSON, safetensors and torch's restricted pickle raise on malformed input.
_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError),
    *(pickle.UnpicklingError, SafetensorError),
)


class NoCheckpointError(CheckpointError):
    """Nothing complete was ever saved: the run begins at step 0."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint; `notices` has one line for each newer one that was refused."""

    step: int
    run_id: str
    model: dict[str, Tensor]  # on the CPU; tied names share one tensor
    states: dict[str, Any]  # tensors on the CPU
    path: Path
    notices: list[str] = field(default_factory=list)


def save_checkpoint(
    folder: str | Path,
    step: int,
    *,
    run_id: str,
    model: dict[str, Tensor],
    states: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder/step-%08d`; then remove this run's older checkpoints beyond the last `keep`.

    `folder` is the run's `checkpoints` folder. `states` nests dicts (keys: strings or integers),
    lists, tuples, tensors, numbers, strings and None; dict and tuple subclasses become plain.

    Guarantees: killed or failing at any moment, complete checkpoints stay loadable and a half
    written one is never taken for complete; older ones go only when the new one is on the disk.
    Checkpoints of other runs are not touched.

    Raises:
        CheckpointError: no space (says what is needed and what is free), no permission, or
            something that is not of this run has the step's name. Nothing is left behind.
        ValueError: `states` or `model` holds what a checkpoint cannot; names the place.
    """
    folder = Path(folder)
    if step < 0 or keep < 1:
        raise ValueError(f"step={step} and keep={keep}: need step >= 0 and keep >= 1")
    final = folder / f"step-{step:08d}"
    temporary, replaced = final.with_suffix(".tmp"), final.with_suffix(".old")
    content = plain(states, "states")
    tensors, aliases = untie(model)
    needed = bytes_of(tensors) + bytes_of(content) + 65_536  # file headers and the manifest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        _refuse_what_is_not_ours(final, run_id)
        if free_bytes(folder) < needed:
            raise CheckpointError(explain_no_space(final, needed))
        temporary.mkdir()
        save_file(tensors, temporary / MODEL)
        with (temporary / STATES).open("wb") as file:
            torch.save(content, file)
        write_manifest(temporary, step, run_id, aliases)
        for name in _FILES:
            fsync_file(temporary / name)
        fsync_folder(temporary)
        if final.exists():
            os.replace(final, replaced)
        os.replace(temporary, final)
        fsync_folder(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(_explain(final, error, needed)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already, unless something failed
    shutil.rmtree(replaced, ignore_errors=True)
    _prune(folder, step, run_id, keep)
    return final


def load_checkpoint(folder: str | Path, *, run_id: str | None = None) -> Checkpoint:
    """The newest usable checkpoint in `folder`; the refused ones are named in its `notices`.

    Refused: truncated or changed files (size and SHA-256), another format, another run than
    `run_id` (None takes any), anything but tensors, numbers and strings in `states.pt`.

    Guarantees: nothing in the files is executed (safetensors; torch.load with weights_only=True).

    Raises:
        NoCheckpointError: nothing complete was ever saved here; a resumed run begins at step 0.
        CheckpointError: none is usable; says what was found.
    """
    folder = Path(folder)
    refused: list[str] = []
    for path in sorted(_checkpoints(folder), key=_newness, reverse=True):
        try:
            checkpoint = _read(path, run_id)
        except CheckpointError as error:
            refused.append(f"{path.name} {error}")
            continue
        checkpoint.notices.extend(f"{reason}; using {path.name} instead" for reason in refused)
        return checkpoint
    if refused:
        raise CheckpointError(f"no usable checkpoint in '{folder}': {'; '.join(refused)}")
    unfinished = len(list(folder.glob("step-*.tmp")))
    found = f"only {unfinished} unfinished" if unfinished else "nothing saved yet"
    raise NoCheckpointError(f"no checkpoint in '{folder}': {found}; start without --resume")


def _checkpoints(folder: Path) -> list[Path]:
    entries = folder.iterdir() if folder.is_dir() else ()
    return [path for path in entries if _NAME.fullmatch(path.name) and path.is_dir()]


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _newness(path: Path) -> tuple[int, bool]:
    return _step_of(path), path.suffix != ".old"


def _read(path: Path, run_id: str | None) -> Checkpoint:
    try:
        manifest = read_manifest(path)
        if run_id is not None and manifest["run_id"] != run_id:
            raise CheckpointError(f"belongs to run '{manifest['run_id']}', not to '{run_id}'")
        verify_files(path, manifest)
        model = load_file(path / MODEL)
        model |= {name: model[kept] for name, kept in manifest["aliases"].items()}
        states = torch.load(path / STATES, map_location="cpu", weights_only=True)
        if not isinstance(states, dict):
            raise CheckpointError(f"holds a {type(states).__name__} as its states, not a dict")
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:  # torch's own message advises to load it unsafely
        raise CheckpointError(f"is unsafe: {STATES} holds more than tensors and numbers") from error
    except _UNREADABLE as error:
        raise CheckpointError(f"cannot be read: {_first_line(error)}") from error
    step, owner = manifest["step"], manifest["run_id"]
    return Checkpoint(step=step, run_id=owner, model=model, states=states, path=path)


def _clear_leftovers(folder: Path) -> None:
    """Undo what a killed save left: unfinished folders, and one that was being replaced."""
    for unfinished in folder.glob("step-*.tmp"):
        shutil.rmtree(unfinished)
    for replaced in folder.glob("step-*.old"):
        if replaced.with_suffix("").exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, replaced.with_suffix(""))


def _refuse_what_is_not_ours(path: Path, run_id: str) -> None:
    """A damaged checkpoint may be replaced; another run's, or anything else, may not."""
    if not path.exists():
        return
    try:
        owner = read_manifest(path)["run_id"] if path.is_dir() else None
    except CheckpointError:
        owner = run_id if {file.name for file in path.iterdir()} <= _FILES else None
    if owner != run_id:
        whose = f"belongs to run '{owner}'" if owner else "is not a checkpoint of this run"
        raise CheckpointError(f"'{path}' {whose}: choose another folder")


def _prune(folder: Path, step: int, run_id: str, keep: int) -> None:
    ours = []
    for path in _checkpoints(folder):
        with contextlib.suppress(CheckpointError):  # damaged: not ours to judge
            if _step_of(path) <= step and read_manifest(path)["run_id"] == run_id:
                ours.append(path)
    for path in sorted(ours, key=_newness)[:-keep]:
        with contextlib.suppress(OSError):  # the new checkpoint is safe; the next save tries again
            os.replace(path, path.with_suffix(".tmp"))  # killed from here on, it is a leftover
            shutil.rmtree(path.with_suffix(".tmp"))


def _explain(path: Path, error: BaseException, needed: int) -> str:
    """One line for what the writers of torch and safetensors make of a failing disk."""
    number = re.search(r"os error (\d+)", str(error))  # safetensors reports it only in words
    cause = OSError(int(number[1]), os.strerror(int(number[1]))) if number else error.__context__
    for candidate in (error, cause):
        if isinstance(candidate, OSError):
            return explain_write_failure(path, candidate, needed)
    return f"cannot write '{path}': {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
