"""Texts as frozen features of a pretrained encoder, computed once and kept in a file.

    x = sqrt(d) h / ||h||,   h = mean over the tokens of the encoder's last hidden state

Each row depends on its own text and on the public encoder only: what is trained on features is as
private as what is trained on texts with the encoder frozen, and a thousand times cheaper.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np

from steelyard.data import Table
from steelyard.runs.files import write_atomically

LENGTH = 64  # tokens of a text that are read
BATCH = 64


def embedded(table: Table, encoder: str, cache: Path) -> Table:
    """The table with features float32 [n, d] of its texts, from `cache` if they are there.

    encoder: a name that `load_hf` takes, such as "minilm". Raises ValueError, one line, for data
    that are no labelled texts, or an encoder that cannot be read.
    """
    if table.kind != "text" or table.train_y is None:
        raise ValueError(f"'{table.name}' has no labelled texts to embed: it holds {table.kind}")
    file = cache / f"{table.name.replace('/', '_')}-{encoder.replace('/', '_')}.npz"
    if not file.is_file():
        parts = {"train": _encode(table.train_x, encoder), "test": _encode(table.test_x, encoder)}
        content = io.BytesIO()
        np.savez(content, **parts)  # pyright: ignore[reportArgumentType]
        write_atomically(file, content.getvalue())
    with np.load(file, allow_pickle=False) as saved:
        train, test = saved["train"], saved["test"]
    if (len(train), len(test)) != (table.n, table.n_test):
        raise ValueError(f"{file} holds features of other data: delete it")
    return dataclasses.replace(
        table,
        kind="features",
        train_x=train,
        test_x=test,
        source=f"{table.source}, as features of {encoder}",
    )


def _encode(texts: np.ndarray | list[str], encoder: str) -> np.ndarray:
    import torch

    from steelyard.hf.models import encode, load_hf
    from steelyard.models import Task

    assert isinstance(texts, list)
    task = Task(kind="text", shape=(LENGTH,), classes=2)
    module, tokenizer = load_hf(encoder, task, adapter="head")
    backbone = module.hf.base_model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in a batch
    rows: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for start in range(0, len(order), BATCH):
            which = order[start : start + BATCH]
            ids = encode(tokenizer, [texts[i] for i in which], LENGTH)
            mask = ids != tokenizer.pad_token_id  # [b, T]
            mask[:, 0] = True
            longest = int(mask.sum(1).max())
            ids, mask = ids[:, :longest], mask[:, :longest]
            hidden = backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # [b, d]
            unit = torch.nn.functional.normalize(mean, dim=1) * mean.shape[1] ** 0.5
            rows.update(zip(which, unit.float().numpy(), strict=True))
    return np.stack([rows[i] for i in range(len(texts))])
