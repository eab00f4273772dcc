"""Greedy generation for many prompts: batches of like prompts, one token per row and step.

    sort rows by (limit, length) -> batches -> prefill, then step until every row ended -> texts

Models that keep keys and values (nearly all causal models of transformers) are padded on the left
and read one new token per step. Without a way to tell them positions, padding would shift their
text: such models (Bart's decoder, Bloom, MPT) get batches of prompts of equal length. Others, also
ours, are padded on the right and read the whole text again each step: slower, and right for every
causal model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from steelyard.bench.scoring import context_length, evaluation
from steelyard.objectives.tokens import accepts, prompt_ids
from steelyard.plans.checks import whole


def greedy(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | Sequence[int] = 256,
    batch: int = 16,
    template: bool = False,
    names: Sequence[str] | None = None,
) -> list[str]:
    """What the model writes behind each prompt, always taking the likeliest token.

    max_new_tokens: for all rows, or one number per row. A row ends earlier at an end token (the
    tokenizer's, or one of the model's generation config), which is not part of the text.
    template: put the prompts into the tokenizer's chat template. names: of the prompts, for errors.
    Guarantees: in the prompts' order; independent of `batch` and of the other prompts, except where
    two tokens are likeliest up to rounding; the model is left as it was found. The texts are what
    the tokens say: no blanks are dropped before punctuation, whatever the tokenizer's settings.
    Raises: ValueError for no prompts, for a limit or batch below 1, for a model whose scores are
    NaN, and naming a prompt without tokens or one that with its new tokens exceeds the context.
    """
    whole("batch", batch, least=1, fix="use 16, say")
    limits = _limits(max_new_tokens, len(prompts))
    rows = [prompt_ids(tokenizer, text, template=template) for text in prompts]
    context = context_length(model)
    for number, (ids, limit) in enumerate(zip(rows, limits, strict=True)):
        name = f"prompt {number}" if names is None else names[number]
        if not ids:
            raise ValueError(f"{name} has no tokens: there is nothing to go on from")
        if context is not None and len(ids) + limit > context:
            raise ValueError(
                f"{name} has {len(ids)} tokens, with {limit} new ones more than the "
                f"model's context of {context}: shorten it or lower max_new_tokens"
            )
    order = sorted(range(len(rows)), key=lambda i: (limits[i], len(rows[i]), i))
    ends = end_tokens(model, tokenizer)
    texts = [""] * len(rows)
    with evaluation(model):
        for index in _batches(model, order, rows, batch):
            written = _complete(model, [rows[i] for i in index], [limits[i] for i in index], ends)
            for i, ids in zip(index, written, strict=True):
                texts[i] = tokenizer.decode(
                    ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
    return texts


def end_tokens(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text: the tokenizer's, and those of the model's generation config."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = stated if isinstance(stated, list | tuple) else [stated]
    return frozenset(i for i in (tokenizer.eos_token_id, *several) if i is not None)


def _batches(
    model: nn.Module, order: list[int], rows: list[list[int]], batch: int
) -> list[list[int]]:
    """`order` in pieces of at most `batch`; of equal lengths where the model takes no positions."""

    def length(i: int) -> int:
        return len(rows[i])

    groups = [order]
    if _cached(model) and not accepts(model, "position_ids"):
        groups = [list(alike) for _, alike in groupby(sorted(order, key=length), length)]
    return [own[start : start + batch] for own in groups for start in range(0, len(own), batch)]


def _complete(
    model: nn.Module, rows: list[list[int]], limits: list[int], ends: frozenset[int]
) -> list[list[int]]:
    """The new ids of each row, without the end token."""
    state, scores = _begin(model, rows)
    written: list[list[int]] = [[] for _ in rows]
    live = list(range(len(rows)))  # rows still writing; scores and state hold these alone
    while True:
        best, ids = scores.max(-1)
        if best.isnan().any():
            raise ValueError("the model's scores are NaN: it has diverged, use an earlier state")
        chosen = ids.tolist()
        keep = []
        for place, (row, token) in enumerate(zip(live, chosen, strict=True)):
            if token in ends:
                continue
            written[row].append(token)
            if len(written[row]) < limits[row]:
                keep.append(place)
        if not keep:
            return written
        if len(keep) < len(live):
            state.select(keep)
        live = [live[place] for place in keep]
        scores = state.step([chosen[place] for place in keep])


def _begin(model: nn.Module, rows: list[list[int]]) -> tuple[_Cached | _Whole, Tensor]:
    if _cached(model):
        cached = _Cached(model, rows)
        scores = cached.first()
        # some attentions make NaN of padding that sees nothing: those rows must not be padded
        if isinstance(cached.cache, Cache) and not scores.isnan().any():
            return cached, scores
    plain = _Whole(model, rows)
    return plain, plain.first()


def _cached(model: nn.Module) -> bool:
    return all(accepts(model, name) for name in ("attention_mask", "past_key_values", "use_cache"))


@runtime_checkable
class Cache(Protocol):
    """What is asked of a model's cache: to drop the rows that have ended."""

    def batch_select_indices(self, indices: Tensor) -> None: ...


class _Cached:
    """Rows padded on the left, with the model's own cache of keys and values."""

    def __init__(self, model: nn.Module, rows: list[list[int]]):
        self.model, self.device = model, next(model.parameters()).device
        longest = max(map(len, rows))
        # the padding's id is masked, never looked at
        self.ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows])
        self.mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows])
        self.ids, self.mask = self.ids.to(self.device), self.mask.to(self.device)
        self.placed = accepts(model, "position_ids")
        self.last_only = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
        self.cache: Any = None

    def first(self) -> Tensor:
        return self._forward(self.ids, (self.mask.cumsum(1) - 1).clamp_min(0))

    def step(self, tokens: list[int]) -> Tensor:
        ids = torch.tensor(tokens, device=self.device)[:, None]
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        return self._forward(ids, self.mask.sum(1, keepdim=True) - 1)

    def select(self, keep: list[int]) -> None:
        index = torch.tensor(keep, device=self.device)
        self.mask = self.mask[index]
        self.cache.batch_select_indices(index)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            **({"position_ids": positions} if self.placed else {}),
            **self.last_only,
        )
        self.cache = getattr(output, "past_key_values", None)
        return output.logits[:, -1]  # [rows, V]


class _Whole:
    """Rows padded on the right and read from their beginning at each step: causal, so no mask."""

    def __init__(self, model: nn.Module, rows: list[list[int]]):
        self.model, self.device = model, next(model.parameters()).device
        self.rows = [list(ids) for ids in rows]

    def first(self) -> Tensor:
        longest = max(map(len, self.rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in self.rows])
        output = self.model(ids.to(self.device))
        z = output if isinstance(output, Tensor) else output.logits
        last = torch.tensor([len(row) - 1 for row in self.rows], device=self.device)
        return z[torch.arange(len(self.rows), device=self.device), last]

    def step(self, tokens: list[int]) -> Tensor:
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)
        return self.first()

    def select(self, keep: list[int]) -> None:
        self.rows = [self.rows[place] for place in keep]


def _limits(max_new_tokens: int | Sequence[int], rows: int) -> list[int]:
    if rows == 0:
        raise ValueError("no prompts: the set is empty")
    given = [max_new_tokens] * rows if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(given) != rows or min(given) < 1:
        raise ValueError(
            f"max_new_tokens has {len(given)} limits from {min(given, default=0)} for {rows} "
            "prompts: give one number of at least 1, or one per prompt"
        )
    return given
