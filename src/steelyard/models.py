"""Our own small models: `build("cnn" | "mlp" | "vit" | "gpt", task, seed=0)`, seeded.

Every model holds its parameters in Linear, Embedding, Conv2d and LayerNorm only, and computes each
sample from that sample alone: what the one-pass per-sample engine needs.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("image", "text", "features", "language")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model must map to what.

    `shape`: image (H, W, C); features (d,); text and language (context length,).
    `classes`: number of labels, 0 for language; `vocabulary`: number of tokens, else 0.
    Raises: ValueError for another kind.
    """

    kind: Literal["image", "text", "features", "language"]
    shape: tuple[int, ...]
    classes: int = 0
    vocabulary: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown task kind {self.kind!r}: use one of {', '.join(KINDS)}")


def build(name: str, task: Task, *, seed: int, **options: Any) -> nn.Module:
    """The model `name` for `task` on the CPU: weights are a function of (task, options, seed).

    Shapes: cnn, vit: float [B, C, H, W] -> [B, classes]; mlp: float [B, ...] -> [B, classes];
    gpt: int64 [B, T] -> [B, T, vocabulary].
    `options` go to the builder of that name: `cnn`, `mlp`, `vit` or `gpt` below.
    Guarantees: PyTorch's global random state is as before.
    Raises: ValueError for an unknown name, a task the model does not take, sizes that do not fit.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown model {name!r}: {hint}our own models are {', '.join(MODELS)}")
    with seeded(seed), torch.device("cpu"):
        return MODELS[name](task, **options)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generator with `seed` and restore it after; no other generator moves."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed CUDA
        yield


def cnn(task: Task) -> nn.Module:
    """Two tanh convolutions and two linear layers: 26,010 parameters at 28 x 28 x 1, ten classes.

    Source: Papernot et al. 2021 (arXiv:2007.14191); Tramer & Boneh 2021 (arXiv:2011.11660).
    Raises: ValueError for images below 14 x 14.
    """
    _expect("cnn", task, "image")
    height, width, channels = task.shape
    if min(height, width) < 14:
        raise ValueError(
            f"'cnn' needs images of at least 14 x 14, found {height} x {width}: use 'mlp'"
        )
    features = nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=8, stride=2, padding=3),  # [B, 16, 14, 14]
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),  # [B, 16, 13, 13]
        nn.Conv2d(16, 32, kernel_size=4, stride=2),  # [B, 32, 5, 5]
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),  # [B, 32, 4, 4]
        nn.Flatten(),  # [B, 512]
    )
    rows, columns = ((side // 2 - 5) // 2 for side in (height, width))
    hidden = nn.Linear(32 * rows * columns, 32)
    return nn.Sequential(*features, hidden, nn.Tanh(), nn.Linear(32, task.classes))


def mlp(task: Task, *, hidden: tuple[int, ...] = (256,)) -> nn.Module:
    """Linear layers of the widths `hidden` with ReLU between; images are flattened."""
    _expect("mlp", task, "image", "features")
    widths = (math.prod(task.shape), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], task.classes))


class Block(nn.Module):
    """Pre-norm transformer block on [B, T, d]: x += attention(norm x), then x += mlp(norm x)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, d / heads]
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Vision transformer with learned positions and mean pooling: [B, C, H, W] -> [B, classes].

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929), a mean in place of the class token.
    """

    def __init__(self, task: Task, *, layers: int, width: int, heads: int, patch: int) -> None:
        super().__init__()
        height, breadth, channels = task.shape
        self.patches = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.position = nn.Embedding((height // patch) * (breadth // patch), width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, task.classes)
        _initialise(self, layers)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # [B, P, d]
        x = self.blocks(x + self.position(_index(x)))
        return self.head(self.norm(x).mean(1))


class GPT(nn.Module):
    """Decoder-only transformer with learned positions: int64 [B, T] -> [B, T, vocabulary].

    Source: Radford et al. 2019, "Language models are unsupervised multitask learners" (GPT-2).
    Raises: ValueError for sequences beyond the context length.
    """

    def __init__(self, task: Task, *, layers: int, width: int, heads: int, tied: bool) -> None:
        super().__init__()
        self.token = nn.Embedding(task.vocabulary, width)
        self.position = nn.Embedding(task.shape[0], width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, task.vocabulary, bias=False)
        _initialise(self, layers)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length, context = tokens.shape[1], self.position.num_embeddings
        if length > context:
            raise ValueError(
                f"a sequence of {length} tokens: this model's context is {context} tokens"
            )
        x = self.token(tokens) + self.position(_index(tokens))  # [B, T, d]
        return self.head(self.norm(self.blocks(x)))


def vit(
    task: Task, *, layers: int = 6, width: int = 192, heads: int = 3, patch: int = 4
) -> nn.Module:
    """A `ViT`; the patch must divide both sides of the image, the heads the width."""
    _expect("vit", task, "image")
    if any(side % patch for side in task.shape[:2]):
        size = f"{task.shape[0]} x {task.shape[1]}"
        raise ValueError(f"patch {patch} does not divide the image's {size}: choose another patch")
    _expect_heads(width, heads)
    return ViT(task, layers=layers, width=width, heads=heads, patch=patch)


def gpt(
    task: Task, *, layers: int = 6, width: int = 384, heads: int = 6, tied: bool = False
) -> nn.Module:
    """A `GPT` with context `task.shape[0]`; `tied` shares one matrix between embedding and head."""
    _expect("gpt", task, "language")
    _expect_heads(width, heads)
    return GPT(task, layers=layers, width=width, heads=heads, tied=tied)


MODELS: dict[str, Callable[..., nn.Module]] = {"cnn": cnn, "mlp": mlp, "vit": vit, "gpt": gpt}


def _expect(name: str, task: Task, *kinds: str) -> None:
    if task.kind not in kinds:
        use = {"image": "'cnn'", "text": "'minilm'", "features": "'mlp'", "language": "'gpt'"}
        raise ValueError(f"model {name!r} does not take {task.kind} data: use {use[task.kind]}")
    needed = task.vocabulary if task.kind == "language" else task.classes
    if needed < 2:
        what = "tokens" if task.kind == "language" else "classes"
        raise ValueError(f"model {name!r} needs at least 2 {what}, the data has {needed}")


def _expect_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{heads} heads do not divide the width {width}: choose another number")


def _index(x: Tensor) -> Tensor:
    """Positions 0 .. T-1 of x [B, T, ...], one row per sample, as the engine needs them: [B, T]."""
    return torch.arange(x.shape[1], device=x.device).repeat(x.shape[0], 1)


def _initialise(model: nn.Module, layers: int) -> None:
    """GPT-2's: N(0, 0.02^2), into the residual stream N(0, 0.02^2 / (2 layers)), zero biases."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            into_residual = name.endswith((".out", ".down"))
            nn.init.normal_(
                module.weight, std=0.02 / (2 * layers) ** 0.5 if into_residual else 0.02
            )
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def batchnorm_names(model: nn.Module) -> list[str]:
    """Paths of the BatchNorm layers: they mix samples, so no sample has a gradient of its own."""
    return [name for name, module in model.named_modules() if _is_batchnorm(module)]


def replace_batchnorm(model: nn.Module) -> int:
    """Swap every BatchNorm for a GroupNorm in place and return how many layers were swapped.

    The group count is the largest at most 32 that divides the channels. A BatchNorm1d may see
    [B, channels], where a group of one channel is constant: there a group keeps at least 16
    channels, and all channels are one group where that cannot be.
    Guarantees: scale, shift, eps and training mode are kept, a shared layer stays shared; running
    statistics are dropped (they are averages over other samples).
    Raises: ValueError when the model itself is a BatchNorm, or holds a lazy one without sizes.
    """
    swapped: dict[nn.Module, nn.GroupNorm] = {}
    for name in [n for n, m in model.named_modules(remove_duplicate=False) if _is_batchnorm(m)]:
        if not name:
            raise ValueError("the model itself is a BatchNorm layer: put it inside a module")
        old = model.get_submodule(name)
        if old not in swapped:
            swapped[old] = _group_norm(old, name)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, swapped[old])
    return len(swapped)


def _is_batchnorm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _group_norm(old: Any, name: str) -> nn.GroupNorm:
    channels, smallest = old.num_features, 16 if isinstance(old, nn.BatchNorm1d) else 1
    if channels < 1:
        raise ValueError(f"{name!r} is a lazy BatchNorm without sizes yet: run one batch first")
    counts = (k for k in range(min(32, channels), 0, -1) if channels % k == 0)
    groups = next((k for k in counts if channels // k >= smallest), 1)
    new = nn.GroupNorm(groups, channels, eps=old.eps, affine=old.affine)
    if old.affine:
        new.weight, new.bias = old.weight, old.bias
    return new.train(old.training)
