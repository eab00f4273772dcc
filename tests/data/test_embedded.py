"""The embedded extract: what is in it, that it is guarded, and that the tool rebuilds it."""

from __future__ import annotations

import hashlib
import importlib.util
import lzma
from pathlib import Path

import numpy as np
import pytest

import steelyard.data
from steelyard.data import find, load
from steelyard.data.arrays import idx_folder
from steelyard.data.embedded import FILE, SHA256, unpack
from steelyard.data.packaged import FASHION_CLASSES

RAW = (Path(steelyard.data.__file__).parent / FILE).read_bytes()


def test_counts_and_balance() -> None:
    table = load("fashion-mnist-small")
    assert isinstance(table.train_x, np.ndarray)
    assert table.train_x.shape == (12_000, 28, 28, 1)
    assert (table.n, table.n_test) == (12_000, 2_000)
    assert table.train_y is not None
    assert table.test_y is not None
    np.testing.assert_array_equal(np.bincount(table.train_y), [1200] * 10)
    np.testing.assert_array_equal(np.bincount(table.test_y), [200] * 10)
    assert table.classes == FASHION_CLASSES
    # a shirt is where the shirts are: the published labels of the first rows
    np.testing.assert_array_equal(table.train_y[:8], [9, 0, 0, 3, 0, 2, 7, 2])
    assert 72 < table.train_x.mean() < 74  # 72.94 over all 60,000
    assert table.train_x.flags.writeable


def test_size_and_licence_beside_it() -> None:
    assert len(RAW) <= 6_000_000
    licence = (Path(steelyard.data.__file__).parent / "FASHION_MNIST_LICENSE.txt").read_text(
        "utf-8"
    )
    assert "MIT License" in licence
    assert "Zalando" in licence


@pytest.mark.parametrize("where", [0, len(RAW) // 2, len(RAW) - 1])
def test_one_changed_bit_is_refused(where: int) -> None:
    changed = bytearray(RAW)
    changed[where] ^= 1
    with pytest.raises(ValueError, match="is damaged"):
        unpack(bytes(changed), sha256=SHA256)
    with pytest.raises(ValueError, match="is damaged"):
        unpack(RAW[:-1], sha256=SHA256)


def test_another_format_is_refused() -> None:
    content = lzma.compress(b'{"format": "steelyard-images-9"}\n')
    with pytest.raises(ValueError, match="steelyard-images-9"):
        unpack(content, sha256=hashlib.sha256(content).hexdigest())


def _tool():
    path = Path(__file__).parents[2] / "tools" / "vendor_fashion_mnist.py"
    spec = importlib.util.spec_from_file_location("vendor_fashion_mnist", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tool_takes_the_first_of_each_class() -> None:
    labels = np.array([2, 0, 0, 1, 0, 2, 1, 2])
    np.testing.assert_array_equal(_tool().first_of_each_class(labels, 2), [0, 1, 2, 3, 5, 6])


def test_the_tool_rebuilds_the_content() -> None:
    folder = find("fashion-mnist").location
    if folder is None:
        pytest.skip("the full Fashion-MNIST is not installed (dataset-fashion-mnist)")
    assert _tool().pack(folder, train=1200, test=200) == lzma.decompress(RAW)
    whole = idx_folder(folder, name="f", source="", licence="", classes=FASHION_CLASSES)
    small = load("fashion-mnist-small")
    assert isinstance(whole.test_x, np.ndarray)
    rows = {row.tobytes() for row in whole.test_x}
    assert all(row.tobytes() in rows for row in np.asarray(small.test_x))
