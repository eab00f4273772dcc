"""Tiny decoders of three makers, a tokenizer without a hub, and the formulas in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steelyard.models import Task, build
from steelyard.objectives import Pair, Tokens, encode

VOCABULARY = 24


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads are slower
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def new_tokenizer() -> Callable[..., Any]:
    """`new_tokenizer(begins=False)`: words a to t; `begins`: texts start with <s>, as Llama's."""
    transformers = pytest.importorskip("transformers")
    import tokenizers

    def make(*, begins: bool = False, **options: Any) -> Any:
        words = ["<s>", "</s>", "<unk>", *"abcdefghijklmnopqrst"]
        table = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
        made = tokenizers.Tokenizer(table)
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        if begins:
            made.post_processor = tokenizers.processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 0)]
            )
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | options
        return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)

    return make


@pytest.fixture(scope="session")
def tokenizer(new_tokenizer):
    return new_tokenizer()


@pytest.fixture(scope="session")
def new_model() -> Callable[..., torch.nn.Module]:
    """`new_model("own" | "gpt2" | "llama", seed=0, dropout=0.0, layers=2)`, in float64."""

    def make(kind="own", *, seed=0, dropout=0.0, layers=2, dtype=torch.float64, spread=20.0):
        if kind == "own":
            task = Task(kind="language", shape=(16,), vocabulary=VOCABULARY)
            model = build("gpt", task, seed=seed, layers=layers, width=8, heads=2)
        else:
            model = _hugging_face(kind, seed, dropout, layers)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # initial weights are so small that all tokens look alike
                parameter.data *= spread
        return model.to(dtype)

    return make


def _hugging_face(kind: str, seed: int, dropout: float, layers: int):
    transformers = pytest.importorskip("transformers")
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "gpt2":
            rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
            config = transformers.GPT2Config(
                n_layer=layers, n_head=2, n_embd=8, vocab_size=VOCABULARY, n_positions=16,
                **rates, **special,
            )  # fmt: skip
            return transformers.GPT2LMHeadModel(config)
        config = transformers.LlamaConfig(
            num_hidden_layers=layers, num_attention_heads=2, hidden_size=8, intermediate_size=16,
            vocab_size=VOCABULARY, max_position_embeddings=16, attention_dropout=dropout, **special,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def moved() -> Callable[..., torch.nn.Module]:
    """`moved(model)`: the same model after some unlearning, so that p is not p0."""

    def move(model: torch.nn.Module, *, by: float = 0.3, seed: int = 7) -> torch.nn.Module:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p += by * p.abs().mean() * torch.randn(p.shape, generator=draw).to(p.dtype)
        return model

    return move


FORGET = [
    {"input": "a b c", "output": "d e f"},
    {"input": "g", "output": "h"},
    {"input": "i j", "output": "k l m n o"},
]
INSTEAD = [
    {"input": "a b c", "output": "p"},
    {"input": "g", "output": "q r s"},
    {"input": "i j", "output": "t a"},
]


@pytest.fixture(scope="session")
def forget(tokenizer) -> Tokens:
    """Three rows of 7, 3 and 8 tokens: answers of 4, 2 and 6 with their end."""
    return encode(tokenizer, FORGET, length=12)


@pytest.fixture(scope="session")
def pair(tokenizer, forget) -> Pair:
    return Pair(encode(tokenizer, INSTEAD, length=12), forget)


@pytest.fixture(scope="session")
def padded() -> Callable[..., Any]:
    """`padded(tokens_or_pair, by)`: more padding on the right, of ids that mean something."""

    def pad(tokens: Any, by: int) -> Any:
        if isinstance(tokens, Pair):
            return Pair(pad(tokens.chosen, by), pad(tokens.rejected, by + 1))
        wide = (0, by)
        return Tokens(
            torch.nn.functional.pad(tokens.input_ids, wide, value=5),
            torch.nn.functional.pad(tokens.labels, wide, value=-100),
            torch.nn.functional.pad(tokens.attention_mask, wide),
        )

    return pad


@pytest.fixture(scope="session")
def slow() -> SimpleNamespace:
    """The objectives one row at a time, unpadded, token by token, as their formulas say it."""
    return SimpleNamespace(**{f.__name__: f for f in SLOW}, spelled=spelled)


def spelled(model, tokens) -> list[list[tuple[torch.Tensor, int]]]:
    """For every row, its answer's tokens: (logits that predict it, the token)."""
    rows = []
    for ids, labels, mask in zip(
        tokens.input_ids, tokens.labels, tokens.attention_mask, strict=True
    ):
        size = int(mask.sum())
        output = model(ids[:size][None])
        z = output[0] if isinstance(output, torch.Tensor) else output.logits[0]
        rows.append([(z[t - 1], int(labels[t])) for t in range(1, size) if labels[t] != -100])
    return rows


def log_p(z, v):
    return z[v] - z.exp().sum().log()


def mean(values):
    return sum(values) / len(values)


def ga(model, p0, tokens):
    return mean([mean([log_p(z, y) for z, y in row]) for row in spelled(model, tokens)])


def ce(model, p0, tokens):
    return -ga(model, p0, tokens)


def kl(model, p0, tokens):
    rows = []
    for row, row0 in zip(spelled(model, tokens), spelled(p0, tokens), strict=True):
        total = 0.0
        for (z, _), (z0, _) in zip(row, row0, strict=True):
            for v in range(VOCABULARY):
                total = total + log_p(z0, v).exp() * (log_p(z0, v) - log_p(z, v))
        rows.append(total / len(row))
    return mean(rows)


def answer_log_p(model, tokens):
    return [sum(log_p(z, y) for z, y in row) for row in spelled(model, tokens)]


def minus_log_sigmoid(x):
    return (1 + (-x).exp()).log()


def npo(model, p0, tokens, beta=0.1):
    rows = zip(answer_log_p(model, tokens), answer_log_p(p0, tokens), strict=True)
    return mean([2 / beta * minus_log_sigmoid(-beta * (new - old)) for new, old in rows])


def simnpo(model, p0, tokens, beta=4.5):
    rows = spelled(model, tokens)
    per_token = [-mean([log_p(z, y) for z, y in row]) for row in rows]
    return mean([2 / beta * minus_log_sigmoid(beta * one) for one in per_token])


def dpo(model, p0, pair, beta=0.1):
    rows = []
    for i in range(len(pair)):
        one = pair.rows(slice(i, i + 1))
        good = answer_log_p(model, one.chosen)[0] - answer_log_p(p0, one.chosen)[0]
        bad = answer_log_p(model, one.rejected)[0] - answer_log_p(p0, one.rejected)[0]
        rows.append(2 / beta * minus_log_sigmoid(beta * (good - bad)))
    return mean(rows)


def undial(model, p0, tokens, kappa=10.0):
    rows = []
    for row, row0 in zip(spelled(model, tokens), spelled(p0, tokens), strict=True):
        total = 0.0
        for (z, y), (z0, _) in zip(row, row0, strict=True):
            lowered = [z0[v] - kappa * (v == y) for v in range(VOCABULARY)]
            norm = sum(math.exp(v) for v in lowered)
            for v in range(VOCABULARY):
                total = total - math.exp(lowered[v]) / norm * log_p(z, v)
        rows.append(total / len(row))
    return mean(rows)


def ceu(model, p0, tokens):
    rows = []
    for row in spelled(model, tokens):
        total = 0.0
        for z, y in row[1:]:
            others = [v for v in range(VOCABULARY) if v != y]
            norm = sum(math.exp(z[v].item()) for v in others)
            for v in others:
                total = total - math.exp(z[v].item()) / norm * log_p(z, v)
        rows.append(total / (len(row) - 1))
    return mean(rows)


def wga(model, p0, tokens, q=1.0):
    rows = spelled(model, tokens)
    return mean(
        [mean([math.exp(log_p(z, y).item()) ** q * log_p(z, y) for z, y in row]) for row in rows]
    )


def satimp(model, p0, tokens):
    rows = []
    for row in spelled(model, tokens):
        p = [math.exp(log_p(z, y).item()) for z, y in row]
        weights = [one**5 * (1 - one) for one in p]
        rows.append(mean([w * log_p(z, y) for w, (z, y) in zip(weights, row, strict=True)]))
    return mean(rows)


def pdu(model, p0, tokens):
    rows = spelled(model, tokens)
    return mean([mean([(z.max() - z.sum() / VOCABULARY) ** 2 for z, _ in row]) for row in rows])


SLOW = (ga, ce, kl, npo, simnpo, dpo, undial, ceu, wga, satimp, pdu)
