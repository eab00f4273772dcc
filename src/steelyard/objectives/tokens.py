"""Prompts and answers as padded token ids, a model's logits on them, and the answer's likelihood.

| symbol | variable |
|---|---|
| y, len(y) | the answer's tokens: where `labels` is not -100; their number |
| -log p_t | `token_nll`: the negative log-likelihood of the t-th answer token |
| z | `logits`, where position t predicts token t + 1 |
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # a label that is not part of the answer, as everywhere in torch


@dataclass(frozen=True, eq=False)
class Tokens:
    """B rows of at most T tokens, padded on the right: three int64 tensors [B, T].

    `labels`: the token itself where it belongs to the answer, -100 on the prompt and the padding.
    `attention_mask`: 1 on tokens, 0 on padding.
    Raises: ValueError for tensors of other shapes or types; on the CPU also for padding on the
    left, labels on padding, and labels that are other tokens than those in their place (elsewhere
    the look would wait for the device).
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor

    def __post_init__(self) -> None:
        for name in ("input_ids", "labels", "attention_mask"):
            found: Tensor = getattr(self, name)
            if found.dim() != 2 or found.shape != self.input_ids.shape:
                raise ValueError(
                    f"{name} has shape {list(found.shape)}: the three tensors must be [B, T], "
                    f"as input_ids {list(self.input_ids.shape)}"
                )
            if found.dtype != torch.int64:
                raise ValueError(f"{name} is {found.dtype}: use int64")
        if self.device.type == "cpu":
            if (self.attention_mask.diff(dim=1) > 0).any():
                raise ValueError("attention_mask rises along a row: pad on the right, not the left")
            if (self.attention_mask.sum(1) == 0).any():
                raise ValueError("attention_mask is 0 along a whole row: leave empty rows out")
            if ((self.labels != IGNORED) & (self.attention_mask == 0)).any():
                raise ValueError("labels name tokens of the padding: set them to -100 there")
            if ((self.labels != IGNORED) & (self.labels != self.input_ids)).any():
                raise ValueError("labels are not the tokens in their place: do not shift them")

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def device(self) -> torch.device:
        return self.input_ids.device

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(*(t.to(device) for t in self._tensors()))

    def rows(self, index: slice | Tensor) -> Tokens:
        """The rows of `index` (a slice, or int64 [k]), at the same padded length."""
        return Tokens(*(t[index] for t in self._tensors()))

    def trimmed(self) -> Tokens:
        """The same rows without the columns that are padding in all of them."""
        longest = int(self.attention_mask.any(0).sum())
        return Tokens(*(t[:, :longest] for t in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.input_ids, self.labels, self.attention_mask


@dataclass(frozen=True, eq=False)
class Pair:
    """For every prompt an answer to prefer and one to reject: B rows each, in the same order.

    In unlearning, `chosen` is the alternative ("I don't know") and `rejected` the answer to forget.
    Raises: ValueError for different numbers of rows.
    """

    chosen: Tokens
    rejected: Tokens

    def __post_init__(self) -> None:
        if len(self.chosen) != len(self.rejected):
            raise ValueError(
                f"{len(self.chosen)} chosen rows beside {len(self.rejected)} rejected ones: "
                "a pair needs one of each per prompt"
            )

    def __len__(self) -> int:
        return len(self.chosen)

    def to(self, device: torch.device | str) -> Pair:
        return Pair(self.chosen.to(device), self.rejected.to(device))

    def rows(self, index: slice | Tensor) -> Pair:
        return Pair(self.chosen.rows(index), self.rejected.rows(index))


def encode(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    length: int,
    end: bool = True,
    cut: bool = False,
    template: bool = False,
    between: str = "",
) -> Tokens:
    """Rows with "input" and "output" as `Tokens`: prompt ids, then answer ids, the prompt masked.

    tokenizer: of transformers. Prompt and answer are tokenized apart and their ids joined, so the
    boundary is where it is at generation, whatever the tokenizer would merge across it.
    length: the most tokens of a row, its end included. Padded to the longest row found.
    end: append the tokenizer's end token to the answer, as a part of it.
    cut: shorten too long answers at their end (without an end token) instead of refusing them.
    template: put the prompt into the tokenizer's chat template, as one user message.
    between: text in front of every answer, unless it begins with a blank or its prompt ends with
    one; " " where the tokenizer (byte-level BPE: GPT-2, Llama 3, OLMo, Qwen) counts the space to
    the word behind it: see `between_of`.

    Raises: ValueError for no rows, and naming the row: a missing field or one that is no text, an
    answer without tokens, more tokens than `length`; for a missing end token or chat template.
    """
    if not rows:
        raise ValueError("no rows to encode: the set is empty")
    if end and tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token: set its eos_token, or pass end=False")
    last = [tokenizer.eos_token_id] if end else []
    prompts, answers = [], []
    for number, row in enumerate(rows):
        name = f"row {number}" + (f" (id {row['id']})" if "id" in row else "")
        for field in ("input", "output"):
            if not isinstance(row.get(field), str):
                found = f"is {row[field]!r}" if field in row else "is missing"
                raise ValueError(f'{name}: "{field}" {found}: a row needs texts "input", "output"')
        prompt = prompt_ids(tokenizer, row["input"], template=template)
        apart = row["input"][-1:].isspace() or row["output"][:1].isspace()
        text = row["output"] if apart or not row["output"] else between + row["output"]
        answer = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not answer:
            raise ValueError(f"{name}: the answer {row['output']!r} has no tokens: leave it out")
        size = len(prompt) + len(answer) + len(last)
        if size > length and not cut:
            raise ValueError(f"{name} has {size} tokens, more than {length}: shorten it, or cut")
        answer = [*answer, *last][: length - len(prompt)] if len(prompt) < length else []
        if len(prompt) + len(answer) < 2 or not answer:
            found = f"{len(prompt)} tokens of the prompt leave no room in {length}"
            raise ValueError(f"{name}: no answer token can be predicted ({found})")
        prompts.append(prompt)
        answers.append(answer)
    return _padded(prompts, answers)


def prompt_ids(tokenizer: Any, text: str, *, template: bool = False) -> list[int]:
    """What stands before the answer: the begin token, where the tokenizer has the habit, and text.

    Raises: ValueError for `template` with a tokenizer that has no chat template.
    """
    if template:
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: pass template=False")
        message = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # it holds its own
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    begin: int | None = tokenizer.bos_token_id
    # some tokenizers begin texts with it (Llama), others only know it (GPT-2)
    if begin is not None and tokenizer("")["input_ids"][:1] == [begin]:
        return [begin, *ids]
    return ids


def between_of(tokenizer: Any) -> str:
    """What `encode` should put in front of answers: "" or " ".

    "" where prompt and answer tokenized apart give what "x a" gives as a whole (Metaspace with a
    prepended blank: Llama 2, T5); " " where the space belongs to the word behind it (byte-level
    BPE: GPT-2, Llama 3, OLMo, Qwen).
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return "" if ids("x") + ids("a") == ids("x a") else " "


def logits(model: nn.Module, tokens: Tokens) -> Tensor:
    """z [B, T, V] of a causal language model, at least float32; differentiable where `model` is.

    model: returns an output with `.logits` (transformers, peft), or a bare tensor (ours).
    """
    output = forward(model, tokens)
    z = output if isinstance(output, Tensor) else output.logits
    return z if z.dtype == torch.float64 else z.float()


def forward(model: nn.Module, tokens: Tokens) -> Any:
    """The model's output; the attention mask is passed on where the model takes one.

    A model without one must be causal: then no token sees the padding on its right.
    """
    options: dict[str, Any] = {}
    if accepts(model, "attention_mask"):
        options["attention_mask"] = tokens.attention_mask
    if accepts(model, "use_cache"):
        options["use_cache"] = False  # nothing is generated: keep no keys and values
    return model(tokens.input_ids, **options)


def token_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(-log p_t, mask), both [B, T-1] and shifted by one: z at t predicts the label at t + 1.

    logits [B, T, V], labels int64 [B, T]. nll is 0 where the mask is False, with gradient 0.
    The label of column 0 has nothing in front that predicts it, so it never counts.
    """
    targets = labels[:, 1:]
    flat = logits[:, :-1].flatten(0, 1)
    nll = F.cross_entropy(flat, targets.flatten(), reduction="none", ignore_index=IGNORED)
    return nll.view(targets.shape), targets != IGNORED


def answer_lengths(mask: Tensor) -> Tensor:
    """len(y) [B] int64 from the mask [B, T-1] of `token_nll`.

    Raises: ValueError naming the rows without one answer token: they have no loss.
    """
    lengths = mask.sum(1)
    empty = (lengths == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"no answer tokens in rows {empty} of {len(mask)}: all labels are -100")
    return lengths


def _padded(prompts: list[list[int]], answers: list[list[int]]) -> Tokens:
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    # the padding's id is never looked at: attention and labels are masked there
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    labels = torch.full_like(input_ids, IGNORED)
    mask = torch.zeros_like(input_ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        size = len(prompt) + len(answer)
        input_ids[row, :size] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : size] = torch.tensor(answer)
        mask[row, :size] = 1
    return Tokens(input_ids, labels, mask)


def accepts(model: nn.Module, name: str) -> bool:
    """Whether a keyword argument of that name reaches somebody who knows it: wrappers (of peft,
    DDP, torch.compile) hand on what they do not name, so the look goes inwards through them."""
    for module in model.modules():
        parameters = inspect.signature(module.forward).parameters
        if name in parameters:
            return True
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return False
    return False
