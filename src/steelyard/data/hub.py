"""Data sets of the Hugging Face hub: `owner/name` or `owner/name:configuration` (`hf` extra)."""

from __future__ import annotations

import dataclasses
import http.client
import importlib.util
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from .columns import LABEL_NAMES, Columns, to_table
from .entries import hub_cache
from .images import stack
from .labels import encode
from .split import USER_SHARE, held_out, keys
from .suggest import did_you_mean, listed, reason
from .table import Table

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
IMAGE_NAMES = ("image", "img")
TIMEOUT = 5.0  # seconds until the hub counts as unreachable


def reachable(timeout: float = TIMEOUT) -> bool:
    """Whether the hub answers at all; known within `timeout` seconds, name look-up included."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=timeout):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # any answer is an answer
        except (OSError, http.client.HTTPException, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def fetch(name: str) -> Mapping[str, Any]:
    """The splits of `owner/name[:configuration]`, from the hub or from its cache.

    Raises: ValueError, one line: no `datasets` library, hub out of reach, no such data set.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"'{name}' is on the hub, which needs: pip install 'steelyard[hf]'")
    repository, _, configuration = name.partition(":")
    if hub_cache(repository, "data") is None and not reachable():
        raise ValueError(
            f"'{name}' cannot be had: the hub cannot be reached: "
            "check the network, or give a local file"
        )
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        found = load_dataset(repository, configuration or None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"'{name}' cannot be had from the hub: {reason(error)}") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"'{name}' is a stream, not a data set of named splits")
    return {str(split): rows for split, rows in found.items()}


def fetch_model(name: str) -> None:
    """Download a model's configuration, tokenizer and safetensors into the hub's own cache.

    Raises: ValueError, one line.
    """
    from huggingface_hub import errors, snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"])
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise ValueError(f"'{name}' cannot be had from the hub: {reason(error)}") from None


def load_hub(
    name: str,
    *,
    text: str | None = None,
    label: str | None = None,
    seed: int = 0,
    licence: str = "see its page on the hub",
) -> Table:
    """A data set of the hub as a Table. Raises: ValueError, one line."""
    splits = fetch(name)
    return from_splits(name, splits, text=text, label=label, seed=seed, licence=licence)


def from_splits(
    name: str,
    splits: Mapping[str, Any],
    *,
    text: str | None = None,
    label: str | None = None,
    seed: int = 0,
    licence: str = "",
) -> Table:
    """The splits of a `datasets.DatasetDict`: "train", and "test" or else "validation".

    A test split without labels (all -1) is passed over. Without any, rows are held out by content.
    """
    if "train" not in splits:
        raise ValueError(f"'{name}' has no split 'train' (there are {listed(splits)})")
    train = splits["train"]
    label = label or _label_name(train)
    tested = [s for s in ("test", "validation") if s in splits and _labelled(splits[s], label)]
    test = splits[tested[0]] if tested else None
    image = next((c for c in IMAGE_NAMES if c in train.column_names), None)
    if image is None or text is not None:
        columns = _columns(name, "train", train)
        held = None if test is None else _columns(name, tested[0], test)
        table = to_table(columns, held, text=text, label=label, seed=seed)
    else:
        table = _images(name, train, test, image, label, seed)
    named = getattr(train.features.get(label), "names", None) if table.classes else None
    fits = named is not None and len(named) == len(table.classes)
    return dataclasses.replace(
        table,
        name=name,
        classes=tuple(named) if named is not None and fits else table.classes,
        source=f"hub {name}",
        licence=licence,
    )


def _images(name: str, train: Any, test: Any, image: str, label: str | None, seed: int) -> Table:
    if label not in train.column_names:
        hint = f" '{label}'{did_you_mean(label, train.column_names)}" if label else ":"
        raise ValueError(
            f"'{name}' has no label column{hint} there are {listed(train.column_names)}, "
            "name it with --label COLUMN"
        )
    train_y, test_y, classes = encode(
        train[label][:],
        None if test is None else test[label][:],
        where=lambda i: f"{name}, train row {i}",
        where_test=lambda i: f"{name}, test row {i}",
    )
    train_x = _pixels(name, train, image)
    if test is None or test_y is None:
        held = held_out(keys(train_x), share=USER_SHARE, seed=seed)
        test_x, test_y = train_x[held], train_y[held]
        train_x, train_y = train_x[~held], train_y[~held]
    else:
        test_x = _pixels(name, test, image)
    return Table(
        name=name,
        kind="image",
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        classes=classes,
        source=name,
        licence="",
    )


def _pixels(name: str, split: Any, column: str) -> np.ndarray:
    return stack((f"{name}, row {i}", image) for i, image in enumerate(split[column]))


def _columns(name: str, part: str, split: Any) -> Columns:
    cells = {column: split[column][:] for column in split.column_names}
    return Columns(path=f"{name} ({part})", unit="row", cells=cells, places=range(len(split)))


def _label_name(split: Any) -> str | None:
    """The usual names, else the only column whose feature names its classes."""
    named = [c for c, feature in split.features.items() if getattr(feature, "names", None)]
    usual = [c for c in LABEL_NAMES if c in split.column_names]
    return usual[0] if usual else named[0] if len(named) == 1 else None


def _labelled(split: Any, label: str | None) -> bool:
    """Whether the labels are there: published test sets may hide them as -1."""
    return label not in split.column_names or any(value != -1 for value in split[label][:])
