"""The engine as a whole: plain training, micro-batches, empty batches, shared weights, precision.

Layers stand in test_layers.py, hooks in test_tape.py, refusals in test_proof.py, the guarantee in
test_sensitivity.py.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import models
from steelyard.filters.attach import attach
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.groups import partition
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

PLAIN = FlatClip(float("inf"))


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:  # [B]
    return F.cross_entropy(model(x), y, reduction="none")


def continued(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:  # [B]
    return F.cross_entropy(model(tokens).transpose(1, 2), targets, reduction="none").mean(1)


def gpt(*, tied: bool) -> nn.Module:
    task = models.Task(kind="language", shape=(6,), vocabulary=11)
    return models.build("gpt", task, seed=0, layers=1, width=8, heads=2, tied=tied).double()


def cnn() -> nn.Module:
    task = models.Task(kind="image", shape=(14, 14, 1), classes=3)
    return models.build("cnn", task, seed=0).double()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Linear(5, 3)).double()


def tokens(B: int) -> tuple[Tensor, Tensor]:
    both = torch.randint(0, 11, (B, 7))
    return both[:, :-1], both[:, 1:]


def features(*shape: int):
    return lambda B: (torch.randn(B, *shape).double(), torch.randint(0, 3, (B,)))


WORKLOADS = {
    "mlp": (mlp, features(4), classified),
    "cnn": (cnn, features(1, 14, 14), classified),
    "gpt": (lambda: gpt(tied=False), tokens, continued),
    "tied gpt": (lambda: gpt(tied=True), tokens, continued),
}
OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2),
}


def summed(rows: PerSample) -> dict[str, Tensor]:
    return dict(zip(rows.names, rows.take().tensors, strict=True))


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_without_clipping_and_noise_it_is_plain_training(workload, optimizer, engine):
    build, batch, losses = WORKLOADS[workload]
    plain = build()
    private = copy.deepcopy(plain)
    first = OPTIMIZERS[optimizer](plain.parameters())
    second = OPTIMIZERS[optimizer](private.parameters())
    rows = PerSample(private, PLAIN, expected_batch=3, engine=engine, strict=True)
    attach(second, rows, Gaussian(0.0))
    for _ in range(4):
        x, y = batch(3)
        first.zero_grad()
        losses(plain, x, y).mean().backward()
        first.step()
        rows.backward(losses(private, x, y))
        second.step()
        second.zero_grad()
    for p, q in zip(plain.parameters(), private.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("groups", ["all", "layer", "parameter", 2])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_models_equal_the_oracle(oracle, workload, groups):
    build, batch, losses = WORKLOADS[workload]
    model, data = build(), batch(4)
    truth = oracle.per_sample(model, losses, *data)
    bound = sorted(oracle.norm(row) for row in truth)[2]
    lists = partition(dict(model.named_parameters()), groups)
    expected = oracle.clipped_sum(truth, lists, "flat", bound)
    with PerSample(model, FlatClip(bound), expected_batch=4, groups=groups, strict=True) as rows:
        rows.backward(losses(model, *data))
        got = {name: 4 * g for name, g in summed(rows).items()}
    assert oracle.relative_error(got, expected, list(got)) < 1e-12


class Shared(nn.Module):
    """Every way a weight can be used more than once."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(5, 4, padding_idx=0)
        self.twice = nn.Linear(4, 4)
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.right.weight = self.left.weight
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.token.weight
        self.conv = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.token(tokens.flip(1))
        x = self.norm(torch.tanh(self.twice(torch.tanh(self.twice(x)))))
        x = self.conv(torch.tanh(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        return self.head(
            self.norm(self.left(x) + torch.tanh(self.right(x[:, :3].mean(1)))[:, None])
        )


@pytest.mark.parametrize("groups", ["all", "layer", "parameter", ["token*"]])
def test_shared_weights_and_layers_called_twice(oracle, groups):
    model = Shared().double()
    tokens = torch.randint(0, 5, (4, 6))
    tokens[1] = 0
    data = tokens, torch.randint(0, 5, (4, 6))
    truth = oracle.per_sample(model, continued, *data)
    bound = sorted(oracle.norm(row) for row in truth)[1]
    expected = oracle.clipped_sum(
        truth, partition(dict(model.named_parameters()), groups), "flat", bound
    )
    with PerSample(model, FlatClip(bound), expected_batch=1, groups=groups, strict=True) as rows:
        rows.backward(continued(model, *data))
        got = summed(rows)
    assert oracle.relative_error(got, expected, list(got)) < 1e-12


@pytest.mark.parametrize("groups", ["all", "parameter"])
@pytest.mark.parametrize("sizes", [[16] * 4, [1, 0, 40, 23], [0, 64], [64, 0]], ids=str)
def test_micro_batches_add_up_to_the_logical_batch(sizes, groups):
    model = mlp()
    x, y = features(4)(64)
    with PerSample(model, FlatClip(0.3), expected_batch=64, groups=groups) as rows:
        rows.backward(classified(model, x, y))
        whole = rows.take()
        for part_x, part_y in zip(x.split(sizes), y.split(sizes), strict=True):
            rows.backward(classified(model, part_x, part_y))
        pieces = rows.take()
    assert pieces.sensitivity == whole.sensitivity
    for one, other in zip(whole.tensors, pieces.tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_an_empty_batch_arms_the_step_with_zeros(workload, engine):
    build, batch, losses = WORKLOADS[workload]
    model = build()
    rows = PerSample(model, FlatClip(0.5), expected_batch=4, engine=engine)
    for empty in (losses(model, *batch(0)), torch.zeros(0)):
        assert empty.shape == (0,)
        assert not rows.armed
        rows.backward(empty)
        assert rows.armed
        clipped = rows.take()
        assert not rows.armed
        assert clipped.sensitivity == 0.5 / 4
        for p, tensor in zip(rows.parameters, clipped.tensors, strict=True):
            assert tensor.shape == p.shape
            assert not tensor.any()
    x, y = batch(3)  # and the first real batch after it is proven and counted as usual
    rows.backward(losses(model, x, y))
    assert all(tensor.any() for tensor in rows.take().tensors)


def test_take_without_a_backward_and_twice():
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=4)
    with pytest.raises(RuntimeError, match=r"rows\.backward"):
        rows.take()
    rows.backward(classified(model, *features(4)(3)))
    rows.take()
    with pytest.raises(RuntimeError, match=r"rows\.backward"):
        rows.take()


def test_no_gradient_is_ever_left_on_the_parameters_or_the_inputs_by_the_rows():
    model = mlp()
    x, y = features(4)(5)
    x.requires_grad_()
    rows = PerSample(model, FlatClip(0.1), expected_batch=5, groups="layer")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(optimizer, rows, Gaussian(1.0))
    for _ in range(4):  # beyond the batches of the proof
        rows.backward(classified(model, x, y))
        assert all(p.grad is None for p in model.parameters())
        assert x.grad is None
        optimizer.step()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.zero_grad()


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) * 0.5


def test_low_rank_adapters_start_at_zero_and_stay_exact(oracle):
    model = nn.Sequential(LoRA(nn.Linear(4, 6), 2), nn.Tanh(), LoRA(nn.Linear(6, 3), 2)).double()
    data = features(4)(5)
    rows = PerSample(model, FlatClip(0.2), expected_batch=1, strict=True)
    assert rows.names == [f"{i}.{name}.weight" for i in (0, 2) for name in ("down", "up")]
    for step in range(5):
        truth = oracle.per_sample(model, classified, *data)
        rows.discard()
        rows.backward(classified(model, *data))
        got = summed(rows)
        expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.2)
        assert oracle.relative_error(got, expected, rows.names) < 1e-12
        assert bool(got["0.down.weight"].any()) == (step > 0)
        with torch.no_grad():
            for name, p in zip(rows.names, rows.parameters, strict=True):
                p -= got[name]


def test_frozen_and_unreached_parameters(oracle):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.frozen(x))

    model = Two().double()
    data = features(4)(5)
    truth = oracle.per_sample(model, classified, *data)
    with PerSample(model, FlatClip(0.2), expected_batch=1, strict=True) as rows:
        rows.backward(classified(model, *data))
        got = summed(rows)
    expected = oracle.clipped_sum(truth, [list(truth[0])], "flat", 0.2)
    assert oracle.relative_error(got, expected, list(truth[0])) < 1e-12
    assert not got["idle.weight"].any()
    assert got.keys() == {"used.weight", "used.bias", "idle.weight", "idle.bias"}


@pytest.mark.parametrize("bad", [0, -1, float("nan")])
def test_the_expected_batch_must_be_positive(bad):
    with pytest.raises(ValueError, match="expected batch"):
        PerSample(mlp(), FlatClip(), expected_batch=bad)


def test_constructor_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="no trainable parameter"):
        PerSample(mlp().requires_grad_(False), FlatClip(), expected_batch=1)
    with pytest.raises(ValueError, match="unknown engine 'slow'"):
        PerSample(mlp(), FlatClip(), expected_batch=1, engine="slow")
