"""Folders of images, one subfolder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steelyard.data import load

Image = pytest.importorskip("PIL.Image", reason="image folders need Pillow")
RNG = np.random.default_rng(0)


def _save(path: Path, *, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = RNG.integers(0, 256, size=(size[1], size[0], *channels), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_train_and_test_folders(tmp_path: Path) -> None:
    saved = {
        name: _save(tmp_path / name)
        for name in ("train/b/1.png", "train/a/2.png", "train/a/1.png", "test/b/1.png")
    }
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    table = load(str(tmp_path))
    assert table.classes == ("a", "b")
    np.testing.assert_array_equal(table.train_y, [0, 0, 1])
    np.testing.assert_array_equal(table.train_x[0], saved["train/a/1.png"])
    np.testing.assert_array_equal(table.train_x[2], saved["train/b/1.png"])
    np.testing.assert_array_equal(table.test_x[0], saved["test/b/1.png"])
    np.testing.assert_array_equal(table.test_y, [1])


def test_classes_at_the_top_hold_out_a_tenth(tmp_path: Path) -> None:
    for i in range(40):
        _save(tmp_path / "ab"[i % 2] / f"{i:02}.png", mode="L")
    table = load(str(tmp_path), seed=1)
    assert table.n + table.n_test == 40
    assert 0 < table.n_test < 15
    assert isinstance(table.train_x, np.ndarray)
    assert table.train_x.shape[1:] == (5, 6, 1)


def test_a_test_folder_elsewhere_and_mixed_modes(tmp_path: Path) -> None:
    for place in ("here/a/1.png", "here/b/1.png", "there/a/1.png"):
        _save(tmp_path / place, mode="L" if "b" in place else "RGBA")
    table = load(str(tmp_path / "here"), test=str(tmp_path / "there"))
    assert isinstance(table.train_x, np.ndarray)
    assert table.train_x.shape == (2, 5, 6, 3)
    assert table.n_test == 1


def test_mixed_sizes_name_the_file_unless_resized(tmp_path: Path) -> None:
    for place in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        _save(tmp_path / place)
    _save(tmp_path / "train/b/2.png", size=(9, 7))
    with pytest.raises(ValueError, match=r"b/2\.png is 9x7 pixels, .*1\.png is 6x5"):
        load(str(tmp_path))
    table = load(str(tmp_path), size=4)
    assert isinstance(table.train_x, np.ndarray)
    assert table.train_x.shape == (3, 4, 4, 3)
    with pytest.raises(ValueError, match="size 0"):
        load(str(tmp_path), size=0)


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 subfolders"):
        load(str(tmp_path))
    _save(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match=r"1 subfolders \('a'\).*two classes at least"):
        load(str(tmp_path))
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="b: no image"):
        load(str(tmp_path))
    whole = (tmp_path / "a" / "1.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2], whole[:8] + b"\0" * 50):
        (tmp_path / "b" / "2.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"2\.png: not a readable image") as error:
            load(str(tmp_path))
        assert "\n" not in str(error.value)
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(tmp_path / "b" / "2.png")
    with pytest.raises(ValueError, match=r"2\.png has mode I;16"):
        load(str(tmp_path))
    (tmp_path / "b" / "2.png").write_bytes(whole)
    with pytest.raises(ValueError, match="no good tenth of 2 images"):
        load(str(tmp_path), seed=0)


def test_a_test_class_that_training_lacks(tmp_path: Path) -> None:
    for place in ("train/a/1.png", "train/b/1.png", "test/c/1.png"):
        _save(tmp_path / place)
    with pytest.raises(ValueError, match="class 'c' does not occur in training"):
        load(str(tmp_path))
