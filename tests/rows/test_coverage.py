"""Parameters that no rule reaches: the reference engine takes over with a warning, `strict` raises.

Each model hides a trainable parameter from the layer rules in another way; the clipped sum must be
the oracle's all the same.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip


def squares(model: nn.Module, *batch: Tensor) -> Tensor:  # [B]
    return model(*batch).square().flatten(1).sum(1)


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
    "foreign hook": (Hooked, (3,)),
    "chunks of the batch": (Chunked, (3,)),
    "transposed convolution": (lambda: nn.ConvTranspose1d(2, 3, 2), (2, 4)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), (3,)),
    "recurrent": (lambda: First(nn.GRU(3, 4, batch_first=True)), (5, 3)),
}


class First(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def made(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = HIDDEN[name]
    return build().double(), torch.randn(5, *shape, dtype=torch.float64)


@pytest.mark.parametrize("groups", ["all", "parameter"])
@pytest.mark.parametrize("name", HIDDEN)
def test_the_reference_engine_takes_over_and_is_exact(oracle, name, groups):
    model, x = made(name)
    truth = oracle.per_sample(model, squares, x)
    bound = sorted(oracle.norm(row) for row in truth)[2]
    with pytest.warns(UserWarning, match="the reference engine takes over"):  # noqa: PT031
        rows = PerSample(model, FlatClip(bound), expected_batch=1, groups=groups)
        rows.backward(squares(model, x))
    assert rows.engine == "reference"
    got = dict(zip(rows.names, rows.take().tensors, strict=True))
    lists = [rows.names] if groups == "all" else [[name] for name in rows.names]
    expected = oracle.clipped_sum(truth, lists, "flat", bound)
    assert oracle.relative_error(got, expected, rows.names) < 1e-12
    rows.backward(squares(model, x))  # the second batch too, without another word
    again = dict(zip(rows.names, rows.take().tensors, strict=True))
    assert oracle.relative_error(again, expected, rows.names) < 1e-12
    rows.close()


@pytest.mark.parametrize("name", HIDDEN)
def test_strict_raises_and_names_what_is_wrong(name):
    model, x = made(name)
    with pytest.raises(ValueError, match=r"strict"):  # noqa: PT012  # at once or on the first batch
        rows = PerSample(model, FlatClip(), expected_batch=1, strict=True)
        rows.backward(squares(model, x))


def test_a_layer_reached_only_later_is_proven_then(oracle):
    """A branch not taken in the first batches must not pass as proven."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.late, self.on = nn.Linear(3, 4), nn.Linear(3, 4), False

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return y + F.linear(x, self.late.weight) if self.on else y

    model = Late().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    rows = PerSample(model, FlatClip(0.5), expected_batch=1)
    rows.backward(squares(model, x))
    rows.take()
    model.on = True
    truth = oracle.per_sample(model, squares, x)
    rows.discard()
    with pytest.warns(UserWarning, match="the reference engine takes over"):
        rows.backward(squares(model, x))
    got = dict(zip(rows.names, rows.take().tensors, strict=True))
    expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.5)
    assert oracle.relative_error(got, expected, rows.names) < 1e-12
