"""The cases of the exactness table that need torch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from .case import B, Case, squares
from .nets import (
    Centred,
    D,
    T,
    V,
    attention,
    bare,
    bilinear,
    cancelling,
    class_token,
    close_pairs,
    embedding,
    encoder,
    flattened,
    half_frozen,
    image,
    in_bfloat16,
    in_place,
    keywords,
    made,
    numbers,
    outside,
    plain,
    positions,
    recomputed,
    recurrent,
    repeated,
    samples_second,
    shared,
    square_tokens,
    then,
    tied,
    tokens,
    twice,
    unreached,
)

EXPLICIT = "with explicit position ids [B, T] Opacus can serve it"
OFFERS = "Opacus offers a layer of its own in its place"


def pictured(name: str, module: Callable[[], nn.Module], **options: Any) -> Case:
    pixels = numbers(2, 6, 6)
    return Case(name=name, model=made(image(module), pixels), input=pixels, **options)


CASES = [
    Case(name="Linear, LayerNorm, GELU", model=plain, input=numbers(D)),
    Case(name="embedding and head tied", model=tied, input=tokens),
    Case(name="one weight in two Linear layers", model=shared, input=numbers(D)),
    Case(name="a layer called twice", model=twice, input=numbers(D)),
    Case(
        name="the model called twice before the losses",
        model=plain,
        input=numbers(D),
        call=lambda model, x: model(x) * model(-x),
    ),
    Case(name="a weight used outside its layer", model=outside, input=numbers(D)),
    Case(name="a layer that sees [T, B, d]", model=samples_second, input=numbers(T, D)),
    Case(
        name="a layer that sees [T, B, d], T = B",
        model=samples_second,
        input=numbers(B, D),
        may_refuse=True,
    ),
    Case(name="a layer that sees [B T, d]", model=flattened, input=numbers(T, D)),
    Case(name="a bare nn.Parameter (scale)", model=bare, input=numbers(T, D)),
    Case(name="class token and positions as nn.Parameter", model=class_token, input=numbers(T, D)),
    Case(name="position ids [1, T]", model=positions(T), input=tokens, note=EXPLICIT),
    Case(name="position ids [1, T], T = B", model=positions(B), input=square_tokens, note=EXPLICIT),
    Case(name="repeated tokens", model=embedding(), input=repeated),
    Case(name="sparse embedding", model=embedding(sparse=True), input=repeated),
    Case(name="padding_idx", model=embedding(padding_idx=1), input=repeated),
    Case(
        name="EmbeddingBag",
        model=lambda: nn.Sequential(nn.EmbeddingBag(V, D), nn.Tanh(), nn.Linear(D, 3)),
        input=repeated,
    ),
    Case(name="weight frozen, bias trained", model=half_frozen, input=numbers(D)),
    Case(
        name="LayerNorm without bias",
        model=then(lambda: nn.LayerNorm(D, bias=False)),
        input=numbers(D),
    ),
    Case(name="RMSNorm (torch)", model=then(lambda: nn.RMSNorm(D)), input=numbers(T, D)),
    Case(name="PReLU", model=then(lambda: nn.PReLU()), input=numbers(D)),
    Case(name="Bilinear", model=bilinear, input=numbers(D)),
    pictured("convolution in groups", lambda: nn.Conv2d(4, 4, 3, groups=2)),
    pictured("convolution, padding='same'", lambda: nn.Conv2d(4, 4, 3, padding="same", dilation=2)),
    pictured(
        "convolution, circular padding",
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ),
    pictured(
        "transposed convolution",
        lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1),
    ),
    pictured("GroupNorm", lambda: nn.GroupNorm(2, 4)),
    pictured("InstanceNorm", lambda: nn.InstanceNorm2d(4, affine=True)),
    pictured("weight normalisation", lambda: weight_norm(nn.Conv2d(4, 4, 3))),
    Case(name="LSTM", model=recurrent(nn.LSTM), input=numbers(T, D), note=OFFERS),
    Case(name="GRU", model=recurrent(nn.GRU), input=numbers(T, D), note=OFFERS),
    Case(name="MultiheadAttention", model=attention, input=numbers(T, D), note=OFFERS),
    Case(name="TransformerEncoderLayer", model=encoder, input=numbers(T, D)),
    Case(name="activation in place", model=in_place, input=numbers(D)),
    Case(name="layer called by keyword", model=keywords, input=numbers(D)),
    Case(name="a layer that the losses do not reach", model=unreached, input=numbers(D)),
    Case(name="activation checkpointing", model=recomputed, input=numbers(D)),
    Case(name="evaluation mode", model=lambda: plain().eval(), input=numbers(D)),
    Case(name="empty batch", model=plain, input=lambda: torch.randn(0, D)),
    Case(name="two micro-batches", model=plain, input=numbers(D), micro=2),
    Case(
        name="bfloat16 autocast",
        model=plain,
        input=numbers(D),
        call=in_bfloat16,
        tolerance=3e-2,
        note="exact up to the rounding of bfloat16",
    ),
    Case(
        name="positions that nearly cancel",
        model=cancelling,
        input=close_pairs,
        tolerance=1e-3,
        note="float32 leaves an error of about 1e-4 in any engine",
    ),
    pictured("BatchNorm", lambda: nn.BatchNorm2d(4), refusal=True),
    Case(
        name="a layer that centres over the batch",
        model=lambda: nn.Sequential(nn.Linear(D, D), Centred(), nn.Tanh(), nn.Linear(D, 3)),
        input=numbers(D),
        refusal=True,
    ),
    Case(
        name="a loss that divides by the batch's own sum",
        model=plain,
        input=numbers(D),
        losses=lambda outputs: squares(outputs) / F.softplus(outputs).sum(),
        refusal=True,
    ),
]
