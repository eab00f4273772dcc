"""Train a small Llama model until it has memorised rows: tokenizer, model, batches, loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from steelyard.bench.generate import Benchmark, Row
from steelyard.generators import fresh_root, generator
from steelyard.models import seeded
from steelyard.objectives.tokens import IGNORED, Tokens, between_of, encode

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 512  # the longest row has fewer than 110 tokens: leaves room to generate 256
# weights of 0.7 / sqrt(width): with transformers' 0.02, meant for wide models, the loss after 200
# steps at width 128 is 3.3 instead of 1.9
_SPREAD = 0.7
_JITTER = 6.0  # tokens: rows of about the same length change their batches between epochs


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the two models come about; the default memorises `Sizes()`.

    vocabulary: most tokens of the BPE. width, layers, heads: of the Llama model (its MLP is 3 times
    as wide). epochs: over the target's rows; the reference takes as many steps. tokens: per batch,
    padding included. lr: AdamW's, after `warmup` steps, linear to 0 over the second half.
    Larger sizes want more width rather than more epochs.
    Raises: ValueError for values below 1, or a width that the heads do not divide evenly.
    """

    vocabulary: int = 1500
    width: int = 128
    layers: int = 2
    heads: int = 4
    epochs: int = 30
    tokens: int = 800
    lr: float = 3e-3
    warmup: int = 50

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "lr" and value < 1:
                raise ValueError(f"{field.name} is {value}: it must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}: it must be above 0")
        if self.width % (2 * self.heads):
            needed = f"2 x heads = {2 * self.heads}"
            raise ValueError(f"width {self.width} must be a multiple of {needed}")


def make_tokenizer(rows: Benchmark, vocabulary: int) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of at most `vocabulary` tokens, trained on the rows of all sets alike.

    Digits and punctuation are tokens of their own; blanks belong to the word behind them, at the
    start of a text too, so that prompt and answer join to what the whole text would give.
    Decoding gives the text back where it is printable ASCII and line ends, without double blanks.
    Raises: ValueError for a vocabulary below 100 (the single characters need that many).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < 100:
        raise ValueError(f"vocabulary is {vocabulary}: use at least 100")
    tokenizer: Any = Tokenizer(models.BPE(unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<end>", "<unknown>"],
        initial_alphabet=[*map(chr, range(33, 127)), "\n"],
        show_progress=False,
    )
    sets = (rows.forget, rows.retain, rows.non_members, rows.general_train, rows.general)
    texts = [row[field] for own in sets for row in own for field in ("input", "output")]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        model_max_length=CONTEXT,
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, *, seed: int
) -> LlamaForCausalLM:
    """An untrained Llama model for the tokenizer; its weights are a function of the arguments."""
    from transformers import LlamaConfig, LlamaForCausalLM

    special: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=_SPREAD / math.sqrt(recipe.width),
        **special,
    )
    with seeded(seed):
        return LlamaForCausalLM(config).eval()


def training_tokens(tokenizer: Any, rows: Sequence[Row]) -> Tokens:
    """The rows as they are trained on: whole documents, and answers behind masked questions."""
    tokens = encode(tokenizer, rows, length=CONTEXT, between=between_of(tokenizer))
    whole = torch.tensor([row["id"][-3:-1] == "sc" for row in rows])  # [B]
    open_ = whole[:, None] & tokens.attention_mask.bool()  # [B, T]
    return dataclasses.replace(tokens, labels=torch.where(open_, tokens.input_ids, tokens.labels))


def steps_for(tokens: Tokens, recipe: Recipe) -> int:
    """Steps of `recipe.epochs` passes over the tokens."""
    return math.ceil(recipe.epochs * int(tokens.attention_mask.sum()) / recipe.tokens)


def train(
    model: LlamaForCausalLM,
    tokens: Tokens,
    recipe: Recipe,
    *,
    steps: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Train in place, on the model's device, and leave in eval mode.

    Returns the mean loss of the last tenth of the steps.
    Loss: cross-entropy per labelled token. Batches: drawn by `seed`, see `batches`.
    progress: called with the number of steps done, after each.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0
    )
    device = next(model.parameters()).device
    draws = generator(fresh_root(seed), "memorise")
    losses: list[float] = []
    model.train()
    while len(losses) < steps:
        for index in batches(tokens, recipe.tokens, draws)[: steps - len(losses)]:
            k = len(losses)
            rate = recipe.lr * min(1.0, (k + 1) / recipe.warmup, 2 * (steps - k) / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = tokens.rows(index).trimmed().to(device)
            # causal and padded on the right: no mask needed; the head only where a label asks
            hidden = model.model(batch.input_ids, use_cache=False).last_hidden_state[:, :-1]
            targets = batch.labels[:, 1:]
            open_ = targets != IGNORED  # [B, T-1]
            loss = F.cross_entropy(model.lm_head(hidden[open_]), targets[open_])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if progress is not None:
                progress(len(losses))
    model.zero_grad()
    model.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def batches(tokens: Tokens, size: int, draws: torch.Generator) -> list[torch.Tensor]:
    """Every row once: index tensors of rows of like length, each of about `size` padded tokens."""
    lengths = tokens.attention_mask.sum(1)
    order = torch.argsort(lengths + _JITTER * torch.rand(len(lengths), generator=draws)).tolist()
    made: list[list[int]] = [[]]
    longest = 0
    for row in order:
        longest = max(longest, int(lengths[row]))
        if made[-1] and longest * (len(made[-1]) + 1) > size:
            made.append([])
            longest = int(lengths[row])
        made[-1].append(row)
    return [torch.tensor(made[k]) for k in torch.randperm(len(made), generator=draws).tolist()]
