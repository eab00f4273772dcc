"""What the self-check runs on: batches of any structure, nothing left behind, one-line refusals."""

from __future__ import annotations

import copy
import random
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.checks.self_check import check
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

B = 6


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("later", None)
        self.drop.eval()  # a mode of its own
        self.frozen = nn.Linear(4, 4).eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.later = torch.ones(2)
        return self.b(self.drop(torch.tanh(self.a(self.frozen(x)))))


def losses_of_model(model: nn.Module):
    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        scale = 1 + 0 * random.random() + 0 * float(np.random.rand())  # noqa: NPY002
        return scale * F.cross_entropy(model(x), y, reduction="none")

    return losses_of


def points() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 4), torch.randint(0, 3, (B,))


def checked(model, losses_of, *batch, weighting=FlatClip(0.5), **options):  # noqa: B008
    with PerSample(model, weighting, expected_batch=4) as rows:
        return check(rows, model, losses_of, batch, **options)


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(fails):
    model, (x, y) = Model(), points()
    model.a.weight.grad = torch.full((8, 4), 2.0)
    grad, later, modes = model.a.weight.grad, model.later, [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    batch = x.clone(), y.clone()

    def drawn() -> tuple:
        return torch.rand(2).tolist(), random.random(), np.random.rand()  # noqa: NPY002

    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    expected = drawn()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    if fails:
        with pytest.raises(ValueError, match="one per sample"):
            checked(model, lambda x, y: F.cross_entropy(model(x), y), x, y)
    else:
        checked(model, losses_of_model(model), x, y)
    assert drawn() == expected
    assert model.later is later
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(),
                                                 strict=True))  # fmt: skip
    assert [p._version for p in model.parameters()] == versions
    assert model.a.weight.grad is grad
    assert grad.eq(2).all()
    assert model.b.weight.grad is None
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(batch[0], x)
    assert torch.equal(batch[1], y)


def test_the_rows_can_go_on():
    model, (x, y) = Model(), points()
    rows = PerSample(model, FlatClip(0.5), expected_batch=4)
    rows.backward(losses_of_model(model)(x, y))
    before = rows.take()
    check(rows, model, losses_of_model(model), (x, y))
    assert not rows.armed
    rows.backward(losses_of_model(model)(x, y))
    after = rows.take()
    assert all(torch.equal(a, b) for a, b in zip(before.tensors, after.tensors, strict=True))


def test_the_rows_are_left_without_a_forward():
    class Spied(PerSample):
        dirty = False

        def discard(self) -> None:
            self.dirty = False
            super().discard()

    model = Model()
    with Spied(model, FlatClip(0.5), expected_batch=4) as rows:
        model.register_forward_hook(lambda *_: setattr(rows, "dirty", True))
        check(rows, model, losses_of_model(model), points())
        assert not rows.dirty


@dataclass
class Record:
    x: Tensor
    y: Tensor
    name: str = "batch"


Pair = namedtuple("Pair", ["x", "y"])
BATCHES = {
    "mapping": lambda x, y: {"x": x, "y": y, "names": ["a", "b"], "scale": torch.ones(3)},
    "dataclass": Record,
    "namedtuple": Pair,
    "nested": lambda x, y: [{"x": x}, (y, 1.0, None)],
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_any_structure(name):
    model = Model()
    seen = []

    def losses_of(batch) -> Tensor:
        if name == "mapping":
            x, y = batch["x"], batch["y"]
            assert batch["names"] == ["a", "b"]
            assert batch["scale"].shape == (3,)  # passed on as it is
        elif name == "nested":
            x, y = batch[0]["x"], batch[1][0]
            assert batch[1][1:] == (1.0, None)
        else:
            x, y = batch.x, batch.y
        seen.append(len(x))
        return F.cross_entropy(model(x), y, reduction="none")

    assert checked(model, losses_of, BATCHES[name](*points())).passed
    assert set(seen) == {B, B - 1, B // 2}


def test_dropout_is_the_same_in_runs_of_one_shape_and_off_in_others():
    model = Model()
    model.drop.train()
    modes: dict[int, set[bool]] = {}

    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        modes.setdefault(len(x), set()).add(model.drop.training)
        return F.cross_entropy(model(x), y, reduction="none")

    result = checked(model, losses_of, *points())
    assert result.passed, str(result)
    assert modes == {B: {True, False}, B - 1: {False}, B // 2: {False}}
    assert "in eval mode" in result.findings[2].text
    assert model.drop.training


def test_randomness_that_the_losses_do_not_show():
    """The loss is constant, whatever the dropout masks; the gradients, all rounding, are not."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.LayerNorm(8))
    result = checked(model, lambda x, y: model(x).square().sum(1), *points())
    assert "in eval mode" in result.findings[2].text


def test_losses_that_are_always_random():
    """A noise drawn in every forward, as diffusion models and auto-encoders do."""
    model = Model()
    sizes = set()

    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        sizes.add(len(x))
        return F.cross_entropy(model(x + torch.randn_like(x)), y, reduction="none")

    result = checked(model, losses_of, *points())
    assert result.passed, str(result)
    assert sizes == {B}
    assert "its loss counted zero times" in result.findings[2].text
    assert 0.9 < result.findings[2].figures["ratio"] <= 1.001
    assert "was not tested" in result.findings[3].text


def test_extreme_inputs_that_are_refused_are_counted():
    model = Model()

    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        if x.abs().max() > 100:
            raise RuntimeError("out of range")
        return F.cross_entropy(model(x), y, reduction="none")

    found = checked(model, losses_of, *points()).findings[2]
    assert found.passed
    assert found.figures["refused"] == B
    found = checked(model, losses_of_model(model), *points(), extreme=1e38).findings[2]
    assert found.figures["refused"] + B * found.figures["extreme"] > 0


def test_an_infinite_bound_fails():
    model = Model()
    result = checked(model, losses_of_model(model), *points(), weighting=FlatClip(float("inf")))
    assert [f.name for f in result.findings if not f.passed] == ["sensitivity"]
    assert "the bound is infinite" in result.findings[2].text


# -- refusals ---------------------------------------------------------------------------------


def wild(model):
    generator = torch.Generator()
    return lambda x, y: losses_of_model(model)(x, y) * torch.rand((), generator=generator)


def hidden(model):
    x, y = points()
    return lambda _: losses_of_model(model)(x, y)


REFUSED = {
    "scalar": (lambda m: lambda x, y: F.cross_entropy(m(x), y), points, r"shape \[B\].*found \[\]"),
    "not cut": (hidden, lambda: (torch.zeros(2),), "no tensor of the batch has 6"),
    "one sample": (losses_of_model, lambda: tuple(t[:1] for t in points()), "2 or more, not 1"),
    "not finite": (losses_of_model, lambda: (torch.full((B, 4), torch.nan), points()[1]),
                   "the loss of sample 0 is nan"),
    "no graph": (lambda m: lambda x, y: x.sum(1), points, "do not depend"),
    "not repeatable": (wild, points, "make it repeatable"),
    "fixed size": (lambda m: lambda x, y: losses_of_model(m)(x.view(B, 4), y), points,
                   r"failed on 5 of the 6 samples \(RuntimeError.*any size"),
    "fixed losses": (lambda m: lambda x, y: F.pad(losses_of_model(m)(x, y), (0, B - len(x))),
                     points, r"shape \[5\], found \[6\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_use_is_refused_in_one_line(name):
    loss, batch, message = REFUSED[name]
    model = Model()
    with pytest.raises(ValueError, match=message) as caught:
        checked(model, loss(model), *batch())
    assert "\n" not in str(caught.value)


def test_rows_that_are_armed_or_of_another_model_are_refused():
    model, (x, y) = Model(), points()
    with PerSample(model, FlatClip(), expected_batch=4) as rows:
        rows.backward(losses_of_model(model)(x, y))
        with pytest.raises(ValueError, match=r"optimizer.step\(\) or rows.discard\(\)"):
            check(rows, model, losses_of_model(model), (x, y))
        assert rows.armed
        rows.discard()
        other = Model()
        with pytest.raises(ValueError, match="not made for this model"):
            check(rows, other, losses_of_model(other), (x, y))
        with pytest.raises(ValueError, match="at least one sample to leave out, found 0"):
            check(rows, model, losses_of_model(model), (x, y), samples=0)
        with pytest.raises(ValueError, match=r"found a Tensor: write \(batch,\)"):
            check(rows, model, losses_of_model(model), x)
