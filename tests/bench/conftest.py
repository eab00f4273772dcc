"""Tiny language models and a byte tokenizer, made here: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.hf.sources import quiet

END = 0


def make_tokenizer(*, end: bool = True) -> Any:
    """One token per byte, and an end token with id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<end>": END, **{letter: k for k, letter in enumerate(letters, start=1)}}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    ends = {"eos_token": "<end>"} if end else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, **ends)


class Lookup(nn.Module):
    """Knows some texts by heart: behind the beginning of one it says how it goes on, else the end.

    certainty: logit of what it says; all else has 0.
    """

    def __init__(self, tokenizer: Any, known: Iterable[tuple[str, str]], certainty: float = 20.0):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))  # says which device it is on
        self.vocabulary, self.certainty = len(tokenizer), certainty
        # a tree of the known texts: (node, token) -> node, and what is said at a node
        self.child: dict[tuple[int, int], int] = {}
        self.says: dict[int, int] = {}
        for prompt, answer in known:
            ids = tokenizer(prompt)["input_ids"]
            start, node = len(ids), 0
            for t, token in enumerate([*ids, *tokenizer(answer)["input_ids"], END]):
                if t >= start:
                    self.says[node] = token
                node = self.child.setdefault((node, token), len(self.child) + 1)

    def forward(self, tokens: Tensor) -> Tensor:
        said = []
        for row in tokens.tolist():
            node = 0
            for token in row:
                node = self.child.get((node, token), -1)
                said.append(self.says.get(node, END))
        index = torch.tensor(said).view(*tokens.shape, 1)
        z = torch.zeros(*tokens.shape, self.vocabulary).scatter_(-1, index, self.certainty)
        return z + 0.0 * self.anchor


def make_model(family: str, *, positions: int = 256, vocabulary: int = 257, seed: int = 0) -> Any:
    """A random causal model with weights so large that its guesses differ clearly."""
    import transformers as t

    ends = {"bos_token_id": END, "eos_token_id": END, "initializer_range": 0.3}
    torch.manual_seed(seed)
    with quiet():
        if family == "gpt2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": positions}
            model = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=vocabulary, **sizes, **ends))
        else:
            assert family == "llama"
            sizes = {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": positions,
            }
            model = t.LlamaForCausalLM(t.LlamaConfig(vocab_size=vocabulary, **sizes, **ends))
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A tokenizer of bytes: 257 tokens."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def endless_tokenizer() -> Any:
    """The same without an end token."""
    return make_tokenizer(end=False)


@pytest.fixture(scope="session")
def knows() -> type[Lookup]:
    """`knows(tokenizer, [(prompt, answer), ...])`: a model that has these by heart."""
    return Lookup


@pytest.fixture(scope="session")
def tiny_lm() -> Callable[..., Any]:
    """`tiny_lm("gpt2")` or "llama": a random model for the byte tokenizer."""
    return make_model
