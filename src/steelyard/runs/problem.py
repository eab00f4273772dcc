"""Data and model made into one thing to minimise: tensors, a loss per sample, an evaluation.

Inputs are scaled by fixed constants, never by statistics of the private data.

| table | model | sample | loss |
|---|---|---|---|
| image | cnn, vit, mlp, Hugging Face | one image, scaled to [-1, 1] | cross-entropy |
| features | mlp | one row, sign(x) log(1 + |x|) | cross-entropy |
| text with labels | Hugging Face | one text, cut after `length` tokens | cross-entropy |
| text | gpt (bytes), Hugging Face (its tokens) | a chunk of `length` tokens | mean over tokens |
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import models
from steelyard.data import Table, load
from steelyard.data.suggest import did_you_mean
from steelyard.models import Task
from steelyard.runs.config import TrainConfig
from steelyard.runs.separate import separate

BYTES = 257  # 256 byte values and the padding
PADDING = 256


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and its data, on one device when it is asked for batches.

    train_x, test_x: uint8 images [n, C, H, W], float features [n, d], or int64 tokens [n, T]
    (language: [n, T + 1]). train_y, test_y: int64 [n]; None for language. For the ledger, in plain
    sentences: `public`, what was computed from public values; `assumptions`, what the guarantee
    rests on.
    """

    model: nn.Module
    task: Task
    train_x: Tensor
    train_y: Tensor | None
    test_x: Tensor
    test_y: Tensor | None
    device: torch.device
    padding: int = -1
    public_x: Tensor | None = None  # public training samples, alike; public_y their labels
    public_y: Tensor | None = None
    public_source: str = ""
    public: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.train_x)

    @property
    def n_public(self) -> int:
        return 0 if self.public_x is None else len(self.public_x)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these training samples, on the device."""
        return self._inputs(self.train_x, self.train_y, indices)

    def public_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these public samples, on the device."""
        assert self.public_x is not None
        return self._inputs(self.public_x, self.public_y, indices)

    def losses(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """One loss per sample, a function of that sample alone: [B]."""
        logits = model(x).float()
        if self.task.kind != "language":
            return F.cross_entropy(logits, y, reduction="none")
        return self._token_losses(logits, y).sum(1) / self._real(y).clamp(min=1)  # its own length

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, batch: int) -> dict[str, float]:
        """Test loss and accuracy; for language, loss per token and perplexity. In eval mode."""
        training = model.training
        model.eval()
        total, right, count = 0.0, 0, 0
        for indices in torch.arange(len(self.test_x)).split(batch):
            x, y = self._inputs(self.test_x, self.test_y, indices)
            logits = model(x).float()
            if self.task.kind == "language":
                total += float(self._token_losses(logits, y).sum())
                count += int(self._real(y).sum())
            else:
                total += float(F.cross_entropy(logits, y, reduction="sum"))
                right += int((logits.argmax(1) == y).sum())
                count += len(y)
        model.train(training)
        loss = total / max(count, 1)
        if self.task.kind == "language":
            return {"loss": loss, "perplexity": math.exp(min(loss, 50.0))}
        return {"loss": loss, "accuracy": right / count}

    def _token_losses(self, logits: Tensor, y: Tensor) -> Tensor:  # [B, T]
        return F.cross_entropy(
            logits.transpose(1, 2), y, reduction="none", ignore_index=self.padding
        )

    def _real(self, y: Tensor) -> Tensor:
        """How many tokens of each sample are not padding: [B]."""
        return (y != self.padding).sum(1)

    def _inputs(self, xs: Tensor, ys: Tensor | None, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = xs[indices].to(self.device)
        if ys is None:
            return x[:, :-1], x[:, 1:]
        if x.dtype == torch.uint8:
            x = (x.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
        return x, ys[indices].to(self.device)


def read_table(config: TrainConfig) -> Table:
    """The data of these settings. Raises ValueError with one line."""
    return load(config.data, text=config.text, label=config.label, test=config.test)


def make_problem(config: TrainConfig, table: Table | None = None) -> Problem:
    """Build or load the model for the data (`table`, where it was read already).

    Raises ValueError with one line for bad input.
    """
    device = choose_device(config.device)
    table = table or read_table(config)
    table, beside = separate(config, table)
    task = _task(table, config)
    model, tokenizer = _model(config, task)
    public: list[str] = []
    assumptions: list[str] = []
    parts = [table.train_x, table.test_x, *([] if beside is None else [beside.train_x])]
    padding = -1
    if table.kind == "text":
        tokens = [_tokens(part, task, tokenizer) for part in parts]
        arrays, padding = [ids for ids, _ in tokens], tokens[0][1]
        if task.kind == "language":
            unit = f"a chunk of {config.length} tokens, not a whole document"
            assumptions.append(f"One sample, the unit that is protected, is {unit}.")
    else:
        arrays = [_array(table, part) for part in parts]
        public.append(_SCALED[table.kind])
    labelled = task.kind != "language"
    if task.kind == "image":  # pooling and convolutions are up to twice as fast in this layout
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Problem(
        model=model.to(device),
        task=task,
        train_x=arrays[0],
        train_y=torch.tensor(table.train_y) if labelled else None,
        test_x=arrays[1],
        public_x=None if beside is None else arrays[2],
        public_y=None if beside is None or not labelled else torch.tensor(beside.train_y),
        public_source="" if beside is None else _public_source(config, beside),
        test_y=torch.tensor(table.test_y) if labelled else None,
        device=device,
        padding=padding,
        public=public,
        assumptions=assumptions,
    )


def _public_source(config: TrainConfig, beside: Table) -> str:
    part = f"a share of {config.public_part:g} of the training data" if config.public_part else ""
    return part or beside.source


def choose_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device, else the CPU. Raises ValueError for one that is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:1") from None
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}): use cpu") from None
    return device


def _task(table: Table, config: TrainConfig) -> Task:
    if table.kind == "text":
        if config.model in models.MODELS and config.model != "gpt":
            raise ValueError(
                f"model {config.model!r} does not read text, and {config.data!r} is text: use gpt "
                "(bytes) or a Hugging Face model such as minilm"
            )
        labelled = table.train_y is not None and config.model != "gpt"
        return Task(
            kind="text" if labelled else "language",
            classes=len(table.classes) if labelled else 0,
            shape=(config.length,),
            vocabulary=BYTES,
        )
    assert isinstance(table.train_x, np.ndarray)
    kind = "image" if table.kind == "image" else "features"
    return Task(kind=kind, classes=len(table.classes), shape=tuple(table.train_x.shape[1:]))


def _model(config: TrainConfig, task: Task) -> tuple[nn.Module, Any]:
    """The model on the CPU and, where it has one, its tokenizer."""
    tokenizer = None
    if config.model in models.MODELS:
        model = models.build(config.model, task, seed=config.seed)
    elif find_spec("transformers") is None:
        raise ValueError(
            f"unknown model {config.model!r}{did_you_mean(config.model, models.MODELS)} our own "
            f"are {', '.join(models.MODELS)}; others need: pip install 'steelyard[hf]'"
        )
    else:
        from steelyard.hf.models import load_hf

        model, tokenizer = load_hf(config.model, task, adapter=config.adapter, seed=config.seed)
    normalised = models.batchnorm_names(model)
    if normalised and config.replace_batchnorm:
        models.replace_batchnorm(model)
    elif normalised and config.private:
        raise ValueError(
            f"layer {normalised[0]!r} is a BatchNorm: it mixes the samples of a batch, so none can "
            "be protected; --replace-batchnorm puts GroupNorm in its place"
        )
    return model, tokenizer


_SCALED = {
    "image": "pixels are scaled to [-1, 1] by a fixed constant",
    "features": "features are compressed by the fixed function sign(x) log(1 + |x|)",
}


def _array(table: Table, rows: np.ndarray | list[str]) -> Tensor:
    assert isinstance(rows, np.ndarray)
    tensor = torch.tensor(rows)  # a copy: what was read from a file may be read-only
    if table.kind == "image":
        return tensor.permute(0, 3, 1, 2).contiguous()  # [n, C, H, W]
    return tensor.sign() * tensor.abs().log1p()


def _tokens(texts: np.ndarray | list[str], task: Task, tokenizer: Any) -> tuple[Tensor, int]:
    """Token ids int64 [n, T] (language: chunks [n, T + 1]) and the id that pads."""
    assert isinstance(texts, list)
    length = task.shape[0]
    if tokenizer is None:  # our own gpt reads bytes: no vocabulary is learned from private text
        rows = (np.frombuffer(text.encode(), dtype=np.uint8) for text in texts)
        return _chunks(rows, length + 1, PADDING), PADDING
    from steelyard.hf import models as hf

    if task.kind == "text":
        return hf.encode(tokenizer, texts, length), _padding(tokenizer)
    with hf.quiet():  # a text may be longer than the model's context: it is cut into chunks
        rows = map(np.asarray, tokenizer(texts, return_attention_mask=False)["input_ids"])
    return _chunks(rows, length + 1, _padding(tokenizer)), _padding(tokenizer)


def _padding(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id)


def _chunks(rows: Iterable[np.ndarray], size: int, padding: int) -> Tensor:
    """Pieces of `size` tokens, each starting with the last token of the one before: [n, size]."""
    pieces = [
        row[start : start + size]
        for row in rows
        for start in range(0, max(len(row) - 1, 1), size - 1)
    ]
    chunks = torch.full((len(pieces), size), padding, dtype=torch.int64)
    for chunk, piece in zip(chunks, pieces, strict=True):
        chunk[: len(piece)] = torch.from_numpy(piece.astype(np.int64))
    return chunks
