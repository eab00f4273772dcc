"""Build the Fashion-MNIST extract that the package carries (see src/steelyard/data/embedded.py).

    python tools/vendor_fashion_mnist.py [--source FOLDER] [--out FILE]

The extract is the first 1,200 images of each class of the training set and the first 200 of each
class of the test set, in the published order, so it is balanced and nothing is drawn at random. Its
content is the same on every machine; the compressed bytes may differ between releases of liblzma,
so both hashes are shown. Put the file's sha256 into embedded.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import sys
from pathlib import Path

import numpy as np

from steelyard.data.arrays import IDX_FILES, read_idx
from steelyard.data.embedded import FILE, FORMAT
from steelyard.data.packaged import FASHION_CLASSES

HERE = Path(__file__).resolve().parents[1]


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` rows of every class, ascending."""
    chosen = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def pack(source: Path, *, train: int, test: int) -> bytes:
    """The file's content before compression; `train` and `test` count rows per class."""
    part = {name: read_idx(source / f"{stem}.gz") for name, stem in IDX_FILES.items()}
    kept = first_of_each_class(part["train_y"], train)
    kept_test = first_of_each_class(part["test_y"], test)
    height, width = part["train_x"].shape[1:]
    head = {
        "format": FORMAT,
        "name": "fashion-mnist-small",
        "train": len(kept),
        "test": len(kept_test),
        "height": height,
        "width": width,
        "channels": 1,
        "classes": FASHION_CLASSES,
        "source": f"embedded: the first {train:,} training and {test:,} test images of each class "
        "of Fashion-MNIST",
        "licence": "MIT, Copyright 2017 Zalando SE",
    }
    rows = (part["train_y"][kept], part["test_y"][kept_test])
    images = (part["train_x"][kept], part["test_x"][kept_test])
    return b"".join([json.dumps(head).encode(), b"\n", *(a.tobytes() for a in (*rows, *images))])


def main() -> None:
    """Read the four idx files, write the extract, show its size and hashes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=HERE / "src/steelyard/data" / FILE)
    args = parser.parse_args()
    content = pack(args.source, train=1200, test=200)
    packed = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
    args.out.write_bytes(packed)
    sys.stdout.write(f"{args.out}: {len(packed):,} bytes\n")
    sys.stdout.write(f"sha256 of the file    {hashlib.sha256(packed).hexdigest()}\n")
    sys.stdout.write(f"sha256 of its content {hashlib.sha256(content).hexdigest()}\n")


if __name__ == "__main__":
    main()
