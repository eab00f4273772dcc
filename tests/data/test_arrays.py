"""`.npz` archives and idx folders."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from steelyard.data import load
from steelyard.data.arrays import read_idx

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3))
Y = np.arange(50) % 3
IMAGES = RNG.integers(0, 256, size=(50, 6, 7), dtype=np.uint8)


def _npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return str(path)


def test_features_and_images(tmp_path: Path) -> None:
    features = load(_npz(tmp_path / "f.npz", x_train=X, y_train=Y, x_test=X[:6], y_test=Y[:6]))
    assert features.kind == "features"
    np.testing.assert_array_equal(features.train_x, X.astype(np.float32))
    np.testing.assert_array_equal(features.test_y, Y[:6])
    images = load(_npz(tmp_path / "i.npz", x_train=IMAGES, y_train=Y))
    assert images.kind == "image"
    assert images.n + images.n_test == 50
    assert isinstance(images.train_x, np.ndarray)
    assert images.train_x.shape[1:] == (6, 7, 1)


WORDS = np.array(["a", "b", "c"], dtype=object)[Y]
INF = np.where(np.arange(150).reshape(50, 3) == 31, np.inf, X)
BROKEN = {
    "no labels": ({"x_train": X}, "no array 'y_train'; there are 'x_train'"),
    "half a test": ({"x_train": X, "y_train": Y, "x_test": X}, "only one is there"),
    "pickled": ({"x_train": X, "y_train": WORDS}, "not a readable .npz of plain arrays"),
    "inf": ({"x_train": INF, "y_train": Y}, "'x_train' row 10, column 1 is inf"),
    "overflow": ({"x_train": X * 1e300, "y_train": Y}, "'x_train' row 0, column 0 is"),
    "length": ({"x_train": X, "y_train": Y[:9]}, r"'y_train' has shape \[9\]"),
    "float images": ({"x_train": IMAGES / 255, "y_train": Y}, "images are uint8"),
    "channels first": ({"x_train": IMAGES.reshape(25, 2, 6, 7), "y_train": Y[:25]}, "images are"),
    "negative": ({"x_train": X, "y_train": Y - 1}, r"y_train\[0\]: label -1 is negative"),
    "range": ({"x_train": X, "y_train": Y * 2}, r"y_train\[2\]: label 4 is out of range"),
    "complex": ({"x_train": X + 0j, "y_train": Y}, "complex128"),
}


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_broken_archives_are_one_line(tmp_path: Path, case: str) -> None:
    arrays, message = BROKEN[case]
    with pytest.raises(ValueError, match=message) as error:
        load(_npz(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(error.value)


def test_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    whole = Path(_npz(tmp_path / "b.npz", x_train=X, y_train=Y)).read_bytes()
    for content in (b"", b"PK\x03\x04", pickle.dumps([1]), whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz: not a readable"):
            load(str(path))


def _idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def test_a_folder_of_idx_files(tmp_path: Path) -> None:
    labels = Y.astype(np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(labels))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(IMAGES[:9])))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels[:9])))
    table = load(str(tmp_path))
    assert (table.n, table.n_test, table.classes) == (50, 9, ("0", "1", "2"))
    np.testing.assert_array_equal(table.train_x, IMAGES[..., None])
    with pytest.raises(ValueError, match="'label=y' does not apply"):
        load(str(tmp_path), label="y")


def test_broken_idx_files(tmp_path: Path) -> None:
    whole = _idx(IMAGES)
    path = tmp_path / "x"
    for content in (whole[:-1], whole + b"\0", whole[:9]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="header says"):
            read_idx(path)
    path.write_bytes(b"\0\0\x0d\1" + whole)
    with pytest.raises(ValueError, match="not an idx file of bytes: it starts with 00000d01"):
        read_idx(path)
    packed = tmp_path / "x.gz"
    for content in (gzip.compress(whole)[:-20], whole):
        packed.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole gzip file"):
            read_idx(packed)
