"""Data that comes as arrays: `.npz` files and folders of idx files (the MNIST format)."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .labels import encode
from .split import USER_SHARE, held_out, keys
from .suggest import listed, reason
from .table import Table

IDX_FILES = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file, gzipped or not.

    Raises: ValueError when the header and the length disagree.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}): get it again") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an idx file of bytes: it starts with {raw[:4].hex() or '-'}")
    head = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:head], ">u4").tolist()) if len(raw) >= head else ()
    if len(shape) != raw[3] or len(raw) - head != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{path}: header says {shape}, {max(len(raw) - head, 0)} bytes follow")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder holds the four idx files."""
    return folder.is_dir() and all(_idx(folder, stem) for stem in IDX_FILES.values())


def idx_folder(
    folder: Path, *, name: str, source: str, licence: str, classes: tuple[str, ...] = ()
) -> Table:
    """The four idx files of a folder as one Table; classes are named by number unless given."""
    parts = {}
    for part, stem in IDX_FILES.items():
        path = _idx(folder, stem)
        if path is None:
            raise ValueError(f"{folder}: there is no {stem} and no {stem}.gz")
        parts[part] = read_idx(path)
    highest = int(parts["train_y"].max(initial=0))
    return Table(
        name=name,
        kind="image",
        train_x=parts["train_x"][..., None],
        train_y=parts["train_y"].astype(np.int64),
        test_x=parts["test_x"][..., None],
        test_y=parts["test_y"].astype(np.int64),
        classes=classes or tuple(str(label) for label in range(highest + 1)),
        source=source,
        licence=licence,
    )


def _idx(folder: Path, stem: str) -> Path | None:
    found = (folder / f"{stem}{end}" for end in ("", ".gz"))
    return next((path for path in found if path.is_file()), None)


def npz(path: Path, *, seed: int) -> Table:
    """Arrays x_train, y_train and, if there, x_test, y_test; else a tenth is held out.

    Shapes: x uint8 [n, H, W] or [n, H, W, C] for images, any numeric [n, d] for features; y [n].
    Guarantees: no pickled object is ever read. Raises: ValueError, one line.
    """
    arrays = _open_npz(path)
    for need in ("x_train", "y_train"):
        if need not in arrays:
            raise ValueError(f"{path}: no array '{need}'; there are {listed(arrays) or 'none'}")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise ValueError(f"{path}: 'x_test' and 'y_test' belong together, only one is there")
    kind, train_x = _rows(path, "x_train", arrays["x_train"])
    tested = "x_test" in arrays
    train_y, test_y, classes = encode(
        _labels(path, "y_train", arrays["y_train"], len(train_x)),
        _labels(path, "y_test", arrays["y_test"], None) if tested else None,
        where=lambda i: f"{path}, y_train[{i}]",
        where_test=lambda i: f"{path}, y_test[{i}]",
    )
    if tested and test_y is not None:
        test_x = _rows(path, "x_test", arrays["x_test"])[1]
    else:
        held = held_out(keys(train_x), share=USER_SHARE, seed=seed)
        test_x, test_y = train_x[held], train_y[held]
        train_x, train_y = train_x[~held], train_y[~held]
    return Table(
        name=path.stem,
        kind=kind,
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        classes=classes,
        source=str(path),
        licence="the user's own",
    )


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("one array, not an archive")
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: not a readable .npz of plain arrays ({reason(error)}): "
            "write it with numpy.savez"
        ) from None


def _rows(path: Path, name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        x = x[..., None] if x.ndim == 3 else x
        if x.shape[3] not in (1, 3):
            raise ValueError(
                f"{path}: '{name}' has shape {list(x.shape)}: images are [n, H, W, 1 or 3]"
            )
        return "image", x
    if x.ndim != 2 or x.dtype.kind not in "iufb":
        raise ValueError(
            f"{path}: '{name}' is {x.dtype} {list(x.shape)}: "
            "images are uint8 [n, H, W, C], features numbers [n, d]"
        )
    with np.errstate(over="ignore"):
        features = x.astype(np.float32)
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        raise ValueError(f"{path}: '{name}' row {row}, column {column} is {x[row, column]}")
    return "features", features


def _labels(path: Path, name: str, y: np.ndarray, n: int | None) -> list[object]:
    if y.ndim != 1 or (n is not None and len(y) != n):
        rows = "the rows" if n is None else f"the {n} rows"
        raise ValueError(
            f"{path}: '{name}' has shape {list(y.shape)}: one label for each of {rows}"
        )
    return y.tolist()
