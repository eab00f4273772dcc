"""Files that are either whole or absent: temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: str | Path, data: bytes | str) -> Path:
    """Replace `path` by `data` in one step: a reader sees the old file or the new one, never a mix.

    Text is written as UTF-8. Missing parent folders are made.

    Guarantees: after the return the content survives a power cut (file and folder are fsynced);
    after an error the old file is untouched and no temporary file is left.

    Raises:
        ValueError: one line, when the file cannot be written (no space, no permission, a folder).
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise ValueError(explain_write_failure(path, error, len(content))) from error
    finally:
        if temporary.is_file():  # an error, or Ctrl-C
            temporary.unlink()
    return path


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` (creations, renames) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of `path`, written by someone else's writer, survive a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes free where `path` is or will be."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def explain_no_space(path: Path, needed: int) -> str:
    """One line: which path, how much was needed, how much is free, what to do."""
    return (
        f"no space left to write '{path}': {readable_size(needed)} needed, "
        f"{readable_size(free_bytes(path))} free; free some space or choose another folder"
    )


def explain_write_failure(path: Path, error: OSError, needed: int) -> str:
    """One line for an `OSError` met while writing `needed` bytes at `path`."""
    if error.errno in _NO_SPACE:
        return explain_no_space(path, needed)
    return f"cannot write '{path}': {error.strerror or error}"


def readable_size(size: int) -> str:
    """Bytes in the decimal unit that leaves one to three digits: 1536000 -> '1.5 MB'."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
