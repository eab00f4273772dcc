"""A folder of images, one subfolder per class, with or without train/ and test/ above them."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .split import USER_SHARE, held_out, keys
from .suggest import listed, reason
from .table import Table

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
TEST_NAMES = ("test", "val", "valid", "validation")
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def image_folder(
    folder: Path, test: Path | None = None, *, seed: int, size: int | None = None
) -> Table:
    """folder/CLASS/*.png, or folder/train/CLASS and folder/test/CLASS; `test` may lie elsewhere.

    Shapes: uint8 [n, H, W, C], C = 1 if every image is grey, else 3. All images must have one size
    unless `size` is given (each is then resized to size x size pixels, bilinear).
    Without a test part a tenth is held out, each image by its pixels and `seed`.
    Raises: ValueError, one line naming the file.
    """
    if importlib.util.find_spec("PIL") is None:
        raise ValueError(f"{folder}: images need Pillow: pip install pillow")
    if size is not None and size < 1:
        raise ValueError(f"size {size}: a side has 1 pixel at least")
    root = folder
    if (folder / "train").is_dir():
        root = folder / "train"
        inside = (folder / name for name in TEST_NAMES)
        test = test or next((path for path in inside if path.is_dir()), None)
    train_files, train_y, classes = _listing(root, None)
    files = list(train_files)
    test_y = None
    if test is not None:
        test_files, test_y, _ = _listing(test, classes)
        files += test_files
    pixels = stack(((str(path), open_image(path)) for path in files), size)
    train_x, test_x = pixels[: len(train_files)], pixels[len(train_files) :]
    if test_y is None:
        held = held_out(keys(train_x), share=USER_SHARE, seed=seed)
        if not held.any() or held.all():
            raise ValueError(
                f"{folder}: no good tenth of {len(held)} images to hold out (seed {seed}): "
                "give a test folder"
            )
        test_x, test_y = train_x[held], train_y[held]
        train_x, train_y = train_x[~held], train_y[~held]
    return Table(
        name=folder.resolve().name,
        kind="image",
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        classes=classes,
        source=str(folder),
        licence="the user's own",
    )


def _listing(
    root: Path, known: tuple[str, ...] | None
) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """Files by class and name, their labels, the classes; `known` are the training classes."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = known or tuple(p.name for p in folders)
    if known is None and len(classes) < 2:
        raise ValueError(
            f"{root}: {len(classes)} subfolders ({listed(classes)}): "
            "put the images of each class into a folder of their own, two classes at least"
        )
    files: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        if folder.name not in classes:
            raise ValueError(
                f"{folder}: class '{folder.name}' does not occur in training, "
                f"where there are {listed(classes)}"
            )
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        found = [p for p in found if not p.name.startswith(".")]
        if not found:
            raise ValueError(f"{folder}: no image (of {listed(SUFFIXES)}) in it")
        files += found
        labels += [classes.index(folder.name)] * len(found)
    if not files:
        raise ValueError(f"{root}: no folder of images in it")
    return files, np.array(labels, dtype=np.int64), classes


def stack(named: Iterable[tuple[str, Any]], size: int | None = None) -> np.ndarray:
    """Pillow images with their names as uint8 [n, H, W, C]: C = 1 if all are grey, else 3.

    Raises: ValueError naming the first image whose size or mode does not fit.
    """
    from PIL import Image

    names, images = zip(*named, strict=True)
    for name, image in zip(names, images, strict=True):
        if image.mode not in GREY + COLOUR:
            raise ValueError(f"{name} has mode {image.mode}: give 8 bits a channel, grey or colour")
        if size is None and image.size != images[0].size:
            raise ValueError(
                f"{name} is {image.width}x{image.height} pixels, {names[0]} is "
                f"{images[0].width}x{images[0].height}: bring all to one size"
            )
    mode = "L" if all(image.mode in GREY for image in images) else "RGB"
    images = [image.convert(mode) for image in images]
    if size is not None:
        images = [image.resize((size, size), Image.Resampling.BILINEAR) for image in images]
    pixels = np.stack([np.asarray(image) for image in images])
    return pixels[..., None] if mode == "L" else pixels


def open_image(path: Path) -> Any:
    """The decoded image. Raises: ValueError when it cannot be read whole."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.load()
                image = file.copy()
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ValueError(f"{path}: not a readable image ({reason(error)})") from None
    return image
