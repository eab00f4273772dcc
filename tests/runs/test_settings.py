"""Complete settings from what the user gave."""

from __future__ import annotations

import json

import pytest

from steelyard.data import Table
from steelyard.runs import recipes


def test_settings_that_nobody_chose():
    settled = recipes.settle({}, private=True)
    assert settled.config == recipes.DEFAULT
    assert settled.twin == recipes.DEFAULT_BASELINE
    assert recipes.settle({}, private=False).config == recipes.DEFAULT_BASELINE
    chosen = {"batch": 64, "lr": 0.3, "epochs": 2.0}
    twin = recipes.settle(chosen, private=True).twin
    assert (twin.batch, twin.lr, twin.epochs, twin.epsilon) == (64, 0.3, 2.0, None)


def test_a_batch_that_nobody_chose_fits_little_data(features_csv):
    settled = recipes.settle({"data": str(features_csv)}, private=True)
    assert settled.config.batch == settled.table.n // 5
    assert settled.config.delta is None  # from n
    chosen = recipes.settle({"data": str(features_csv), "batch": 100}, private=True)
    assert chosen.config.batch == 100


@pytest.fixture
def texts(tmp_path):
    rows = [json.dumps({"text": f"{i:06d}" * 50, "label": i % 2}) for i in range(300)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows) + "\n")
    return str(tmp_path / "texts.jsonl")


def test_the_data_choose_the_model(texts, features_csv):
    def model(**given: object) -> str:
        return recipes.settle({"steps": 1, **given}, private=True).config.model

    assert model() == "cnn"
    assert model(data=str(features_csv)) == "mlp"
    assert model(data=texts) == "minilm"
    assert model(data=texts, label="none") == "gpt"


def test_a_language_model_s_batch_is_a_part_of_its_chunks(texts):
    options = {"data": texts, "steps": 1, "length": 16}
    settled = recipes.settle({**options, "model": "gpt"}, private=True)
    chunks = settled.table.n * -(-300 // 16)  # 300 bytes a text
    assert settled.config.batch == min(512, chunks // 5)
    pretrained = recipes.settle({**options, "model": "minilm"}, private=True)
    assert pretrained.config.batch == settled.table.n // 5  # one sample a text


def test_a_model_alone_takes_data_that_it_reads(monkeypatch, tiny_table):
    asked: list[str] = []

    def read(config: object) -> Table:
        asked.append(config.data)
        return tiny_table

    monkeypatch.setattr("steelyard.runs.settings.read_table", read)
    for model in ("cnn", "mlp", "gpt", "minilm", "someone/other"):
        recipes.settle({"model": model, "batch": 3}, private=True)
    assert asked == [
        "fashion-mnist-small",
        "fashion-mnist-small",
        "shakespeare",
        "rotten-tomatoes",
        "fashion-mnist-small",
    ]


def test_steps_take_the_place_of_epochs():
    settled = recipes.settle({"steps": 7}, private=True)
    assert (settled.config.steps, settled.config.epochs) == (7, None)
    with pytest.raises(ValueError, match="--epochs 2 and --steps 7"):
        recipes.settle({"steps": 7, "epochs": 2}, private=True)
