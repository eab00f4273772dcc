"""What the tests of interrupted runs compare; small texts, and tiny pretrained models."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steelyard.runs.events import read_events


@pytest.fixture
def outcome_of() -> Callable[[Path], dict[str, object]]:
    """`outcome_of(run)`: all of a finished run that must not depend on interruptions."""
    return _outcome


def _outcome(run: Path) -> dict[str, object]:
    result = json.loads((run / "result.json").read_text())
    clock = ("seconds", "samples_per_s", "time")
    logged = [
        {name: value for name, value in event.items() if name not in clock}
        for event in read_events(run / "events.jsonl")
        if event["kind"] in ("train", "eval")
    ]
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "ledger": (run / "ledger.json").read_text(),
        "result": {name: value for name, value in result.items() if name not in clock},
        "logged": logged,
    }


@pytest.fixture
def reviews(tmp_path) -> Path:
    """A CSV of 120 labelled texts."""
    words = {0: "bad dull plot", 1: "good fine film"}
    rows = [f"{words[i % 2]} {i},{i % 2}" for i in range(120)]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return tmp_path / "reviews.csv"


@pytest.fixture
def pretrained(tmp_path):
    """`pretrained("bert")`: a folder with a tiny random model of that family."""
    transformers = pytest.importorskip("transformers")
    from steelyard.hf.sources import quiet

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size |= {"intermediate_size": 32}

    def make(family: str) -> Path:
        torch.manual_seed(0)
        if family == "bert":
            config = transformers.BertConfig(**size, vocab_size=9, max_position_embeddings=32)
            model = transformers.BertForSequenceClassification(config)
        elif family == "vit":
            config = transformers.ViTConfig(**size, image_size=16, patch_size=4)
            model = transformers.ViTForImageClassification(config)
        else:
            layers = {"hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
            config = transformers.ResNetConfig(num_channels=1, embedding_size=8, **layers)
            model = transformers.ResNetForImageClassification(config)
        with quiet():
            model.save_pretrained(tmp_path / family)
            if family == "bert":
                _tokenizer(transformers).save_pretrained(tmp_path / family)
        return tmp_path / family

    return make


def _tokenizer(transformers):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]", "[EOS]"])
    words.train_from_iterator([["good", "bad", "film", "plot", "dull", "fine"]], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]", pad_token="[PAD]"
    )


@pytest.fixture(scope="session")
def memorised():
    """A tiny language model that knows ten answers to forget and ten to retain by heart:
    (function that returns a fresh copy of it, tokenizer, forget rows, retain rows)."""
    transformers = pytest.importorskip("transformers")
    from steelyard.hf.sources import quiet
    from steelyard.objectives import CE, encode

    tokenizer = _letters(transformers)
    forget, retain = (
        [
            {"id": f"{name}{i}", "input": f"{name} {i}?", "output": f" {7919 * (i + k) % 9973}"}
            for i in range(10)
        ]
        for k, name in ((3, "code"), (40, "name"))
    )
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96, "vocab_size": 128}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends, **drops))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        tokens = encode(tokenizer, forget + retain, length=48)
        for _ in range(200):
            optimizer.zero_grad()
            loss = CE()(model, tokens)
            loss.backward()
            optimizer.step()
    assert loss.item() < 0.05

    return lambda: copy.deepcopy(model), tokenizer, forget, retain


def _letters(transformers):
    """A tokenizer with one token for each character, and an end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {"<end>": 0} | {chr(code): code - 31 for code in range(32, 127)}
    made = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token="<end>", model_max_length=96
    )
