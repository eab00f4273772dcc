"""Models that hide a trainable parameter from the layer rules, each in another way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.temperature = nn.Parameter(torch.tensor(1.5))  # no dimension at all

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) / self.temperature


class Functional(nn.Module):
    """Uses its layer's weight once by the layer, and once behind its back."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.body(x)), self.body.weight)


class OnlyFunctional(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.body.weight, self.body.bias)


class Regularised(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.body.weight.square().sum()


class Attention(nn.Module):
    """The projection's weight is passed to a function; its own forward is never called."""

    def __init__(self, *, frozen_input: bool):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.attention.in_proj_weight.requires_grad_(not frozen_input)
        self.attention.in_proj_bias.requires_grad_(not frozen_input)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class Gated(nn.Linear):
    """A subclass with a forward of its own: the rule of its parent is not its rule."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.bias


class Hooked(nn.Module):
    """Somebody's hook changes what the layer returns."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.body.register_forward_hook(lambda module, args, output: 2 * output.square())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Nested(nn.Module):
    """Own code inside own code, with layers between."""

    def __init__(self):
        super().__init__()
        self.token = ClassToken()
        self.scale = nn.Parameter(torch.randn(3))
        self.body = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.tanh(self.token(x * self.scale))) * self.scale.sum()


class ClassToken(nn.Module):
    """As in vision transformers: a token in front, positions added, then layers."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.position = nn.Parameter(torch.randn(1, 7, 3))
        self.project, self.drop = nn.Linear(3, 3), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.project(x)], dim=1)
        return self.drop(x + self.position)


class Positions(nn.Module):
    """An embedding of positions that never sees the batch dimension."""

    def __init__(self):
        super().__init__()
        self.position, self.blocks = nn.Embedding(8, 3), nn.ModuleList([nn.Linear(3, 3)] * 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x


class Listed(nn.Module):
    """Parameters in containers, which have no forward of their own."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(3)) for _ in range(2)])
        self.shift = nn.ParameterDict({"a": nn.Parameter(torch.randn(4))})
        self.body = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * self.scales[0] + self.scales[1]) + self.shift["a"]


class Branching(nn.Module):
    """Code that asks for a number: `vmap` cannot follow, the samples take turns."""

    def __init__(self):
        super().__init__()
        self.scale, self.body = nn.Parameter(torch.randn(4)), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return h * self.scale if float(h.detach().abs().sum()) > 0 else h


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = Scaled(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.tanh(self.last(self.inner(x))))


class TiedBare(nn.Module):
    """A layer's weight that is another module's bare parameter."""

    def __init__(self):
        super().__init__()
        self.body, self.other = nn.Linear(3, 3), Bare()
        self.other.weight = self.body.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(torch.tanh(self.body(x)))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class SequenceFirst(nn.Module):
    """[T, B, d] inside: the sample is the second dimension."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        self.mix = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x.transpose(0, 1)))
        return self.b(h + self.mix(h, h, h, need_weights=False)[0]).transpose(0, 1)


class Noisy(nn.Module):
    """Own code that draws random numbers: running it again would draw others."""

    def __init__(self):
        super().__init__()
        self.scale, self.body = nn.Parameter(torch.randn(4)), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return h * self.scale + 0 * torch.randn_like(h)


class Chunked(nn.Module):
    """The layer sees two samples at a time."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(part) for part in x.split(2)])


HIDDEN = {
    "bare parameter": (Scaled, (3,)),
    "scalar parameter": (Temperature, (3,)),
    "functional use": (Functional, (3,)),
    "functional use only": (OnlyFunctional, (3,)),
    "regularised": (Regularised, (3,)),
    "attention": (lambda: Attention(frozen_input=False), (5, 4)),
    "attention, output only": (lambda: Attention(frozen_input=True), (5, 4)),
    "own forward": (lambda: Gated(3, 4), (3,)),
    "chunks of the batch": (Chunked, (3,)),
    "transposed convolution": (lambda: nn.ConvTranspose1d(2, 3, 2), (2, 4)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), (3,)),
    "recurrent": (lambda: First(nn.GRU(3, 4, batch_first=True)), (5, 3)),
    "nested own code": (Nested, (6, 3)),
    "class token": (ClassToken, (6, 3)),
    "positions without batch": (Positions, (6, 3)),
    "parameter list": (Listed, (3,)),
    "data-dependent code": (Branching, (3,)),
    "one own code called twice": (Twice, (3,)),
    "tied to a layer": (TiedBare, (3,)),
    "sequence first": (SequenceFirst, (6, 3)),
}
# no module's own code can answer for these
BEYOND = {
    "foreign hook": (Hooked, (3,)),
    "random own code": (Noisy, (3,)),
}


class First(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def made(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = (HIDDEN | BEYOND)[name]
    return build().double(), torch.randn(5, *shape, dtype=torch.float64)
