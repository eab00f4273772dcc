"""The data set inside the package: an extract of Fashion-MNIST (Xiao et al., arXiv:1708.07747).

12,000 training images (the first 1,200 of each class) and 2,000 test images (the first 200 of each
class of the published test set), 28 x 28 grey, under the MIT licence that lies beside the file.
`tools/vendor_fashion_mnist.py` builds the file.

Layout, xz-compressed: one line of JSON {format, name, train, test, height, width, channels,
classes, source, licence}, then bytes: training labels, test labels, training images, test images.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json

import numpy as np

from .table import Table

FILE = "fashion_mnist_14k.xz"
SHA256 = "de02b8802bd6445aad41f18c8b44ba67dd0fa798340785b15e096eaed451bf31"
FORMAT = "steelyard-images-1"


def fashion_mnist_small() -> Table:
    """The embedded extract. Raises: ValueError when its file is not this release's own."""
    raw = importlib.resources.files("steelyard.data").joinpath(FILE).read_bytes()
    return unpack(raw, sha256=SHA256)


def unpack(raw: bytes, *, sha256: str) -> Table:
    """The Table in a compressed file whose hash must be `sha256`.

    Raises: ValueError when the hash differs (checked before anything is decompressed).
    """
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{FILE} is damaged: sha256 {found[:16]}..., expected {sha256[:16]}...: "
            "install steelyard again"
        )
    try:
        import lzma
    except ImportError:
        raise ValueError(
            "this Python was built without lzma, which the embedded data needs: "
            "install the xz headers (liblzma-dev, xz-devel) and build Python again, or use another"
        ) from None
    head, _, body = lzma.decompress(raw).partition(b"\n")
    about = json.loads(head)
    if about["format"] != FORMAT:
        raise ValueError(f"{FILE} has format '{about['format']}', this release reads '{FORMAT}'")
    train, test = about["train"], about["test"]
    shape = (about["height"], about["width"], about["channels"])
    labels, images = np.split(np.frombuffer(body, np.uint8), [train + test])
    images = images.reshape(train + test, *shape).copy()
    labels = labels.astype(np.int64)
    return Table(
        name=about["name"],
        kind="image",
        train_x=images[:train],
        train_y=labels[:train],
        test_x=images[train:],
        test_y=labels[train:],
        classes=tuple(about["classes"]),
        source=about["source"],
        licence=about["licence"],
    )
