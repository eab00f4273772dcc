from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from steelyard.hf.models import load_hf
from steelyard.models import Task

TEXT = Task(kind="text", classes=3, shape=(8,))
LANGUAGE = Task(kind="language", shape=(8,))
IMAGE = Task(kind="image", classes=3, shape=(12, 12, 1))
D, LAYERS, V = 16, 2, 12  # width, layers, vocabulary of the tiny models


def lora(projections: int, outputs: int = 2 * D, rank: int = 8) -> int:
    """Size of the updates of `projections` matrices a layer with `outputs` columns in all."""
    return LAYERS * rank * (projections * D + outputs)


BERT_BIASES = D + LAYERS * (3 * D + D + D + 32 + D + D) + D  # embedding norm, layers, pooler
GPT2_BIASES = LAYERS * (D + 3 * D + D + D + 32 + D) + D
HEAD = 3 * D + 3
COUNTS = [
    ("bert", TEXT, "lora", lora(2) + HEAD),
    ("bert", TEXT, "bias", BERT_BIASES + HEAD),
    ("bert", TEXT, "head", HEAD),
    ("bert", TEXT, "full", None),
    ("llama", TEXT, "lora", lora(2) + 3 * D),  # Llama's head has no bias
    ("llama", TEXT, "head", 3 * D),
    ("llama", TEXT, "full", None),
    ("llama", LANGUAGE, "lora", lora(2)),
    ("llama", LANGUAGE, "head", V * D),
    ("llama", LANGUAGE, "full", None),
    ("gpt2", TEXT, "lora", lora(1, 3 * D) + 3 * D),
    ("gpt2", TEXT, "bias", GPT2_BIASES + 3 * D),
    ("gpt2", TEXT, "head", 3 * D),
    ("gpt2", LANGUAGE, "lora", lora(1, 3 * D)),
    ("gpt2", LANGUAGE, "bias", GPT2_BIASES),
    ("gpt2", LANGUAGE, "full", None),
    ("vit", IMAGE, "lora", lora(2) + HEAD),
    ("vit", IMAGE, "head", HEAD),
]
each_case = pytest.mark.parametrize(("family", "task", "adapter", "count"), COUNTS)


@each_case
def test_trains_what_the_adapter_says_and_gives_logits(
    folder, family, task, adapter, count, batch, trainable
):
    module, words = load_hf(folder[family], task, adapter)
    total = sum(p.numel() for p in module.parameters())
    assert trainable(module) == (total if count is None else count)
    assert (words is None) == (task.kind == "image")
    expected = (3, 8, V) if task.kind == "language" else (3, 3)
    logits = module(batch(task))
    assert logits.shape == expected
    assert logits.dtype == torch.float32
    logits.sum().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_lora_options_and_keys(folder, trainable):
    module, _ = load_hf(folder["bert"], TEXT, "lora", rank=2)
    assert trainable(module) == lora(2, rank=2) + HEAD
    wide, _ = load_hf(folder["bert"], TEXT, "lora", rank=2, targets="all-linear")
    layer = 4 * (D + D) + 2 * (D + 32)
    assert trainable(wide) == 2 * (LAYERS * layer + 2 * D) + HEAD  # 2 D: the pooler
    assert all(key.startswith("hf.") for key in module.state_dict())


def test_lora_starts_at_the_pretrained_model(folder, batch):
    plain, _ = load_hf(folder["llama"], LANGUAGE, "full")
    adapted, _ = load_hf(folder["llama"], LANGUAGE, "lora")
    x = batch(LANGUAGE)
    torch.testing.assert_close(plain(x), adapted(x))


@pytest.mark.parametrize("adapter", ["lora", "head"])
def test_layers_that_the_files_lack_are_trained_too(copy, adapter, trainable):
    weights = load_file(copy / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "pooler" not in key}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    full, _ = load_hf(str(copy), TEXT, adapter)
    names = {name for name, p in full.named_parameters() if p.requires_grad}
    assert sum("pooler" in name for name in names) == 2
    assert trainable(full) == HEAD + D * D + D + (lora(2) if adapter == "lora" else 0)
