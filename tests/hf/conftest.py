from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steelyard.hf.sources import quiet
from steelyard.models import Task

WORDS = ["good", "bad", "film", "a", "very", "plot", "dull", "fine"]
D, LAYERS, V = 16, 2, 12  # width, layers, vocabulary of the tiny models
SIZES = {
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def tiny_tokenizer(*, pad: bool) -> Any:
    """A word-level tokenizer trained here; without a padding token, as Llama's and GPT-2's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[EOS]", "[MORE]"]
    words.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=special))
    padding = {"pad_token": "[PAD]"} if pad else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]", **padding
    )


def tiny_model(family: str) -> Any:
    import transformers as t

    text = {**SIZES, "vocab_size": V, "max_position_embeddings": 8, "pad_token_id": 0}
    ends = {"bos_token_id": 2, "eos_token_id": 2}
    with quiet():
        if family == "bert":
            return t.BertForSequenceClassification(t.BertConfig(**text))
        if family == "llama":
            return t.LlamaForCausalLM(t.LlamaConfig(**text, **ends, tie_word_embeddings=True))
        if family == "gpt2":
            gpt2 = {"n_embd": D, "n_layer": LAYERS, "n_head": 2, "n_positions": 8, "n_inner": 32}
            return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=V, **gpt2, **ends))
        assert family == "vit"
        vit = t.ViTConfig(**SIZES, image_size=16, patch_size=4)
        return t.ViTForImageClassification(vit)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> dict[str, str]:
    """Family -> a folder with a tiny random model of it, and its tokenizer."""
    folders = {}
    for family in ("bert", "llama", "gpt2", "vit"):
        torch.manual_seed(0)
        folders[family] = str(tmp_path_factory.mktemp(family))
        with quiet():
            tiny_model(family).save_pretrained(folders[family])
            if family != "vit":
                tiny_tokenizer(pad=family == "bert").save_pretrained(folders[family])
    return folders


@pytest.fixture
def copy(folder: dict[str, str], tmp_path: Path) -> Path:
    """A folder of the tiny BERT that a test may spoil."""
    for file in Path(folder["bert"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def tokenizer() -> Callable[..., Any]:
    """`tokenizer(pad=True)`: a tokenizer of twelve words."""
    return tiny_tokenizer


@pytest.fixture
def batch() -> Callable[..., torch.Tensor]:
    """`batch(task, n)`: the same n random samples each time; the first text is padded."""

    def draw(task: Task, n: int = 3) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        if task.kind == "image":
            return torch.randn(n, 1, 12, 12, generator=generator)
        tokens = torch.randint(4, V, (n, 8), generator=generator)
        if task.kind == "text":
            tokens[0, 5:] = 0
        return tokens

    return draw


@pytest.fixture
def trainable() -> Callable[[torch.nn.Module], int]:
    """`trainable(module)`: how many of its numbers are trained."""
    return lambda module: sum(p.numel() for p in module.parameters() if p.requires_grad)
