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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x)))) * self.scale


@pytest.mark.parametrize("compiled_first", [True, False])
@pytest.mark.parametrize("part", ["blocks", "model"])
def test_compiled_modules_stay_exact_and_fast(oracle, part, compiled_first):
    """Layers inside compiled code keep their hooks; what lies between them is compiled."""
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(3, 4), Block(), Block(), nn.Linear(4, 2)).double()
    data = x(5, 6, 3)
    truth = oracle.per_sample(model, squares, data)
    expected = list(oracle.clipped_sum(truth, [list(truth[0])], "flat", 0.3).values())
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    def compiled() -> nn.Module:
        if part == "model":
            return torch.compile(model, backend=counting)  # type: ignore[return-value]
        for block in model[1:3]:
            block.compile(backend=counting)
        return model

    if compiled_first:
        called = compiled()
        squares(called, data).sum().backward()  # compiled without the hooks
        model.zero_grad()
        rows = PerSample(called, FlatClip(0.3), expected_batch=1, strict=True)
    else:
        rows = PerSample(model, FlatClip(0.3), expected_batch=1, strict=True)
        called = compiled()
    for _ in range(5):
        rows.backward(squares(called, data))
        for one, other in zip(rows.take().tensors, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert rows.engine == "book-keeping"
    assert graphs
    rows.close()
    squares(called, data).sum().backward()  # and without the rows it is plain again
    torch.compiler.reset()


class Deep(nn.Module):
    """Blocks, checkpointed or not."""

    def __init__(self, *, checkpointed: bool):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)  # type: ignore[assignment]
        return self.last(x)


def saved_bytes(model: nn.Module, data: Tensor) -> int:
    """What the graph of a forward pass keeps (inside a checkpointed part: nothing)."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        losses = squares(model, data)
    assert losses.requires_grad
    return sum(kept.values())


def test_checkpointing_saves_memory_with_the_rows_too(oracle):
    torch.manual_seed(0)
    model, data = Deep(checkpointed=True).double(), x(5, 50, 3)
    plain = saved_bytes(model, data)
    rows = PerSample(model, FlatClip(0.3), expected_batch=1, strict=True)
    assert saved_bytes(model, data) <= 1.05 * plain
    truth = oracle.per_sample(model, squares, data)
    expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.3)
    for _ in range(5):
        rows.backward(squares(model, data))
        assert oracle.relative_error(summed(rows), expected, rows.names) < 1e-12
    model.checkpointed = False
    assert saved_bytes(model, data) > 2 * plain


def test_reentrant_checkpointing_is_refused_in_words():
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=1)
    h = checkpoint(model, x(5, 3).requires_grad_(), use_reentrant=True)
    with pytest.raises((ValueError, RuntimeError), match="use_reentrant"):
        rows.backward(h.square().sum(1))  # type: ignore[union-attr]
    assert not rows.armed


def test_data_parallel_wrappers_are_refused():
    with pytest.raises(ValueError, match="give the rows the module inside"):
        PerSample(nn.DataParallel(mlp()), FlatClip(), expected_batch=5)


def test_bags_with_a_last_offset_have_one_more_offset_than_samples(oracle):
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(7, 3, include_last_offset=True), nn.Linear(3, 2)

        def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
            return self.head(torch.tanh(self.bag(tokens, offsets)))

    model = Bags().double()
    tokens, offsets = torch.randint(0, 7, (9,)), torch.tensor([0, 2, 5, 5, 9])
    rows = PerSample(model, FlatClip(0.3), expected_batch=1, strict=True)
    for _ in range(4):
        losses = squares(model, tokens, offsets)
        truth = []
        for loss in losses:
            found = torch.autograd.grad(loss, rows.parameters, retain_graph=True)
            truth.append(dict(zip(rows.names, found, strict=True)))
        expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.3)
        rows.backward(losses)
        assert oracle.relative_error(summed(rows), expected, rows.names) < 1e-12
