"""The manifest of a checkpoint folder: whose it is, and how to tell that it is whole.

manifest.json is one object: format, made_by, run_id, step, aliases (tied name -> saved name), files
(name -> bytes, sha256), and sha256 of all that, as JSON with sorted keys.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from steelyard import __version__
from steelyard.runs.files import sha256_of

FORMAT = 1
MODEL, STATES, MANIFEST = "model.safetensors", "states.pt", "manifest.json"
_SHAPE = {"run_id": str, "step": int, "aliases": dict, "files": dict}


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or none can be used; the message is one line."""


def write_manifest(folder: Path, step: int, run_id: str, aliases: dict[str, str]) -> None:
    """Describe the files that `folder` has by now."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "made_by": f"steelyard {__version__}",
        "run_id": run_id,
        "step": step,
        "aliases": aliases,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            for name in (MODEL, STATES)
        },
    }
    content["sha256"] = _digest(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, itself verified. Raises CheckpointError, worded to follow the folder's name."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"is not a steelyard checkpoint: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"has a truncated or damaged {MANIFEST}") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointError(f"is not a steelyard checkpoint: its {MANIFEST} is another program's")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"has format {manifest['format']!r}; this version reads {FORMAT}")
    if manifest.pop("sha256", None) != _digest(manifest):
        raise CheckpointError(f"was changed: {MANIFEST} differs from its own SHA-256")
    for name, kind in _SHAPE.items():
        if type(found := manifest.get(name)) is not kind:
            raise CheckpointError(f"was changed: {name!r} in {MANIFEST} is {found!r}")
    if f"{manifest['step']:08d}" != folder.stem.removeprefix("step-"):
        raise CheckpointError(f"was renamed: it holds step {manifest['step']}")
    return manifest


def verify_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises CheckpointError unless both files are there, whole and unchanged."""
    for name in (MODEL, STATES):
        path, expected = folder / name, manifest["files"][name]
        if not path.is_file():
            raise CheckpointError(f"lacks {name}")
        size = path.stat().st_size
        if size < expected["bytes"]:
            raise CheckpointError(f"is truncated: {name} has {size} of {expected['bytes']} bytes")
        if size > expected["bytes"] or sha256_of(path) != expected["sha256"]:
            raise CheckpointError(f"was changed: {name} differs from its SHA-256 in {MANIFEST}")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
