"""Recording the forward pass: in-place operations, views, re-use, checkpointing, compilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip


def squares(model: nn.Module, *batch: Tensor) -> Tensor:  # [B]
    return model(*batch).square().flatten(1).sum(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def x(B: int, *shape: int) -> Tensor:
    return torch.randn(B, *shape, dtype=torch.float64)


def summed(rows: PerSample) -> dict[str, Tensor]:
    return dict(zip(rows.names, rows.take().tensors, strict=True))


class Inplace(nn.Module):
    """In-place operations on outputs of layers, on views of them, and on sums of them."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(7, 4)
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv, self.norm = nn.Conv1d(4, 4, 1), nn.LayerNorm(4)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.token(tokens)
        h *= 2
        h = self.a(h).relu_()
        h = self.norm(h).mul_(0.5).add_(1)
        y = self.b(h)
        y[:, 0].zero_()  # through a view of the output
        y += h
        z = self.conv(y.transpose(1, 2)).tanh_().transpose(1, 2)
        return self.c(z + 1).sigmoid_()


class Reuse(nn.Module):
    """One output used many times, detached once, and returned as a view."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return (self.b(h) * h + self.b(h.detach()) + h.flip(1)).view(len(x), 2, 2)[:, 0]


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda h: self.drop(torch.tanh(self.b(self.a(h)))), x, use_reentrant=False)
        assert isinstance(h, Tensor)
        return self.c(checkpoint(lambda h: torch.tanh(self.b(h)), h, use_reentrant=False))


class Tripled(torch.autograd.Function):
    """A backward that hands on the very tensor that it received, rewritten in place."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * grad.clone()


class Branches(nn.Module):
    """The same gradient tensor arrives at two outputs (a sum), one through a custom function."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h) + self.c(h) + Tripled.apply(h) + h


MODELS = {
    "in place": (Inplace, lambda: torch.randint(0, 7, (5, 6))),
    "re-used outputs": (Reuse, lambda: x(5, 3)),
    "checkpointed": (Checkpointed, lambda: x(5, 3).requires_grad_()),
    "branches": (Branches, lambda: x(5, 3)),
    "input requires grad": (mlp, lambda: x(5, 3).requires_grad_()),
    "the model is one layer": (lambda: nn.Linear(3, 4), lambda: x(5, 3)),
}


@pytest.mark.parametrize("groups", ["all", "parameter"])
@pytest.mark.parametrize("name", MODELS)
def test_ordinary_pytorch_code_stays_exact(oracle, name, groups):
    build, batch = MODELS[name]
    model, data = build().double(), batch()
    truth = oracle.per_sample(model, squares, data)
    bound = sorted(oracle.norm(row) for row in truth)[2]
    with PerSample(model, FlatClip(bound), expected_batch=1, groups=groups, strict=True) as rows:
        lists = [rows.names] if groups == "all" else [[n] for n in rows.names]
        expected = oracle.clipped_sum(truth, lists, "flat", bound)
        for _ in range(5):  # beyond the batches of the proof
            rows.backward(squares(model, data))
            assert oracle.relative_error(summed(rows), expected, rows.names) < 1e-12


@pytest.mark.filterwarnings("ignore:.*the reference engine takes over")
@pytest.mark.parametrize("compiled_first", [True, False])
@pytest.mark.parametrize("part", ["submodule", "model"])
def test_compiled_modules(oracle, part, compiled_first):
    """Traced code may skip hooks: then the proof must notice, or the rows must be right."""
    inner = mlp()
    model = nn.Sequential(inner, nn.Linear(3, 2).double())
    data = x(5, 3)
    truth = oracle.per_sample(model, squares, data)

    def compiled() -> nn.Module:
        if part == "model":
            return torch.compile(model, backend="eager")  # type: ignore[return-value]
        inner.compile(backend="eager")
        return model

    if compiled_first:
        called = compiled()
        called(data)
        rows = PerSample(called, FlatClip(0.3), expected_batch=1)
    else:
        rows = PerSample(model, FlatClip(0.3), expected_batch=1)
        called = compiled()
    for _ in range(2):
        rows.backward(squares(called, data))
        got = list(rows.take().tensors)
        expected = list(oracle.clipped_sum(truth, [list(truth[0])], "flat", 0.3).values())
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    rows.close()
    torch.compiler.reset()


def test_data_parallel_wrappers_are_refused():
    with pytest.raises(ValueError, match="give the rows the module inside"):
        PerSample(nn.DataParallel(mlp()), FlatClip(), expected_batch=5)
