"""Data sets of the hub, on stand-ins made by the `datasets` library itself."""

from __future__ import annotations

import time

import numpy as np
import pytest

from steelyard.data import hub, load
from steelyard.data.hub import from_splits

datasets = pytest.importorskip("datasets", reason="the hub needs the hf extra")
SIDES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
)


def _texts(labels: list[int], word: str = "t"):
    texts = [f"{word}{i}" for i in range(len(labels))]
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=SIDES)


def test_text_with_named_classes() -> None:
    table = from_splits("o/n", {"train": _texts([0, 1, 1]), "test": _texts([1], "u")})
    assert table.name == "o/n"
    assert table.source == "hub o/n"
    assert table.classes == ("neg", "pos")
    assert table.train_x == ["t0", "t1", "t2"]
    np.testing.assert_array_equal(table.train_y, [0, 1, 1])
    np.testing.assert_array_equal(table.test_y, [1])


def test_a_test_split_without_labels_is_passed_over() -> None:
    hidden = _texts([-1, -1], "h")
    splits = {"train": _texts([0, 1]), "test": hidden, "validation": _texts([1], "v")}
    table = from_splits("o/n", splits)
    assert table.test_x == ["v0"]
    alone = from_splits("o/n", {"train": _texts([0, 1] * 40), "test": hidden})
    assert alone.n + alone.n_test == 80


def test_images() -> None:
    pytest.importorskip("PIL", reason="images need Pillow")
    pixels = np.random.default_rng(0).integers(0, 256, size=(60, 4, 5, 3), dtype=np.uint8)
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    split = datasets.Dataset.from_dict(
        {"img": list(pixels), "kind": [i % 3 for i in range(60)]}, features=features
    )
    table = from_splits("o/n", {"train": split, "test": split})
    assert table.kind == "image"
    assert table.classes == ("a", "b", "c")
    np.testing.assert_array_equal(table.train_x, pixels)
    alone = from_splits("o/n", {"train": split})
    assert alone.n + alone.n_test == 60
    with pytest.raises(ValueError, match="no label column 'kin': did you mean 'kind'"):
        from_splits("o/n", {"train": split}, label="kin")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"no split 'train' \(there are 'test'\)"):
        from_splits("o/n", {"test": _texts([0, 1])})
    plain = datasets.Dataset.from_dict({"review": ["a", "b"], "label": [0, 1]})
    with pytest.raises(ValueError, match="neither a text column nor numbers among 'review'"):
        from_splits("o/n", {"train": plain})
    assert from_splits("o/n", {"train": plain, "test": plain}, text="review").n == 2


def test_without_a_network_it_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(hub, "hub_cache", lambda name, what: None)
    start = time.monotonic()
    with pytest.raises(ValueError, match="'owner/name' cannot be had: the hub cannot be reached"):
        load("owner/name")
    assert time.monotonic() - start < 2


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'steelyard\[hf\]'"):
        load("hub:owner/name")


def test_what_the_library_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise ValueError("BuilderConfig 'x' not found.\nAvailable: ['y']")

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(ValueError, match=r"'owner/name:x' cannot be had .*BuilderConfig") as error:
        load("owner/name:x")
    assert "\n" not in str(error.value)
