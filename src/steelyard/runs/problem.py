"""Data and model made into one thing to minimise: tensors, a loss per sample, an evaluation.

Inputs are scaled by fixed constants, never by statistics of the private data.

| table | model | sample | loss |
|---|---|---|---|
| image | cnn, vit, mlp, Hugging Face | one image, scaled to [-1, 1] | cross-entropy |
| features | mlp | one row, sign(x) log(1 + |x|) | cross-entropy |
| text with labels | Hugging Face | one text | cross-entropy |
| text | gpt (bytes), Hugging Face (its tokens) | a chunk of `length` tokens | mean over tokens |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import models
from steelyard.data import Table, load
from steelyard.models import Task
from steelyard.runs.config import TrainConfig

BYTES = 257  # 256 byte values and the padding
PADDING = 256


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and its data, on one device when it is asked for batches.

    train_x, test_x: uint8 images [n, C, H, W], float features [n, d], or int64 tokens [n, T]
    (language: [n, T + 1]). train_y, test_y: int64 [n]; None for language. `notes`: sentences for
    the ledger.
    """

    model: nn.Module
    task: Task
    train_x: Tensor
    train_y: Tensor | None
    test_x: Tensor
    test_y: Tensor | None
    device: torch.device
    padding: int = -1
    notes: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.train_x)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these training samples, on the device."""
        return self._inputs(self.train_x, self.train_y, indices)

    def losses(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """One loss per sample, a function of that sample alone: [B]."""
        logits = model(x)
        if self.task.kind != "language":
            return F.cross_entropy(logits.float(), y, reduction="none")
        tokens = F.cross_entropy(
            logits.float().transpose(1, 2), y, reduction="none", ignore_index=self.padding
        )
        return tokens.sum(1) / (y != self.padding).sum(1).clamp(min=1)  # its own length only

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, batch: int) -> dict[str, float]:
        """Test loss and accuracy (perplexity for language) of the model in eval mode."""
        training = model.training
        model.eval()
        total, right = 0.0, 0
        for indices in torch.arange(len(self.test_x)).split(batch):
            x, y = self._inputs(self.test_x, self.test_y, indices)
            if self.task.kind == "language":
                total += float(self.losses(model, x, y).sum())
            else:
                logits = model(x).float()
                total += float(F.cross_entropy(logits, y, reduction="sum"))
                right += int((logits.argmax(1) == y).sum())
        model.train(training)
        loss = total / len(self.test_x)
        if self.task.kind == "language":
            return {"loss": loss, "perplexity": math.exp(min(loss, 50.0))}
        return {"loss": loss, "accuracy": right / len(self.test_x)}

    def _inputs(self, xs: Tensor, ys: Tensor | None, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = xs[indices].to(self.device)
        if ys is None:
            return x[:, :-1], x[:, 1:]
        if x.dtype == torch.uint8:
            x = x.float() / 127.5 - 1.0
        return x, ys[indices].to(self.device)


def make_problem(config: TrainConfig) -> Problem:
    """Load the data, build or load the model. Raises ValueError with one line for bad input."""
    table = load(config.data, text=config.text, label=config.label, test=config.test)
    device = choose_device(config.device)
    own = config.model in models.MODELS
    notes: list[str] = []
    tokenizer, padding = None, -1
    if table.kind == "text":
        if own and config.model != "gpt":
            raise ValueError(
                f"{config.model!r} does not read text, and {config.data!r} is text: use gpt "
                "(bytes) or "
                "a Hugging Face model such as minilm"
            )
        labelled = table.train_y is not None and not own
        task = Task(
            kind="text" if labelled else "language",
            classes=len(table.classes) if labelled else 0,
            shape=(config.length,),
            vocabulary=BYTES,
        )
    else:
        task = _array_task(table)
    if own:
        model = models.build(config.model, task, seed=config.seed)
        padding = PADDING if task.kind == "language" else -1
    else:
        from steelyard.hf.models import load_hf

        model, tokenizer = load_hf(config.model, task, adapter=config.adapter, seed=config.seed)
    normalised = models.batchnorm_names(model)
    if config.private and normalised:
        if not config.replace_batchnorm:
            raise ValueError(
                f"layer {normalised[0]!r} is a BatchNorm: it mixes the samples of a batch, so "
                "none can be "
                "protected; --replace-batchnorm puts GroupNorm in its place"
            )
        models.replace_batchnorm(model)
    if table.kind == "text":
        train_x, padding = _tokens(table.train_x, task, config.length, tokenizer)
        test_x, _ = _tokens(table.test_x, task, config.length, tokenizer)
        if task.kind == "language":
            notes.append(
                f"the unit of protection is one chunk of {config.length} tokens, not a whole "
                "document"
            )
    else:
        train_x, test_x = _array(table, table.train_x, notes), _array(table, table.test_x, [])
    labelled = task.kind != "language"
    return Problem(
        model=model.to(device),
        task=task,
        train_x=train_x,
        train_y=torch.from_numpy(table.train_y) if labelled else None,
        test_x=test_x,
        test_y=torch.from_numpy(table.test_y) if labelled else None,
        device=device,
        padding=padding,
        notes=notes,
    )


def choose_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device, else the CPU. Raises ValueError for one that is not

    there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}): use cpu") from None
    return device


def _array_task(table: Table) -> Task:
    if table.train_y is None:
        raise ValueError(
            f"{table.name!r} has no labels: nothing to learn from its {table.kind} rows"
        )
    assert isinstance(table.train_x, np.ndarray)
    kind = "image" if table.kind == "image" else "features"
    return Task(kind=kind, classes=len(table.classes), shape=tuple(table.train_x.shape[1:]))


def _array(table: Table, rows: np.ndarray | list[str], notes: list[str]) -> Tensor:
    assert isinstance(rows, np.ndarray)
    tensor = torch.from_numpy(rows)
    if table.kind == "image":
        notes.append("pixels are scaled to [-1, 1] by a fixed constant")
        return tensor.permute(0, 3, 1, 2).contiguous()  # [n, C, H, W]
    notes.append("features are compressed by the fixed function sign(x) log(1 + |x|)")
    return tensor.sign() * tensor.abs().log1p()


def _tokens(
    texts: np.ndarray | list[str], task: Task, length: int, tokenizer: object
) -> tuple[Tensor, int]:
    assert isinstance(texts, list)
    if tokenizer is None:  # our own gpt reads bytes: no vocabulary is learned from private text
        return torch.tensor(list(_byte_chunks(texts, length + 1)), dtype=torch.int64), PADDING
    from steelyard.hf.models import encode

    extra = 1 if task.kind == "language" else 0
    tokens = encode(tokenizer, texts, length + extra)
    return tokens, int(getattr(tokenizer, "pad_token_id", 0) or 0)


def _byte_chunks(texts: list[str], size: int) -> Iterator[list[int]]:
    for text in texts:
        raw = text.encode()
        for start in range(0, max(len(raw) - 1, 1), size - 1):
            chunk = list(raw[start : start + size])
            yield chunk + [PADDING] * (size - len(chunk))
