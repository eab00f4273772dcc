"""DiSK: the paper's box written naively, and what holds for every gain and look-ahead."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.disk import Disk
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped, Noised
from steelyard.weightings.clip import FlatClip

R, B, SIGMA = 0.5, 4, 0.3
SETTINGS = {"w=1": (0.7, None), "w<1": (0.7, 0.5), "w>1": (0.5, 0.7)}
every_setting = pytest.mark.parametrize(("gain", "gamma"), SETTINGS.values(), ids=SETTINGS)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def losses(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # [B, 3] -> [B]
    return (net(x) - x[:, :2]).square().sum(1)


def batches(steps: int, *, largest: int = 6) -> list[Tensor]:
    """Of random sizes, none included."""
    return [2 * torch.randn(int(torch.randint(largest + 1, ())), 3).double() for _ in range(steps)]


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


class Spy:
    """Keeps what passes."""

    def __init__(self):
        self.seen: list[list[Tensor]] = []

    def filter(self, gradient: Noised) -> Noised:
        self.seen.append([t.clone() for t in gradient.tensors])
        return gradient


class Run:
    """rows, optimizer and filter around one model; `spy` keeps ghat, `.grad` is m."""

    def __init__(
        self,
        net: nn.Module,
        disk: Disk,
        optimizer: Any,
        *,
        sigma=SIGMA,
        bound=R,
        batch=B,
        **options,
    ):
        self.net, self.disk, self.spy = net, disk, Spy()
        self.rows = PerSample(net, FlatClip(bound), expected_batch=batch, **options)
        self.optimizer = optimizer(net.parameters())
        parts = chain(Gaussian(sigma, seed=1), self.spy, disk)  # type: ignore[arg-type]
        self.attached = attach(self.optimizer, self.rows, parts)

    def step(self, *micro: Tensor) -> list[Tensor]:
        """One step; m."""
        for x in micro:
            self.rows.backward(lambda x=x: losses(self.net, x))
        self.optimizer.step()
        return [p.grad.clone() for p in self.net.parameters()]  # type: ignore[union-attr]


def sgd(lr: float = 0.1) -> Callable[..., torch.optim.Optimizer]:
    return lambda ps: torch.optim.SGD(ps, lr=lr)


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.2, momentum=0.5, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.02, weight_decay=0.1),
}

# -- the twin ------------------------------------------------------------------------------------


def naive(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Sequence[Tensor],
    gain: float,
    gamma: float,
) -> list[list[Tensor]]:
    """The algorithm box, sample after sample; returns the iterates."""
    w = (1 - gain) / (gain * gamma)
    noise = Gaussian(SIGMA, seed=1)
    names = [name for name, _ in net.named_parameters()]
    params = list(net.parameters())
    m: list[Tensor] = []
    u: list[Tensor] = []
    iterates = []

    def gradient(x: Tensor, point: list[Tensor]) -> list[Tensor]:
        leaves = [p.detach().requires_grad_() for p in point]
        loss = losses(lambda z: functional_call(net, dict(zip(names, leaves, strict=True)), z), x)
        return list(torch.autograd.grad(loss.sum(), leaves))

    for x in data:
        total = [torch.zeros_like(p) for p in params]
        for i in range(len(x)):
            g = gradient(x[i : i + 1], params)
            if u:
                ahead = gradient(x[i : i + 1], [p + gamma * d for p, d in zip(params, u)])  # noqa: B905
                g = [w * a + (1 - w) * b for a, b in zip(ahead, g, strict=True)]
            norm = math.sqrt(sum(float(part.square().sum()) for part in g))
            total = [s + part * min(1.0, R / norm) for s, part in zip(total, g, strict=True)]
        zeros = Clipped([torch.zeros_like(p) for p in params], R / B)
        z = noise.privatise(zeros).tensors
        ghat = [s / B + n for s, n in zip(total, z, strict=True)]
        m = [(1 - gain) * a + gain * b for a, b in zip(m, ghat, strict=True)] if m else ghat
        old = weights(net)
        for p, g in zip(params, m, strict=True):
            p.grad = g.clone()
        optimizer.step()
        u = [p.detach() - o for p, o in zip(params, old, strict=True)]
        iterates.append(weights(net))
    return iterates


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@every_setting
def test_equals_the_naive_version_for_a_hundred_steps(gain, gamma, optimizer):
    """With noise, clipping, empty batches and, on our side, micro-batches."""
    data = batches(100)
    assert any(len(x) == 0 for x in data)
    twin = model()
    run = Run(copy.deepcopy(twin), Disk(gain, gamma), OPTIMIZERS[optimizer])
    expected = naive(
        twin, OPTIMIZERS[optimizer](twin.parameters()), data, gain, gamma or (1 - gain) / gain
    )
    for x, iterate in zip(data, expected, strict=True):
        run.step(*(x.split(2) if len(x) else [x]))
        assert distance(weights(run.net), iterate) < 1e-11


# -- identities ----------------------------------------------------------------------------------


def test_gain_one_is_dp_sgd_bit_for_bit():
    data = batches(20)
    for disk in (Disk(1.0), Disk(1.0, look_ahead=0.5)):
        run, net = Run(model(), disk, OPTIMIZERS["adamw"]), model()
        rows = PerSample(net, FlatClip(R), expected_batch=B)
        optimizer = OPTIMIZERS["adamw"](net.parameters())
        attach(optimizer, rows, Gaussian(SIGMA, seed=1))
        for x in data:
            run.step(x)
            rows.backward(losses(net, x))
            optimizer.step()
            assert same(weights(run.net), weights(net))
        run.rows.backward(losses(run.net, data[0]))  # nothing looks ahead: a tensor will do


@pytest.mark.parametrize(
    ("gain", "gamma"), [(0.7, 0.5), (0.5, 0.7), (0.3, 7 / 3), (0.9, 0.11), (0.7, None)]
)
def test_of_a_quadratic_the_filtered_gradient_is_the_gradient(gain, gamma):
    """With weight kappa and 1 - kappa the wrong way round, the error is of order 1."""
    net = nn.Linear(3, 2, bias=False).double()
    twin = copy.deepcopy(net)
    x = torch.randn(8, 3).double()
    run = Run(net, Disk(gain, gamma), sgd(0.05), sigma=0.0, bound=math.inf, batch=len(x))
    for _ in range(50):
        m = run.step(x)
        (gradient,) = torch.autograd.grad(losses(twin, x).mean(), [twin.weight])
        assert distance(m, [gradient]) < 1e-12
        twin.weight.data -= 0.05 * gradient
        assert distance(weights(net), weights(twin)) < 1e-12


@pytest.mark.parametrize("gain", [0.7, 0.5, 0.3, 0.1])
def test_variance_of_filtered_noise(gain):
    disk, mechanism = Disk(gain), Gaussian(1.0, seed=0)
    for _ in range(60):
        out = disk.filter(mechanism.privatise(Clipped([torch.zeros(200, 200)], 1.0)))
    assert float(out.tensors[0].var()) == pytest.approx(gain / (2 - gain), rel=0.035)  # 5 sd


@every_setting
def test_the_first_filtered_gradient_is_the_measured_one(gain, gamma):
    run = Run(model(), Disk(gain, gamma), sgd())
    x = torch.randn(4, 3).double()
    plain = PerSample(run.net, FlatClip(R), expected_batch=B)
    plain.backward(losses(run.net, x))
    expected = Gaussian(SIGMA, seed=1).privatise(plain.take()).tensors
    plain.close()
    assert same(run.step(x), expected)
    assert same(run.spy.seen[0], expected)


@pytest.mark.parametrize("groups", ["all", "layer"])
@every_setting
def test_one_sample_moves_the_mixture_by_at_most_its_bound(gain, gamma, groups):
    run = Run(model(), Disk(gain, gamma), sgd(0.5), groups=groups)
    for x in batches(5):
        run.step(x)
    x = 3 * torch.randn(5, 3).double()

    def taken(keep: list[int]) -> list[Tensor]:
        run.rows.backward(lambda: losses(run.net, x[keep]))
        return list(run.rows.take().tensors)

    whole, moved = taken([0, 1, 2, 3, 4]), []
    for i in range(5):
        rest = taken([j for j in range(5) if j != i])
        squares = [(a - b).square().sum() for a, b in zip(whole, rest, strict=True)]
        moved.append(float(torch.stack(squares).sum().sqrt()))
    assert max(moved) <= R / B * (1 + 1e-9)
    assert max(moved) > R / B * 0.99  # clipping binds


@every_setting
def test_the_noise_is_sigma_R_whatever_the_weights(gain, gamma):  # noqa: N802
    """Zero gradients, micro-batches: drawn once, and not divided by sqrt(w^2 + (1 - w)^2)."""
    net = nn.Linear(200, 100, bias=False)
    run, n = Run(net, Disk(gain, gamma), sgd()), net.weight.numel()
    for _ in range(4):
        for size in (3, 2):
            run.rows.backward(lambda size=size: 0 * net(torch.randn(size, 200)).sum(1))
        run.optimizer.step()
    for (ghat,) in run.spy.seen:
        found = float(ghat.double().square().mean().sqrt())
        assert found == pytest.approx(SIGMA * R / B, rel=5 / math.sqrt(2 * n))


@every_setting
def test_layer_groups_are_clipped_apart_after_mixing(gain, gamma):
    run = Run(model(), Disk(gain, gamma), sgd(0.5), groups="layer")
    for x in batches(3):
        run.step(x)
    x, here, share = 3 * torch.randn(1, 3).double(), weights(run.net), R / math.sqrt(2)
    rows = []
    for weight, place in run.disk.evaluations():
        with place:
            loss = losses(run.net, x).sum()
            rows.append([weight * g for g in torch.autograd.grad(loss, list(run.net.parameters()))])
    assert same(here, weights(run.net))
    mixed = [torch.stack(parts).sum(0) for parts in zip(*rows, strict=True)]
    run.rows.backward(lambda: losses(run.net, x))
    found = run.rows.take().tensors
    for layer in (slice(0, 2), slice(2, 4)):
        norm = math.sqrt(sum(float(g.square().sum()) for g in mixed[layer]))
        expected = [g * min(1.0, share / norm) / B for g in mixed[layer]]
        assert distance(found[layer], expected) < 1e-14


def test_both_evaluations_have_the_same_dropout_masks():
    """Without a displacement the mixture is the plain gradient, if the masks agree."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 2)).double()
    run, x = Run(net, Disk(0.5, 0.7), sgd(0.0)), torch.randn(4, 3).double()
    run.step(x)
    assert len(run.disk.evaluations()) == 2
    taken = []
    for points in (run.disk, None):
        run.rows.points = points
        torch.manual_seed(5)
        run.rows.backward(lambda: losses(net, x))
        taken.append(run.rows.take().tensors)
    assert distance(*taken) < 1e-14
