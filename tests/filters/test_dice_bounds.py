"""Error feedback: where it converges to, and what one sample moves: the bounds on which
`plans.feedback` rests."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steelyard.filters.attach import attach
from steelyard.filters.dice import Dice
from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped
from steelyard.weightings.clip import FlatClip

runs = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("dice_runs.py"))))
B, SIZES = runs.B, runs.SIZES
flat, clip, stream, release, error = runs.flat, runs.clip, runs.stream, runs.release, runs.error


# -- bias ------------------------------------------------------------------------------------------


def fixed_point(R2: float, *, R1: float = 0.5, steps: int = 2500) -> float:
    """Experiment (i): f_i(x) = |x - target_i|^2 / 2, targets 0 (90 %) and 10 (10 %), eta 0.05."""
    target = torch.tensor([0.0] * 18 + [10.0] * 2, dtype=torch.float64)
    x, dice = 0.0, Dice(0.0, bound=R1, feedback=R2 / R1)
    for _ in range(steps):
        g = x - target
        means = [[part.mean().reshape(1)] for part in (g.clamp(-R1, R1), g)]
        x -= 0.05 * float(dice.privatise(Clipped(means[0], R1 / 20, means[1])).tensors[0])
    return x


@pytest.mark.parametrize(
    ("R2", "printed"), [(0.0, 0.056), (0.05, 0.111), (0.4, 0.5), (0.5, 1.0), (5.0, 1.0)]
)
def test_the_table_of_fixed_points(R2, printed):
    """Without bias if, and only if, R2 >= R1 = 0.5: the minimiser is 1."""
    assert fixed_point(R2) == pytest.approx(printed, abs=5e-4)


def heavy_tails(R1: float = 0.3, steps: int = 600) -> dict[str, float]:
    """Experiment (ii): linear regression, noise with one heavy tail; distance to least squares."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(300, 4, generator=generator).double()
    tail = torch.rand(300, generator=generator).double() ** -0.4 - 1 / 0.6
    ones = torch.cat([x, torch.ones(300, 1).double()], 1)
    y = x.sum(1) + 3 * tail
    best = torch.linalg.lstsq(ones, y[:, None]).solution[:, 0]
    found = {}
    for name, rho in (("clipped", 0.0), ("feedback", 1.0)):
        net = nn.Linear(4, 1).double()
        nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with PerSample(net, FlatClip(R1), expected_batch=300) as rows:
            attach(optimizer, rows, Dice(0.0, bound=R1, feedback=rho, largest=math.inf))
            for _ in range(steps):
                rows.backward((net(x)[:, 0] - y).square() / 2)
                optimizer.step()
                optimizer.zero_grad()
        found[name] = float((flat([net.weight, net.bias]) - best).norm())
    return found


def test_a_heavy_tail_biases_clipping_and_not_error_feedback():
    distance = heavy_tails()
    assert distance["feedback"] < 1e-3 < 0.3 < distance["clipped"]


# -- what one sample moves -------------------------------------------------------------------------


def test_identity_minus_clip_is_firmly_non_expansive():
    """||DK||^2 + ||DE - DK||^2 <= ||DE||^2: mode one-pass rests on it; by the mechanism."""
    generator = torch.Generator().manual_seed(0)
    closest = 0.0
    for _ in range(300):
        R2 = float(torch.rand((), generator=generator)) * 3
        start = torch.randn(12, generator=generator).double()
        other = start + torch.randn(12, generator=generator).double() * R2 * 0.5
        fed, kept = [], []
        for e in (start, other):
            dice, zero = Dice(0.0, bound=1.0, feedback=R2), torch.zeros(12).double()
            release(dice, zero, e)
            fed.append(release(dice, zero, zero))
            kept.append(error(dice))
        before = float((start - other).square().sum())
        after = float((fed[0] - fed[1]).square().sum() + (kept[0] - kept[1]).square().sum())
        assert after <= before * (1 + 1e-9)
        closest = max(closest, after / before)
    assert closest > 0.99


@pytest.mark.parametrize("rho", [0.02, 0.3, 1.0])
def test_the_squared_moves_of_one_pass_stay_within_the_bound(rho):
    """sum_t sens_t^2 <= R1^2 + (g_max - R1)^2 in the sum's unit, and it is reached."""
    R1, generator, ratios = 1.0, torch.Generator().manual_seed(2), []
    for trial in range(40):
        g_max = 1.0 + 4.0 * float(torch.rand((), generator=generator))
        one, other = Dice(0.0, bound=R1, feedback=rho), Dice(0.0, bound=R1, feedback=rho)
        extra = torch.randn(12, generator=generator).double() * (0.2 if trial % 4 == 0 else 3.0)
        joins, total = int(torch.randint(0, 5, (), generator=generator)), 0.0
        for t, (clipped, raw) in enumerate(stream(40, size=0.1 if trial % 2 else 2.0)):
            first = release(one, clipped, raw)
            if t == joins:
                clipped, raw = clipped + clip(extra, R1) / B, raw + clip(extra, g_max) / B
            moved = B * float((release(other, clipped, raw) - first).norm())
            assert moved <= R1 * (t == joins) + 2 * B * rho * R1 + 1e-9  # mode conservative
            total += moved**2
        ratios.append(total / (R1**2 + (g_max - R1) ** 2))
    assert max(ratios) <= 1 + 1e-9
    assert max(ratios) > 0.99 or rho < 0.1


@pytest.mark.parametrize("groups", ["all", "layer", "parameter"])
def test_one_row_moves_both_sums_as_the_bound_supposes(groups):
    """||raw - clipped|| <= g_max - R1 for every row, also in groups: both bounds are shared out."""
    net, R1, g_max = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 0.3, 2.0
    largest = []
    with PerSample(net, FlatClip(R1), expected_batch=1.0, groups=groups) as rows:
        Dice(0.0, bound=R1, largest=g_max).connect(torch.optim.SGD(net.parameters()), rows)
        for x in torch.randn(20, 1, 3) * 5:
            rows.backward(net(x).square().sum(1))
            taken = rows.take()
            assert taken.raw is not None
            largest.append(float((flat(taken.raw) - flat(taken.tensors)).norm()))
    assert max(largest) <= (g_max - R1) * (1 + 1e-5)
    assert max(largest) > 0.8 * (g_max - R1)
