"""Which forward passes a measurement makes: pieces, dropout masks, kernels, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard import AutoClip
from steelyard.models import Task, build
from steelyard.steps.curvature import measure

D, CLASSES = 4, 3


def losses_of(model, x, y):
    return cross_entropy(model(x), y, reduction="none")


def data(n=7):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(n, D, generator=random, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=random)


@pytest.fixture
def linear():
    torch.manual_seed(1)
    return nn.Linear(D, CLASSES).double()


def test_pieces_are_one_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    x, y = data(11)
    whole = measure(model, losses_of, x, y, probes=3, weighting=AutoClip())
    for size in (4, 11, 100):
        pieces = measure(model, losses_of, x, y, probes=3, weighting=AutoClip(), micro_batch=size)
        for name, value in vars_of(whole).items():
            assert vars_of(pieces)[name] == pytest.approx(value, rel=1e-6), name


def vars_of(landscape):
    return {name: getattr(landscape, name) for name in landscape.__dataclass_fields__}


class Dropped(nn.Module):
    """Losses (2 mask x)^2/2, one mask for each sample: the Hessian is 4 mask, on the diagonal."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.ones(30, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, ones):
        return self.dropout(ones * self.x).square().sum(1) / 2


@pytest.mark.parametrize("size", [None, 1])
def test_dropout_has_one_mask_throughout(size):
    model, ones = Dropped().train(), torch.ones(1, 30).double()
    found = measure(model, lambda m, ones: m(ones), ones, probes=2, micro_batch=size)
    assert 16 * 5 < found.squared_gradient < 16 * 25  # 16 for each number that is not dropped
    # with another mask in another pass, all of these would be smaller
    assert found.gradient_curvature == pytest.approx(4 * found.squared_gradient)
    assert found.trace == pytest.approx(found.squared_gradient / 4)


def test_samples_have_masks_of_their_own():
    model, ones = Dropped().train(), torch.ones(5, 30).double()
    for size in (None, 1):
        found = measure(model, lambda m, ones: m(ones), ones, probes=2, micro_batch=size)
        assert found.spread_curvature > 1
        again = measure(model, lambda m, ones: m(ones), ones, probes=2, micro_batch=size)
        assert found == again
    still = measure(model.eval(), lambda m, ones: m(ones), ones, probes=2)
    assert still.spread_curvature == pytest.approx(0, abs=1e-20)


# -- layers --------------------------------------------------------------------------------------


def along_the_gradient(model, losses_of, *batch):
    """G'HG by finite differences of first gradients, in float64."""
    P = list(model.parameters())

    def gradient():
        return torch.autograd.grad(losses_of(model, *batch).mean(), P, materialize_grads=True)

    G, ends, h = gradient(), [], 1e-4
    for sign in (1, -1):
        with torch.no_grad():
            for p, g in zip(P, G, strict=True):
                p += sign * h * g
        ends.append(gradient())
        with torch.no_grad():
            for p, g in zip(P, G, strict=True):
                p -= sign * h * g
    return sum(float(((a - b) * g).sum()) for a, b, g in zip(*ends, G, strict=True)) / (2 * h)


def token_losses(model, tokens):
    logits = model(tokens[:, :-1]).transpose(1, 2)
    return cross_entropy(logits, tokens[:, 1:], reduction="none").mean(1)


def test_attention_and_recurrent_layers():
    torch.manual_seed(0)
    task = Task(kind="language", shape=(8,), vocabulary=11)
    gpt = build("gpt", task, seed=0, layers=1, width=16, heads=2).double()
    lstm, x = nn.LSTM(D, 3, batch_first=True).double(), torch.randn(5, 4, D).double()
    for model, losses, batch in (
        (gpt, token_losses, torch.randint(11, (3, 9))),
        (lstm, lambda m, x: m(x)[0].square().sum((1, 2)), x),
    ):
        found = measure(model, losses, batch, probes=2, weighting=AutoClip())
        exact = along_the_gradient(model, losses, batch)
        assert found.gradient_curvature == pytest.approx(exact, rel=1e-4)


def test_compiled_modules_run_uncompiled(linear):
    compiled, batch = torch.compile(linear, backend="aot_eager"), data()
    plain = measure(linear, losses_of, *batch, probes=2)
    assert measure(compiled, losses_of, *batch, probes=2) == plain


# -- refusals ------------------------------------------------------------------------------------


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


def test_errors_say_what_to_do(linear):
    model, (x, y) = linear, data()
    with pytest.raises(ValueError, match="one loss per sample, found shape"):
        measure(model, lambda m, x, y: cross_entropy(m(x), y), x, y)
    with pytest.raises(ValueError, match="probes=1"):
        measure(model, losses_of, x, y, probes=1)
    with pytest.raises(ValueError, match="probe='cauchy'"):
        measure(model, losses_of, x, y, probe="cauchy")
    with pytest.raises(ValueError, match="preconditioner has 1 tensors"):
        measure(model, losses_of, x, y, preconditioner=[torch.ones(2)])
    with pytest.raises(ValueError, match="micro-batches of 0"):
        measure(model, losses_of, x, y, micro_batch=0)
    with pytest.raises(ValueError, match="does not depend"):
        measure(model, lambda m, x, y: x.sum(1), x, y)
    with pytest.raises(ValueError, match=r"no second derivative.*once_differentiable"):
        measure(model, lambda m, x, y: losses_of(lambda x: Once.apply(m(x)), x, y), x, y)
    with pytest.raises(ValueError, match=r"no second derivative.*not implemented"):
        measure(model, lambda m, x, y: torch.cdist(m(x), m(x) + 1).sum(1), x, y)
    with pytest.raises(ValueError, match="no trainable parameter"):
        measure(nn.Identity(), losses_of, x, y)
    with pytest.raises(FloatingPointError, match="curvature of the public loss is nan"):
        measure(model, losses_of, x * float("nan"), y)
