"""The blocks of family.py's random models.

A block maps a sample to one of another shape: vectors (d,), sequences (T, d) or images (C, H, W).
`block(draw, shape)` gives a module that takes [B, *shape], or None where the shape does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

BOOL, WIDTH = st.booleans(), st.sampled_from([4, 2, 3, 5])
# samples; a first dimension that is no sample has more, or nothing could tell them apart
LARGEST = 6
EPS = st.sampled_from([1e-3, 0.1])
Draw = Callable[[st.SearchStrategy], Any]
Shape = tuple[int, ...]


def one_of(draw: Draw, *values: Any) -> Any:
    return draw(st.sampled_from(values))


class Apply(nn.Module):
    """`act(x, *children, *parameters)`: modules whose own code is a function of its own."""

    def __init__(self, act: Callable[..., Tensor], *children: nn.Module, **shapes: Shape):
        super().__init__()
        self.act, self.inner = act, nn.ModuleList(children)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x, *self.inner, *self._parameters.values())

    def extra_repr(self) -> str:
        return getattr(self.act, "__name__", "")


class Listed(nn.Module):
    """Parameters in a container, which has no forward."""

    def __init__(self, d: int):
        super().__init__()
        self.own = nn.ParameterList([nn.Parameter(torch.randn(d)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.own[0] + self.own[1]


def linear(draw: Draw, shape: Shape) -> nn.Module:
    return nn.Linear(shape[-1], draw(WIDTH), bias=draw(BOOL))


def layer_norm(draw: Draw, shape: Shape) -> nn.Module | None:
    if shape[-1] < 3:  # little is left of so few numbers, but rounding
        return None
    dims = draw(st.integers(1, len(shape)))
    return nn.LayerNorm(list(shape[-dims:]), eps=draw(EPS), bias=draw(BOOL))


def rms_norm(draw: Draw, shape: Shape) -> nn.Module | None:
    if shape[-1] < 2:
        return None
    return nn.RMSNorm(shape[-1], eps=draw(EPS))


def on_channels(shape: Shape, make: Callable[[int, int], nn.Module]) -> nn.Module:
    """make(channels, spatial dimensions), with the channels of a sequence moved to the front."""
    inner = make(shape[0] if len(shape) == 3 else shape[-1], len(shape) - 1)
    if len(shape) != 2:
        return inner
    return Apply(lambda x, inner: inner(x.transpose(1, 2)).transpose(1, 2), inner)


def group_norm(draw: Draw, shape: Shape) -> nn.Module:
    def make(c: int, dims: int) -> nn.Module:
        groups = one_of(draw, *(g for g in (1, 2) if c % g == 0 and (dims or c > 2 * g)), 1)
        return nn.GroupNorm(groups, c, eps=draw(EPS))

    return on_channels(shape, make)


def instance_norm(draw: Draw, shape: Shape) -> nn.Module:
    def make(c: int, dims: int) -> nn.Module:
        inner = [nn.InstanceNorm1d, nn.InstanceNorm2d][dims - 1](c, eps=draw(EPS), affine=True)
        # torch 2.13 gives wrong gradients for one sample and a channels-last output gradient
        return Apply(lambda x, inner: inner(x).flatten().view_as(x), inner)

    return on_channels(shape, make)


def convolution(draw: Draw, shape: Shape) -> nn.Module:
    def make(c: int, dims: int) -> nn.Module:
        groups = one_of(draw, *(g for g in (1, 2) if c % g == 0))
        padding, stride = one_of(draw, 0, 1, 2, "same"), draw(st.integers(1, 2))
        return [nn.Conv1d, nn.Conv2d][dims - 1](
            c,
            groups * draw(st.integers(1, 2)),
            tuple(draw(st.integers(1, 3)) for _ in range(dims)),  # type: ignore[arg-type]
            stride=1 if padding == "same" else stride,
            padding=padding,
            dilation=draw(st.integers(1, 2)),
            groups=groups,
            bias=draw(BOOL),
            padding_mode=one_of(draw, "zeros", "circular", "reflect", "replicate"),
        )

    return on_channels(shape, make)


def transposed(draw: Draw, shape: Shape) -> nn.Module:
    def make(c: int, dims: int) -> nn.Module:
        groups, stride = one_of(draw, *(g for g in (1, 2) if c % g == 0)), draw(st.integers(1, 2))
        return [nn.ConvTranspose1d, nn.ConvTranspose2d][dims - 1](
            c,
            groups * draw(st.integers(1, 2)),
            draw(st.integers(1, 3)),
            stride=stride,
            padding=draw(st.integers(0, 1)),
            output_padding=draw(st.integers(0, stride - 1)),
            groups=groups,
            bias=draw(BOOL),
        )

    return on_channels(shape, make)


def attention(draw: Draw, shape: Shape) -> nn.Module:
    d, first, weights = shape[1], draw(BOOL), draw(BOOL)
    kind = one_of(draw, "self", "memory", "narrow memory", "crossed")
    narrow = d - 1 if kind == "narrow memory" else d
    inner = nn.MultiheadAttention(
        d, 2 if d % 2 == 0 else 1, bias=draw(BOOL), kdim=narrow, vdim=narrow, batch_first=first,
        add_bias_kv=draw(BOOL), add_zero_attn=draw(BOOL),
    )  # fmt: skip
    mask = torch.ones(shape[0], shape[0]).triu(1).bool() if kind == "self" and draw(BOOL) else None

    def attend(x: Tensor, inner: nn.Module) -> Tensor:
        memory = x[:, :2, :narrow]
        sources = {"self": (x, x, x), "crossed": (x, x.flip(1), torch.tanh(x))}.get(
            kind, (x, memory, memory)
        )
        sources = sources if first else [s.transpose(0, 1) for s in sources]
        if kind == "self" and not first:
            sources = [sources[0]] * 3
        y, seen = inner(*sources, need_weights=weights, attn_mask=mask)
        y = y if first else y.transpose(0, 1)
        return x + (y * (1 + seen.square().sum(2, keepdim=True)) if weights else y)

    return Apply(attend, inner)


def recurrent(draw: Draw, shape: Shape) -> nn.Module:
    kind, first, last = one_of(draw, nn.RNN, nn.LSTM, nn.GRU), draw(BOOL), draw(BOOL)
    options: dict[str, Any] = {"proj_size": 2} if kind is nn.LSTM and draw(BOOL) else {}
    if kind is nn.RNN:
        options["nonlinearity"] = one_of(draw, "tanh", "relu")
    inner = kind(
        shape[1], 3, num_layers=draw(st.integers(1, 2)), bidirectional=draw(BOOL), bias=draw(BOOL),
        batch_first=first, **options,
    )  # fmt: skip

    def run(x: Tensor, inner: nn.Module) -> Tensor:
        y, state = inner(x if first else x.transpose(0, 1))
        state = state[0] if isinstance(state, tuple) else state
        y = y if first else y.transpose(0, 1)
        return y + state.mean((0, 2))[:, None, None] if last else y

    return Apply(run, inner)


def time_first(draw: Draw, shape: Shape) -> nn.Module:
    """[T, B, d] inside, with T > B."""
    inner = one_of(draw, linear, layer_norm, rms_norm)(draw, shape[1:]) or linear(draw, shape)

    def run(x: Tensor, inner: nn.Module) -> Tensor:
        longer = x.repeat(1, LARGEST // x.shape[1] + 1, 1)
        return inner(longer.transpose(0, 1)).transpose(0, 1)

    return Apply(run, inner)


def own(draw: Draw, shape: Shape) -> nn.Module:
    """Bare parameters in own code."""
    d = shape[-1]
    scaled = one_of(draw, linear, layer_norm)(draw, shape) or nn.Identity()
    choices = {
        "scale": lambda: Apply(lambda x, p: x * p, p=(d,)),
        "no dimension": lambda: Apply(lambda x, p: x / (1 + p * p), p=()),
        "shift": lambda: Apply(lambda x, p: F.gelu(x + p), p=(1, *shape)),
        "list": lambda: Listed(d),
        "channel scale": lambda: Apply(lambda x, p: x * p, p=(shape[0], *[1] * (len(shape) - 1))),
        "around a layer": lambda: Apply(lambda x, inner, p: p * inner(x) + p, scaled, p=(1,)),
        "matrix": lambda: Apply(lambda x, p: x @ p, p=(d, d)),
    }
    if len(shape) == 2:
        choices["class token"] = lambda: Apply(
            lambda x, p: torch.cat([p.expand(len(x), -1, -1), x], 1), p=(1, 1, d)
        )
    if len(shape) == 2 and shape[0] > LARGEST:
        choices["positions"] = lambda: Apply(
            lambda x, inner: x + inner(torch.arange(x.shape[1])), nn.Embedding(shape[0] + 1, d)
        )
        choices["positions [1, T]"] = lambda: Apply(
            lambda x, inner: x + inner(torch.arange(x.shape[1])[None]), nn.Embedding(shape[0], d)
        )
    return choices[one_of(draw, *choices)]()


def adapter(draw: Draw, shape: Shape) -> nn.Module:
    base, rank = nn.Linear(shape[-1], draw(WIDTH)).requires_grad_(False), draw(st.integers(1, 2))
    down = nn.Linear(shape[-1], rank, bias=False)
    up = nn.Linear(rank, base.out_features, bias=False)
    up.starts_at_zero = draw(BOOL)  # as adapters do; then the gradient of `down` is zero
    return Apply(lambda x, base, down, up: base(x) + 0.5 * up(down(x)), base, down, up)


def shared(draw: Draw, shape: Shape) -> nn.Module:
    """A layer's weight used again: by another layer, by a bare parameter, behind its back."""
    d = shape[-1]
    one, other = nn.Linear(d, d), nn.Linear(d, d, bias=draw(BOOL))
    bare = Apply(lambda x, p: x @ p, p=(d, d))
    kind = one_of(draw, "two layers", "bare", "functional")
    if kind == "functional":
        return Apply(lambda x, one: F.linear(torch.tanh(one(x)), one.weight), one)
    if kind == "bare":
        bare.p = one.weight  # type: ignore[assignment]
    other.weight = one.weight
    second = bare if kind == "bare" else other
    return Apply(lambda x, one, second: second(torch.tanh(one(x))), one, second)


def positions_last(draw: Draw, shape: Shape) -> nn.Module:
    """An image becomes a sequence of its pixels."""
    return Apply(lambda x: x.flatten(2).transpose(1, 2))


ANY = (1, 2, 3)
BLOCKS = {  # with the numbers of dimensions of a sample that they serve
    **dict.fromkeys([linear, layer_norm, rms_norm, group_norm, own, adapter, shared], ANY),
    **dict.fromkeys([instance_norm, convolution, transposed], (2, 3)),
    **dict.fromkeys([attention, recurrent, time_first], (2,)),
    positions_last: (3,),
}


def residual(x: Tensor, inner: nn.Module) -> Tensor:
    y = inner(x)
    return x + y if y.shape == x.shape else y


def twice(x: Tensor, inner: nn.Module) -> Tensor:
    y = inner(x)
    return inner(torch.tanh(y)) if y.shape == x.shape else y


WRAPS = [residual, twice]
