"""How likely a language model finds given texts, token by token.

One forward pass per batch of rows of about the same length. Of the logits [B, T, V] only four
numbers per answer token leave the batch, and their float32 copy is made for a few positions at a
time, so a whole set costs no more memory than one batch.

| symbol | variable |
|---|---|
| log p_t | `log_p`: log-likelihood of the t-th scored token |
| mu_t, sigma_t | `mean`, `std`: of log p over the vocabulary, under p |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steelyard.objectives.tokens import IGNORED, Tokens, forward, prompt_ids
from steelyard.plans.checks import whole

FLOATS = 1 << 24  # of log-probabilities held at once: 64 MiB
LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Of one row's n scored tokens: three float64 arrays [n]; `right`, bool [n]: argmax hits."""

    log_p: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    right: np.ndarray

    @property
    def loss(self) -> float:
        """CE = -mean of log p_t."""
        return -float(self.log_p.mean())


def token_scores(model: nn.Module, tokens: Tokens, *, batch: int = 16) -> list[TokenScores]:
    """The scores of each row's labelled tokens, in the rows' order.

    model: a causal language model, evaluated in eval mode on the device it is on.
    Guarantees: independent of `batch` up to rounding; the model is left as it was found.
    Raises: ValueError naming the rows without a labelled token behind the first position, or for a
    batch below 1.
    """
    whole("batch", batch, least=1, fix="use 16, say")
    scored = tokens.labels[:, 1:] != IGNORED
    empty = (~scored.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"rows {empty[:5]} have no token to score: a row needs two tokens or more")
    order = tokens.attention_mask.sum(1).argsort(stable=True)
    found: list[TokenScores | None] = [None] * len(tokens)
    device = next(model.parameters()).device
    with evaluation(model):
        for index in order.split(batch):
            rows = tokens.rows(index).trimmed().to(device)
            for row, scores in zip(index.tolist(), _batch_scores(model, rows), strict=True):
                found[row] = scores
    return [scores for scores in found if scores is not None]


def losses(model: nn.Module, tokens: Tokens, *, batch: int = 16) -> np.ndarray:
    """CE of each row's answer: float64 [B]."""
    return np.array([scores.loss for scores in token_scores(model, tokens, batch=batch)])


def document_tokens(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    length: int | None = None,
    end: bool = False,
    what: str = "document",
) -> Tokens:
    """Whole texts, every token a label (the first is predicted only where a begin token precedes).

    length: longer texts are cut there. end: the tokenizer's end token counts as part of the text.
    what: a text's name in errors.
    Raises: ValueError for no texts, and naming a text with fewer than two tokens.
    """
    if not texts:
        raise ValueError(f"no {what}s: the set is empty")
    last = [tokenizer.eos_token_id] * end
    found = [[*prompt_ids(tokenizer, text), *last][:length] for text in texts]
    for number, ids in enumerate(found):
        if len(ids) < 2:
            raise ValueError(f"{what} {number} has {len(ids)} tokens: it needs two to be scored")
    longest = max(map(len, found))
    input_ids = torch.zeros(len(found), longest, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(found):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return Tokens(input_ids, input_ids.masked_fill(mask == 0, IGNORED), mask)


def context_length(model: nn.Module) -> int | None:
    """Positions the model can take, or None where it does not say (or has no limit)."""
    config = getattr(model, "config", None)
    stated = [getattr(config, name, None) for name in LIMITS]
    return next((n for n in stated if isinstance(n, int) and n > 0), None)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; each module's mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _batch_scores(model: nn.Module, rows: Tokens) -> list[TokenScores]:
    output = forward(model, rows)
    z = output if isinstance(output, Tensor) else output.logits  # [B, T, V], in the model's dtype
    targets = rows.labels[:, 1:]
    row, place = (targets != IGNORED).nonzero(as_tuple=True)  # [N] each, row by row
    step = max(1, FLOATS // z.shape[-1])
    parts = [
        _statistics(z[r, p], targets[r, p])
        for r, p in zip(row.split(step), place.split(step), strict=True)
    ]
    table = torch.cat(parts).cpu().double().numpy()  # [N, 4]
    ends = np.cumsum((targets != IGNORED).sum(1).cpu().numpy())[:-1]
    return [
        TokenScores(part[:, 0], part[:, 1], part[:, 2], part[:, 3] > 0)
        for part in np.split(table, ends)
    ]


def _statistics(z: Tensor, targets: Tensor) -> Tensor:
    """log p of the target, mean and std of log p under p, hit or not: [N, 4]."""
    z = z if z.dtype == torch.float64 else z.float()
    log_p = z.log_softmax(-1)  # [N, V]
    p = log_p.exp()
    # a token that is ruled out (-inf) has p = 0, and 0 * -inf is meant to be 0
    finite = log_p.masked_fill(p == 0, 0.0)
    mean = (p * finite).sum(-1)
    deviation = (finite - mean[:, None]).square_()
    std = (p * deviation).sum(-1).sqrt()
    found = log_p.gather(-1, targets[:, None])[:, 0]
    columns = (found, mean, std, z.argmax(-1) == targets)
    return torch.stack([column.to(z.dtype) for column in columns], dim=1)
