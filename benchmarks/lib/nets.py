"""Small models for the cases of the exactness table, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .case import B, Net

T, D, V = 5, 4, 7  # positions, width, vocabulary


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(B, *shape)


def tokens() -> Tensor:
    return torch.randint(0, V, (B, T))


def square_tokens() -> Tensor:
    """As many positions as samples: the two cannot be told apart by their number."""
    return torch.randint(0, V, (B, B))


def repeated() -> Tensor:
    return torch.randint(0, 2, (B, 8))


def then(module: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A layer after others, so that its input has a gradient."""
    return lambda: nn.Sequential(nn.Linear(D, D), nn.Tanh(), module(), nn.Flatten())


def image(module: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), module(), nn.Flatten(), nn.LazyLinear(3)
    )


def made(build: Callable[[], nn.Module], x: Callable[[], Tensor]) -> Callable[[], nn.Module]:
    """Lazy layers get their shape from one forward pass."""

    def make() -> nn.Module:
        model = build()
        with torch.no_grad():
            model(x())
        return model

    return make


def tied() -> nn.Module:
    token, head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
    head.weight = token.weight
    return Net(
        lambda m, x: m.head(m.norm(m.token(x))), token=token, norm=nn.LayerNorm(D), head=head
    )


def shared() -> nn.Module:
    first, second = nn.Linear(D, D), nn.Linear(D, D)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def twice() -> nn.Module:
    return Net(lambda m, x: m.layer(torch.tanh(m.layer(x))), layer=nn.Linear(D, D))


def bare() -> nn.Module:
    return Net(
        lambda m, x: m.layer(x * m.scale), layer=nn.Linear(D, 3), scale=nn.Parameter(torch.randn(D))
    )


def class_token() -> nn.Module:
    return Net(
        lambda m, x: m.head(torch.cat([m.token.expand(len(x), -1, -1), m.patch(x)], 1) + m.place),
        patch=nn.Linear(D, D),
        token=nn.Parameter(torch.randn(1, 1, D)),
        place=nn.Parameter(torch.randn(1, T + 1, D)),
        head=nn.Linear(D, 3),
    )


def positions(length: int) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.head(
            m.norm(m.token(x) + m.place(torch.arange(length, device=x.device)[None]))
        ),
        token=nn.Embedding(V, D),
        place=nn.Embedding(length, D),
        norm=nn.LayerNorm(D),
        head=nn.Linear(D, 3),
    )


def embedding(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Embedding(V, D, **options), nn.Tanh(), nn.Linear(D, 3))


def half_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 3))
    model[0].weight.requires_grad_(False)
    return model


def recurrent(kind: type[nn.LSTM] | type[nn.GRU]) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.head(m.memory(x)[0]),
        memory=kind(D, D, num_layers=2, batch_first=True),
        head=nn.Linear(D, 3),
    )


def attention() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.attend(x, x, x, need_weights=False)[0]),
        attend=nn.MultiheadAttention(D, 2, batch_first=True),
        head=nn.Linear(D, 3),
    )


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, batch_first=True)


def in_place() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


def unreached() -> nn.Module:
    return Net(lambda m, x: m.used(x), used=nn.Linear(D, 3), spare=nn.Linear(D, 3))


def keywords() -> nn.Module:
    return Net(lambda m, x: m.b(input=torch.tanh(m.a(x))), a=nn.Linear(D, D), b=nn.Linear(D, 3))


def recomputed() -> nn.Module:
    return Net(
        lambda m, x: m.head(checkpoint(m.block, m.first(x), use_reentrant=False)),
        first=nn.Linear(D, D),
        block=nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)),
        head=nn.Linear(D, 3),
    )


def samples_second() -> nn.Module:
    return Net(
        lambda m, x: m.head(torch.tanh(m.layer(x.transpose(0, 1)).transpose(0, 1))),
        layer=nn.Linear(D, D),
        head=nn.Linear(D, 3),
    )


def flattened() -> nn.Module:
    return Net(
        lambda m, x: m.head(torch.tanh(m.layer(x.flatten(0, 1)).view(x.shape))),
        layer=nn.Linear(D, D),
        head=nn.Linear(D, 3),
    )


def outside() -> nn.Module:
    return Net(lambda m, x: F.linear(torch.tanh(m.layer(x)), m.layer.weight), layer=nn.Linear(D, D))


def in_bfloat16(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(x)
    return outputs.float()


def apart(net: Any, x: Tensor) -> Tensor:
    first, second = net.layer(x).unbind(1)
    return first - second


def cancelling() -> nn.Module:
    return Net(apart, layer=nn.Linear(D, 3, bias=False))


def close_pairs() -> Tensor:
    one = 100 * torch.randn(B, 1, D)
    return torch.cat([one, one + 0.1 * torch.randn(B, 1, D)], 1)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3))


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def bilinear() -> nn.Module:
    return Net(
        lambda m, x: m.pair(torch.tanh(m.layer(x)), x),
        layer=nn.Linear(D, D),
        pair=nn.Bilinear(D, D, 3),
    )
