"""What an unlearning run looks at while it runs: losses of answer tokens, and rows by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.objectives import Tokens, encode, logits, token_nll
from steelyard.objectives.tokens import between_of
from steelyard.runs.unlearn_config import UnlearnConfig

BATCH = 16
ENDLESS = 1 << 40  # tokens


def encoded(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], config: UnlearnConfig, name: str = "forget"
) -> Tokens:
    """The rows as the settings want them: prompts masked, the usual blank before the answers.

    Raises ValueError, which names the set: for no rows, for rows that `encode` refuses, and for the
    longest of those with more than `config.length` tokens.
    """
    if not rows:
        raise ValueError(f"the {name} set is empty: give it one row at least")
    between = "" if config.template else between_of(tokenizer)
    try:
        tokens = encode(tokenizer, rows, length=ENDLESS, template=config.template, between=between)
    except ValueError as error:
        raise ValueError(f"{name} set: {error}") from None
    sizes = tokens.attention_mask.sum(1)
    longer = int((sizes > config.length).sum())
    if longer:
        k, size = int(sizes.argmax()), int(sizes.max())
        row = f"row {k}" + (f" (id {rows[k]['id']})" if "id" in rows[k] else "")
        more = f", the longest of {longer} such rows" if longer > 1 else ""
        raise ValueError(
            f"{name} set: {row} has {size} tokens, more than {config.length}{more}: shorten it, or "
            f"give --length {size}"
        )
    return tokens


@torch.no_grad()
def mean_loss(model: nn.Module, tokens: Tokens, rows: int, batch: int = BATCH) -> float:
    """Mean negative log-likelihood of the answers' tokens in nats, over `rows` rows spread evenly
    over the set, `batch` of them in memory; all tokens count alike. The model's mode is what it is.
    """
    index = torch.arange(0, len(tokens), max(1, len(tokens) // rows))[:rows]
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for piece in index.split(batch):
        part = tokens.rows(piece).trimmed().to(device)
        nll, mask = token_nll(logits(model, part), part.labels)
        total += float(nll.double().sum())
        count += int(mask.sum())
    return total / count


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, gradients and all, for p / p0 must be 1 where nothing has changed.

    Modules with gradient checkpointing stay in training mode, as transformers checkpoints only
    there, with their own rates of dropout at 0; their children's are off. All is put back after.
    """
    checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    modes = [module.training for module in checkpointed]
    rates = [
        (module, name, rate)
        for module in checkpointed
        for name, rate in vars(module).items()
        if "drop" in name and isinstance(rate, float)
    ]
    with evaluating(model):
        try:
            for module in checkpointed:
                module.training = True
            for module, name, _ in rates:
                setattr(module, name, 0.0)
            yield
        finally:
            for module, mode in zip(checkpointed, modes, strict=True):
                module.training = mode
            for module, name, rate in rates:
                setattr(module, name, rate)


@contextmanager
def placed(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """The parameters have these values inside, and their own again after, bit for bit."""
    own = [p.detach().clone() for p in parameters]
    put(parameters, values)
    try:
        yield
    finally:
        put(parameters, own)


@torch.no_grad()
def put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def rows_of_step(step: int, batch: int, n: int, seed: int) -> Tensor:
    """The rows of step 0, 1, ...: epochs over n rows, each shuffled anew, cut into batches that go
    on from one epoch into the next; a function of its arguments alone."""
    size = min(batch, n)
    places = [divmod(k, n) for k in range(step * size, (step + 1) * size)]
    return torch.tensor([_shuffled(n, epoch, seed)[place] for epoch, place in places])


@lru_cache(maxsize=8)
def _shuffled(n: int, epoch: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(2_000_003 * seed + epoch)
    return torch.randperm(n, generator=generator).tolist()
