"""Probes leave no trace, see the same thing at every point, and add up over parts and ranks."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from steelyard.steps.displacements import Displacements
from steelyard.steps.probing import Evaluator, design, micro_batches, probe
from steelyard.steps.quadratic import fit


class Net(nn.Module):
    """Dropout, running statistics, a counter in a buffer, and draws from every generator."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 1)
        )
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return self.body(x).square().mean() + 1e-6 * noise


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net()
    made.body[0].eval()  # modes differ
    return made


X = torch.linspace(-1, 1, 32).reshape(8, 4)


def state(net):
    return (
        {k: v.clone() for k, v in net.state_dict().items()},
        [m.training for m in net.modules()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
        [None if p.grad is None else p.grad.clone() for p in net.parameters()],
    )


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(v, other[0][k]) for k, v in one[0].items())
    assert one[1] == other[1]
    assert torch.equal(one[2], other[2])
    assert one[3] == other[3]
    assert str(one[4]) == str(other[4])
    for a, b in zip(one[5], other[5], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def moved(net):
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    net(X).backward()
    return optimizer, Displacements.from_step(optimizer)


@pytest.mark.parametrize("training", ["eval", "frozen-stats", "train"])
def test_no_trace(net, training):
    """U4."""
    optimizer, step = moved(net)
    before, held = state(net), copy.deepcopy(optimizer.state_dict())
    found = probe(step, Evaluator(net, lambda m: m(X), training=training), design("star", 1))
    assert_same(state(net), before)
    assert str(optimizer.state_dict()) == str(held)
    assert found.x[:, 0].tolist() == [0, -2, -1, 1, 2]
    assert found.y.shape == (5, 1)


@pytest.mark.parametrize("training", ["eval", "train"])
@pytest.mark.parametrize("when", [1, 3, 5])
def test_no_trace_when_a_loss_raises(net, when, training):
    _, step = moved(net)
    before, calls = state(net), []

    def losses(model):
        model(X)
        calls.append(1)
        if len(calls) == when:
            raise FloatingPointError
        return model(X)

    with pytest.raises(FloatingPointError):
        probe(step, Evaluator(net, losses, training=training), design("star", 1))
    assert len(calls) == when
    assert_same(state(net), before)


def test_the_same_random_numbers_at_every_point(net):
    for training, randomness in (("eval", False), ("frozen-stats", True), ("train", True)):
        values = [Evaluator(net, lambda m: m(X), training=training, seed=s)() for s in (0, 0, 1)]
        assert values[0] == values[1]
        assert (abs(values[0] - values[2]) > 1e-5) == randomness  # more than the nets' own noise


def test_buffers_are_the_same_at_every_point(net):
    _, step = moved(net)

    def losses(model):
        model(X)
        return model.calls.sum()  # grows with every forward pass, unless it is put back

    found = probe(step, Evaluator(net, losses), design("star", 1))
    assert len(set(found.y[:, 0].tolist())) == 1


def test_modes(net):
    seen = {}
    for training in ("eval", "frozen-stats", "train"):

        def losses(m, name=training):
            seen[name] = [m.body[i].training for i in (0, 1, 2)]
            return m(X)

        Evaluator(net, losses, training=training)()
    assert seen["eval"] == [False, False, False]
    assert seen["frozen-stats"] == [False, False, True]
    assert seen["train"] == [False, True, True]  # the first was in eval mode


def test_nothing_keeps_a_graph(net):
    found = []

    def losses(m):
        found.append(m(X))
        return found[-1]

    Evaluator(net, losses)()
    assert not found[0].requires_grad


def test_forwards_are_counted(net):
    _, step = moved(net)
    one = Evaluator(net, lambda m: m(X))
    probe(step, one, design("star", 1))
    assert one.forwards == 5
    probe(step, one, design("star", 1), start=0.3)
    assert one.forwards == 9
    probe(step, one, design("star", 1), repeats=2)
    assert one.forwards == 16
    parts = Evaluator(net, [lambda m: m(X)] * 3)
    probe(step, parts, design("central", 1))
    assert parts.forwards == 9


def test_micro_batches_equal_one_batch():
    """U9, of any sizes; float64."""
    torch.manual_seed(0)
    net = nn.Linear(4, 1).double()
    x = torch.randn(256, 4, dtype=torch.float64)

    def losses(part):
        return lambda: net(part).square().sum(1)

    whole = Evaluator(net, micro_batches(losses(x)), per_sample=True)()
    for sizes in ([64] * 4, [1, 200, 55]):
        parts = micro_batches([losses(part) for part in x.split(sizes)])
        assert Evaluator(net, parts, per_sample=True)() == pytest.approx(whole, rel=1e-14)
    pairs = [lambda p=p: (net(p).square().sum(), len(p)) for p in x.split([100, 156])]
    assert Evaluator(net, micro_batches(pairs))() == pytest.approx(whole, rel=1e-14)


def test_several_losses():
    net = nn.Linear(2, 1)
    means = Evaluator(net, lambda m: torch.stack([m.weight.sum(), m.bias.sum()]))()
    assert means.shape == (2,)
    assert means.dtype == np.float64
    pairs = [lambda m: (torch.tensor([1.0, 2.0]), 1), lambda m: (torch.tensor([3.0, 6.0]), 3)]
    assert Evaluator(net, pairs)().tolist() == [1.0, 2.0]


def test_noise_is_the_units_of_rounding_or_the_repeats(net):
    _, step = moved(net)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found = probe(step, Evaluator(net, lambda m, d=dtype: m(X).to(d)), design("central", 1))
        assert found.sigma[0] == pytest.approx(2 * torch.finfo(dtype).eps * found.y[0, 0])
    calls = []

    def drifting(model):
        calls.append(1)
        return torch.tensor(float(len(calls)))

    found = probe(step, Evaluator(net, drifting), design("central", 1), repeats=2)
    assert found.y[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert found.sigma[0] == pytest.approx(np.std([1, 4, 5], ddof=1))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)
        self.twice.weight = self.inner.weight  # tied

    def forward(self, x):
        x = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)
        return self.twice(x.tanh()).square().mean()


@pytest.mark.parametrize("autocast", [False, True])
def test_tied_checkpointed_autocast_and_partly_frozen(autocast):
    torch.manual_seed(0)
    net = Checkpointed()
    net.twice.bias.requires_grad_(False)

    def losses(model):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(X)

    losses(net).backward()
    before = state(net)
    step = Displacements.from_step(torch.optim.SGD(net.parameters(), 0.1))
    after = state(net)
    assert len(step.parameters) == 2
    q = fit(probe(step, Evaluator(net, losses), design("star", 1)))
    assert_same(state(net), after)
    slope = sum(
        float((g * (before[0][n] - after[0][n])).sum())
        for (n, _), g in zip(net.named_parameters(), after[5], strict=True)
        if g is not None
    )
    assert q.b[0, 0] == pytest.approx(slope, rel=0.2 if autocast else 0.02)


@pytest.mark.slow
def test_compiled_models_are_not_compiled_again():
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    compiled = torch.compile(net)
    compiled(X).square().mean().backward()
    step = Displacements.from_step(torch.optim.SGD(net.parameters(), 0.1))
    evaluator = Evaluator(net, lambda _: compiled(X).square().mean())
    probe(step, evaluator, design("star", 1))
    with torch.compiler.set_stance("fail_on_recompile"):
        probe(step, evaluator, design("star", 1))


def test_designs():
    assert design("star", 3).shape == (12, 3)
    assert design("star", 2, levels=(1, 3), radius=0.5).tolist() == [
        [0.5, 0], [1.5, 0], [0, 0.5], [0, 1.5],
    ]  # fmt: skip
    assert design("central", 3).shape == (6, 3)
    assert design("pairs", 4).shape == (8 + 6, 4)
    assert design("pairs", 2)[-1].tolist() == [1, 1]
    drawn = design("random", 3, m=10, radius=2.0)
    assert np.array_equal(drawn[:5], -drawn[5:])
    assert 1 < np.abs(drawn).max() <= 2
    assert np.array_equal(drawn, design("random", 3, m=10, radius=2.0))
    assert len(design("random", 3)) == 18


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: design("spiral", 2), "unknown design 'spiral'"),
        (lambda: design("star", 2, levels=(0, 1)), "different from 0"),
        (lambda: design("random", 2, m=3), "even number of points, found 3"),
        (lambda: Evaluator(None, []), "no losses"),
        (lambda: Evaluator(None, lambda m: X.sum(), training="test"), "unknown training 'test'"),
        (lambda: Evaluator(None, lambda m: (X.sum(), 0))(), "batch is empty"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()
