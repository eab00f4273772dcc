from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from steelyard.hf.models import load_hf
from steelyard.hf.sources import quiet
from steelyard.models import Task

TEXT = Task(kind="text", classes=3, shape=(8,))
LANGUAGE = Task(kind="language", shape=(8,))
V = 12  # vocabulary of the tiny models

REFUSALS = [
    ("minlm", TEXT, {}, "did you mean 'minilm'"),
    ("./nowhere", TEXT, {}, "folder './nowhere' does not exist"),
    ("bert", TEXT, {"adapter": "lorra"}, "unknown adapter 'lorra': did you mean 'lora'"),
    ("bert", TEXT, {"targets": "mlp"}, "unknown LoRA targets 'mlp'"),
    ("bert", TEXT, {"rank": 0}, "LoRA rank 0"),
    ("llama", TEXT, {"adapter": "bias"}, "llama models have no bias terms: use adapter 'lora'"),
    ("bert", LANGUAGE, {}, "no pretrained language head"),
    ("vit", TEXT, {}, "no tokenizer beside the weights"),
    ("bert", Task(kind="features", classes=2, shape=(3,)), {}, "features data: use 'mlp'"),
    ("bert", Task(kind="text", classes=1, shape=(3,)), {}, "at least 2 classes"),
    ("bert", Task(kind="text", classes=2, shape=(9,)), {}, "texts of 9 tokens .* at most 8"),
]


@pytest.mark.parametrize(("name", "task", "options", "message"), REFUSALS)
def test_refuses_in_one_line(folder, monkeypatch, name, task, options, message):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message) as caught:
        load_hf(folder.get(name, name), task, **options)
    assert "\n" not in str(caught.value)


def spoil_bin(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def spoil_weights(path):
    (path / "model.safetensors").unlink()


def spoil_config(path):
    (path / "config.json").unlink()


def spoil_json(path):
    (path / "config.json").write_text("{")


def spoil_tensors(path):
    (path / "model.safetensors").write_bytes(b"\x08" + bytes(30))


def spoil_adapter(path):
    (path / "adapter_config.json").write_text("{}")


def spoil_tokenizer(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": V - 2}))
    weights = load_file(path / "model.safetensors")
    key = "bert.embeddings.word_embeddings.weight"
    weights[key] = weights[key][: V - 2].clone()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def spoil_width(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))


def spoil_names(path):
    weights = {f"x.{k}": v for k, v in load_file(path / "model.safetensors").items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def spoil_code(path):
    config = json.loads((path / "config.json").read_text())
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (path / "config.json").write_text(json.dumps({**config, **code}))
    (path / "mine.py").write_text("raise SystemExit('ran')")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_bin, "only pickled weights .pytorch_model.bin.*save_pretrained"),
        (spoil_weights, "has no weights: .*safetensors is missing"),
        (spoil_config, "has no config.json"),
        (spoil_json, "cannot load model"),
        (spoil_tensors, "cannot load model"),
        (spoil_adapter, "is a peft adapter: .*merge_and_unload"),
        (spoil_tokenizer, f"the tokenizer has {V} tokens, the model {V - 2}"),
        (spoil_width, "weights and config.json do not fit"),
        (spoil_names, "weights and config.json do not fit"),
        (spoil_code, "cannot load model"),
    ],
)
def test_refuses_a_spoilt_folder_in_one_line(copy, spoil, message):
    spoil(copy)
    with pytest.raises(ValueError, match=message) as caught:
        load_hf(str(copy), TEXT)
    assert "\n" not in str(caught.value)


def test_refuses_a_model_that_reads_the_tokens_to_come(folder, tmp_path, tokenizer):
    import transformers as t

    with quiet():
        config = t.BertConfig.from_pretrained(folder["bert"])
        t.BertLMHeadModel(config).save_pretrained(tmp_path)
        tokenizer(pad=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="bert reads the tokens to come"):
        load_hf(str(tmp_path), LANGUAGE)
