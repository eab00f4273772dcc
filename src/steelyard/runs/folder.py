"""A run's folder: made whole or not at all, with its settings; found again for a resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from steelyard.runs.config import TrainConfig
from steelyard.runs.files import (
    explain_no_space,
    explain_write_failure,
    free_bytes,
    write_atomically,
)
from steelyard.runs.states import untie


def free_folder(config: TrainConfig, parent: Path = Path("runs")) -> Path:
    """runs/<data>-<model>-<k> with the first free k."""
    names = f"{Path(config.data).stem}-{Path(config.model).name}"
    stem = "".join(c if c.isalnum() else "-" for c in names)
    k = 1
    while (parent / f"{stem}-{k}").exists():
        k += 1
    return parent / f"{stem}-{k}"


def refuse_existing(out: Path) -> None:
    """Raises ValueError where something is already."""
    if not out.exists():
        return
    what = "the output folder" if out.is_dir() else "the output folder is a file:"
    if not out.is_dir() or any(out.iterdir()):
        on = f", or continue it: --resume {out}" if (out / "config.json").is_file() else ""
        raise ValueError(f"{what} {str(out)!r} exists already: choose another --out{on}")


def refuse_full_disk(out: Path, needed: int) -> None:
    """Raises ValueError where `needed` bytes do not fit."""
    if free_bytes(out) < needed:
        raise ValueError(explain_no_space(out, needed))


@contextmanager
def new_folder(out: Path, begun: Callable[[], bool]) -> Iterator[None]:
    """Make the folder `out`; take it back if the block fails before `begun()` is true.

    Raises ValueError (one line) where it cannot be made.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        if not begun():
            for inside in list(out.iterdir()) if out.is_dir() else []:
                shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
            for folder in made:  # the innermost first
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        if isinstance(error, OSError):
            raise ValueError(explain_write_failure(out, error, 0)) from error
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1, allow_nan=True) + "\n")


def write_weights(path: Path, model: torch.nn.Module) -> None:
    """The model's state as safetensors, tied tensors once, under their first name."""
    write_atomically(path, save(untie(model.state_dict())[0]))


def read_settings(out: Path) -> dict[str, Any]:
    """config.json of the run in `out`. Raises ValueError (one line) where there is no run."""
    path = out / "config.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = f"there is no {path.name} in {str(out)!r}" if out.is_dir() else "no such folder"
        raise ValueError(
            f"nothing to resume in {str(out)!r}: {found}; give the --out folder of a run"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(saved, dict) or not {"run", "plan", "total_steps"} <= saved.keys():
        raise ValueError(f"{str(path)!r} holds no settings of a run: give the --out folder of one")
    return saved
