"""Pretrained Hugging Face models as plain modules: one batch tensor in, logits out.

`load_hf("minilm", task, adapter="lora")` gives what the training loop takes, and `save_hf` what
transformers and peft load again.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steelyard.hf.adapters import adapt, check
from steelyard.hf.readers import (
    check_task,
    check_text,
    head_modules,
    output_modules,
    read_model,
    read_tokenizer,
)
from steelyard.hf.sources import locate, one_line, quiet
from steelyard.models import Task, seeded


class Logits(nn.Module):
    """A transformers (or peft) model as `module(batch) -> logits`.

    Shapes: text int64 [B, T] -> [B, classes]; language int64 [B, T] -> [B, T, vocabulary];
    image float [B, C, H, W] -> [B, classes].
    Guarantees: every sample's logits depend on that sample only. Text: attention skips the tokens
    equal to `pad`, the first one excepted. Language: causal attention never sees padding on the
    right, so no mask is passed and the pad id may be a real token. Images: grey becomes three equal
    channels, and images are resized, where the model's config says so.
    state_dict keys: "hf." + the key of `self.hf`, the model that `save_pretrained` writes.
    """

    def __init__(self, hf: Any, *, kind: str, pad: int | None = None) -> None:
        super().__init__()
        self.hf, self.kind, self.pad = hf, kind, pad
        inner = hf.get_base_model() if _is_peft(hf) else hf
        takes_cache = "use_cache" in inspect.signature(inner.forward).parameters
        self.options = {"use_cache": False} if takes_cache else {}

    def forward(self, batch: Tensor) -> Tensor:
        if self.kind == "image":
            return self.hf(pixel_values=self._fitted(batch), **self.options).logits
        if self.kind == "language":
            return self.hf(input_ids=batch, **self.options).logits
        mask = batch != self.pad  # [B, T]
        mask[:, :1] = True  # an empty text still attends to something: no softmax over nothing
        return self.hf(input_ids=batch, attention_mask=mask.long(), **self.options).logits

    def _fitted(self, images: Tensor) -> Tensor:
        config = self.hf.config
        if images.shape[1] == 1 and config.num_channels > 1:
            images = images.expand(-1, config.num_channels, -1, -1)
        size = getattr(config, "image_size", None)  # convolutional models take any size
        size = (size, size) if isinstance(size, int) else size
        if size is None or tuple(images.shape[2:]) == tuple(size):
            return images
        return F.interpolate(images, tuple(size), mode="bilinear", antialias=True)


def load_hf(
    name: str,
    task: Task,
    adapter: str = "lora",
    *,
    rank: int = 8,
    targets: str = "attention",
    seed: int = 0,
) -> tuple[Logits, Any]:
    """The pretrained model `name` for `task`, float32 on the CPU, and its tokenizer (image: None).

    `name`: "minilm", "smollm2", a local folder, or a hub name. `task.shape[0]` is the number of
    tokens a text is cut or padded to; `task.vocabulary` is not read, the tokenizer decides.
    `adapter`, `rank`, `targets`: see `steelyard.hf.adapters.adapt`.
    Guarantees: what is not pretrained (head, LoRA's A) is a function of `seed`; global random state
    and logging are as before; no pickle is read and no code from a model's folder runs. The model
    is in evaluation mode.
    Raises: ValueError, in one line.
    """
    check(adapter, rank=rank, targets=targets)
    check_task(name, task)
    path = locate(name)
    with seeded(seed), quiet(), one_line(name):
        tokenizer = None if task.kind == "image" else read_tokenizer(path)
        pad = None if tokenizer is None else tokenizer.pad_token_id
        hf, new = read_model(path, task)
        if tokenizer is not None:
            check_text(hf, tokenizer, task)
        if task.kind == "text":
            hf.config.pad_token_id = pad  # decoders find a text's end by it
        language_head = task.kind == "language" and adapter == "head"
        head = output_modules(hf) if language_head else head_modules(hf, task)
        hf = adapt(hf, adapter, kind=task.kind, head=head, new=new, rank=rank, targets=targets)
    return Logits(hf, kind=task.kind, pad=pad), tokenizer


def encode(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """The texts as token ids, cut or padded on the right to `length`: int64 [n, length]."""
    if not texts:
        return torch.zeros(0, length, dtype=torch.int64)
    rows = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=length,
        padding_side="right",
        return_attention_mask=False,
    )["input_ids"]
    return torch.tensor(rows, dtype=torch.int64)


def save_hf(module: Logits, folder: str | Path, tokenizer: Any = None) -> None:
    """Write `module.hf` by `save_pretrained` as safetensors: under "lora" adapter and head only."""
    # peft would ask the hub whether the embedding was resized: it never is here.
    options = {"save_embedding_layers": False} if _is_peft(module.hf) else {}
    with quiet():
        module.hf.save_pretrained(folder, **options)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _is_peft(hf: Any) -> bool:
    from peft import PeftModel

    return isinstance(hf, PeftModel)
