"""Ordinary code that once got wrong rows, other values, or a crash, because the engine looked on.

`assert_same` compares with a copy of the model that nobody looks at: losses, gradients, generators,
and the clipped sum from one `autograd.grad` per sample.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def squares(model: nn.Module, *batch: Any) -> Tensor:  # [B]
    return model(*batch).square().flatten(1).sum(1)


def clipped(losses: Tensor, parameters: Sequence[Tensor], bound: float) -> list[Tensor]:
    total = [torch.zeros_like(p) for p in parameters]
    for loss in losses:
        row = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        size = float(torch.stack([g.square().sum() for g in row]).sum().sqrt())
        for into, g in zip(total, row, strict=True):
            into += min(1.0, bound / max(size, 1e-300)) * g
    return total


def assert_same(
    model: nn.Module,
    batches: Sequence[Any],
    losses: Callable[..., Tensor] = squares,
    change: Callable[[int, nn.Module], object] = lambda step, model: None,
) -> PerSample:
    model = model.double()
    plain = copy.deepcopy(model)
    rows = PerSample(model, FlatClip(0.5), expected_batch=1)
    for step, batch in enumerate(batches):
        found = []
        for one in (plain, model):
            change(step, one)
            torch.manual_seed(step)
            random.seed(step)
            found.append(losses(one, *(batch if isinstance(batch, tuple) else (batch,))))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
        gradients = [
            torch.autograd.grad(
                each.sum(), list(one.parameters()), retain_graph=True, allow_unused=True,
                materialize_grads=True,
            )
            for one, each in zip((plain, model), found, strict=True)
        ]  # fmt: skip
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
        before = torch.get_rng_state(), random.getstate()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*the reference engine takes over")
            rows.backward(found[1])
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()
        truth = clipped(found[0], list(plain.parameters()), 0.5)
        torch.testing.assert_close(list(rows.take().tensors), truth, rtol=1e-8, atol=1e-11)
    return rows


class Own(nn.Module):
    """A layer, and own code given by `code(self, h, ...)`."""

    def __init__(self, code: Callable[..., Tensor], **children: nn.Module):
        super().__init__()
        self.stem, self.g = nn.Linear(3, 3), nn.Parameter(torch.randn(3))
        self.code = code
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        return self.code(self, self.stem(x), *more)


class Collects(nn.Linear):
    """Puts what it computes into a list or a dict that the caller gave."""

    def forward(self, x: Tensor, found: Any) -> Tensor:  # type: ignore[override]
        h = torch.tanh(super().forward(x))
        if isinstance(found, list):
            found.append(h)
        else:
            found["h"] = found.get("h", 0) + h
        return h


def collecting(self, h, found):
    h = self.b(self.a(h * self.g, found) * self.g, found)
    return h * self.g + sum(found if isinstance(found, list) else found.values())


def looked_up(self, h):
    with torch.no_grad():
        target = self.inner(h)
    return torch.tanh(self.inner(h) * self.g + target)


OWN_CODE = {
    "a child changes its input in place": lambda: Own(
        lambda self, h: self.last(self.act(h)) * self.g + h,
        act=nn.ReLU(inplace=True), last=nn.Linear(3, 3),
    ),
    "a child's child does": lambda: Own(
        lambda self, h: self.body(h) * self.g + h,
        body=nn.Sequential(nn.SiLU(inplace=True), nn.Linear(3, 3)),
    ),
    "through a view": lambda: Own(
        lambda self, h: self.last(self.act(h[:, 1:])) * self.g + h,
        act=nn.ReLU(inplace=True), last=nn.Linear(2, 3),
    ),
    "own code changes a child's output": lambda: Own(
        lambda self, h: torch.tanh(self.last(h).mul_(2) * self.g), last=nn.Linear(3, 3)
    ),
    "the output changes a child's output": lambda: nn.Sequential(
        Own(lambda self, h: self.last(torch.tanh(h * self.g)), last=nn.Linear(3, 3)),
        nn.ReLU(inplace=True), nn.Linear(3, 2),
    ),
    "a list to fill": lambda: Own(
        lambda self, h: collecting(self, h, []), a=Collects(3, 3), b=Collects(3, 3)
    ),
    "a dict to fill": lambda: Own(
        lambda self, h: collecting(self, h, {}), a=Collects(3, 3), b=Collects(3, 3)
    ),
    "a look without gradients": lambda: Own(
        looked_up, inner=Own(lambda self, h: h * self.g)
    ),
    "python's random numbers": lambda: Own(
        lambda self, h: h * self.g * (2 if random.random() < 0.5 else 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN_CODE)
def test_own_code_is_left_as_it_is(name):
    assert_same(OWN_CODE[name](), [x(5, 3) for _ in range(5)])


def test_a_change_that_autograd_forbids_stays_forbidden():
    """A cut's output has the version counter of what it was cut from."""

    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out, weights = self.mix(x, x, x, average_attn_weights=False)
            return torch.cat([out.flatten(1), weights.mul_(2).flatten(1)], 1)

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Own(lambda self, h: torch.tanh(h * self.g))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).mul_(3)

    for model, data in ((Weights(), x(5, 3, 4)), (Late(), x(5, 3))):
        rows = PerSample(model.double(), FlatClip(), expected_batch=1)
        with pytest.raises(RuntimeError, match="inplace"):
            rows.backward(squares(model, data))


def test_transforms_of_torch_func_run_on_a_watched_model():
    model = nn.Sequential(nn.Linear(3, 4), Own(lambda self, h: h * self.g, stem=nn.Linear(4, 3)))
    rows = PerSample(model, FlatClip(), expected_batch=1)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, x).sum()

    torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, torch.randn(5, 3))
    rows.backward(squares(model, torch.randn(5, 3)))
    assert rows.engine == "book-keeping"


# -- what happens only later ----------------------------------------------------------------------


def masked(self, h, mask=None, where=None):
    h = h if mask is None else h * mask[..., None]
    return torch.tanh((h if where is None else torch.tanh(h + where)) * self.g)


class WithPositions(nn.Module):
    where: Tensor

    def __init__(self, code: Callable[..., Tensor] = masked):
        super().__init__()
        self.inner, self.head = Own(code), nn.Linear(3, 2)
        self.register_buffer("where", torch.randn(9, 3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.inner(x, mask, self.where[: x.shape[1]]))


def mask(B: int, T: int) -> Tensor:
    return (torch.rand(B, T) > 0.4).double()


def test_a_mask_that_comes_later_belongs_to_its_sample():
    later = [(x(5, 4, 3), mask(5, 4)), (x(5, 5, 3), mask(5, 5)), (x(4, 5, 3), mask(4, 5))]
    assert_same(WithPositions(), [x(5, 4, 3)] * 3 + later + [x(6, 6, 3)])


def test_a_length_that_was_the_batch_size_by_chance():
    model = WithPositions(lambda self, h, mask, where: h + where + self.g)
    assert_same(model, [x(4, 4, 3), x(5, 4, 3), x(3, 4, 3)])


@pytest.mark.parametrize("T", [4, 5])
def test_sequence_first_of_any_length(T):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:  # [T, B, d] -> [B, d]
            return self.b(torch.tanh(self.a(x))).mean(0)

    rows = assert_same(Model(), [x(T, 4, 3), x(5, 4, 3), x(4, 4, 3)])
    assert rows.engine == "book-keeping"


def test_another_way_through_the_model_is_proved_too():
    model = Own(lambda self, h: self.head(torch.tanh(h * self.g)), head=nn.Linear(3, 2))

    def losses(model: nn.Module, x: Tensor, whole: bool) -> Tensor:
        found = model(x) if whole else torch.tanh(model.stem(x) * model.g)  # type: ignore[operator]
        return found.square().sum(1)

    assert_same(model, [(x(5, 3), True)] * 4 + [(x(5, 3), False)] * 2, losses)


def test_dropout_that_is_switched_on_later():
    model = Own(lambda self, h: F.dropout(h, 0.5, self.training) * self.g)
    assert_same(model, [x(5, 3)] * 6, change=lambda step, model: model.train(step > 3))


# -- embeddings of positions ----------------------------------------------------------------------

POSITIONS = {
    "added": (lambda p, B: p, True),
    "expanded": (lambda p, B: p.expand(B, -1, -1), True),
    "repeated": (lambda p, B: p.repeat(B, 1, 1), False),
    "normalised": (lambda p, B: p / p.norm(), False),
    "scaled by a sum": (lambda p, B: p * p.sum(), False),
    "picked": (lambda p, B: p[0], False),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_expanded_only_where_that_changes_nothing(name):
    use, fast = POSITIONS[name]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Embedding(9, 3), nn.Embedding(9, 3)
            self.head = nn.Linear(3, 2)

        def forward(self, table: Tensor, tokens: Tensor) -> Tensor:
            position = use(self.position(torch.arange(tokens.shape[1])[None]), len(tokens))
            return self.head(torch.tanh(self.token(tokens) + position + table.sum()))

    batches = [(x(20), torch.randint(0, 9, (B, 4))) for B in (5, 5, 6, 1, 5)]
    rows = assert_same(Model(), batches)
    assert rows.engine == "book-keeping"
    assert (rows._adaptation.layout.places["position.weight"] == "position") == fast
