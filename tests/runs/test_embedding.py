"""Frozen features of texts: computed once, kept, and never those of other data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from steelyard.data import Table
from steelyard.runs import embedding


@pytest.fixture
def texts() -> Table:
    return Table(
        name="owner/reviews",
        kind="text",
        train_x=["good", "very bad", "fine", "no"],
        train_y=np.array([1, 0, 1, 0]),
        test_x=["well"],
        test_y=np.array([1]),
        classes=("negative", "positive"),
        source="here",
        licence="none",
    )


def test_features_are_computed_once_and_kept(texts, tmp_path, monkeypatch):
    asked: list[int] = []

    def encode(found, encoder):
        asked.append(len(found))
        return np.array([[len(text), 1.0] for text in found], dtype=np.float32)

    monkeypatch.setattr(embedding, "_encode", encode)
    tables = [embedding.embedded(texts, "minilm", tmp_path) for _ in range(2)]
    for table in tables:
        assert table.kind == "features"
        assert np.asarray(table.train_x).tolist() == [[4, 1], [8, 1], [4, 1], [2, 1]]
        assert np.asarray(table.test_x).tolist() == [[4, 1]]
        assert table.train_y is texts.train_y
        assert "minilm" in table.source
    assert asked == [4, 1]


def test_features_of_other_data_are_refused(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(
        embedding, "_encode", lambda found, _: np.zeros((len(found), 2), dtype=np.float32)
    )
    embedding.embedded(texts, "minilm", tmp_path)
    fewer = dataclasses.replace(texts, train_x=texts.train_x[:3], train_y=texts.train_y[:3])
    with pytest.raises(ValueError, match="features of other data: delete it"):
        embedding.embedded(fewer, "minilm", tmp_path)


def test_only_labelled_texts_have_features(tiny_table, tmp_path):
    with pytest.raises(ValueError, match="no labelled texts to embed"):
        embedding.embedded(tiny_table, "minilm", tmp_path)
