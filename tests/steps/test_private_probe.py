"""What one sample can do to a release, the noise, and the bill."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steelyard import Gaussian, Ledger, plan_privacy
from steelyard.steps.displacements import Displacements
from steelyard.steps.private_probe import PrivateProbe
from steelyard.steps.probing import Evaluator, design, micro_batches
from steelyard.types import Clipped, Noised

X = design("star", 1)
C, B = 2.0, 10.0


class Spy:
    """Records what it is asked to release; adds no noise."""

    noise_multiplier, seeded = 1.0, False

    def __init__(self):
        self.seen: list[Clipped] = []

    def privatise(self, gradient: Clipped) -> Noised:
        self.seen.append(gradient)
        return Noised(gradient.tensors, gradient.sensitivity, 1.0)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def private(mechanism=None, **options):
    options = {
        "ledger": None,
        "bound": C,
        "expected_batch": B,
        "sampling_probability": 0.1,
    } | options
    return PrivateProbe(mechanism or Spy(), **options)


def release(probe: PrivateProbe, table: Tensor, parts: int = 1):
    """Probe a model whose loss of sample i at point j is table[i, j]; points in order."""
    p = nn.Parameter(torch.zeros(1))
    places = [0.0, *X[:, 0]]
    moved = Displacements([p], {"d": [torch.ones(1)]})

    def losses(rows):
        return lambda: rows[:, places.index(float(p))]

    functions = [losses(rows) for rows in table.chunk(parts)] if parts > 1 else losses(table)
    return probe.probe(moved, Evaluator(None, micro_batches(functions)), X)


def by_hand(table, C, V):
    """Sum of the v_i, one sample and one point at a time."""
    total = np.zeros(len(X))
    for row in table.tolist():
        clipped = [C if math.isnan(v) else min(max(v, 0.0), C) for v in row]
        v = np.array([one - clipped[0] for one in clipped[1:]])
        if V is not None and np.linalg.norm(v) > V:
            v = v * V / np.linalg.norm(v)
        total += v
    return total


def tables(n=40):
    torch.manual_seed(0)
    table = 1 + torch.randn(n, 1 + len(X))  # below 0 and above C, too
    table[0, 1], table[1, 2], table[2, 3], table[3, 0] = math.nan, math.inf, -math.inf, math.nan
    return table


@pytest.mark.parametrize("spread", [None, 0.3])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_sum_is_that_of_the_box(spread, parts):
    found = release(private(spread=spread), tables(), parts)
    assert found.x[:, 0].tolist() == [0, *X[:, 0]]
    assert found.y[0, 0] == 0
    assert found.exact_start
    assert np.allclose(found.y[1:, 0], by_hand(tables(), C, spread) / B)


@pytest.mark.parametrize("spread", [None, 0.3, 100.0])
def test_no_sample_moves_the_release_by_more_than_its_sensitivity(spread):
    table, probe = tables(), private(spread=spread)
    whole = release(probe, table).y[1:, 0]
    S = probe.sensitivity(len(X)) / B
    assert probe.mechanism.seen[0].sensitivity == S
    extremes = torch.tensor([[0.0, *[C] * 4], [C, *[0.0] * 4], [math.nan, *[-1e9] * 4]])
    moves = [np.linalg.norm(whole - release(probe, torch.cat([table[:i], table[i + 1 :]])).y[1:, 0])
             for i in range(len(table))]  # fmt: skip
    moves += [
        np.linalg.norm(whole - release(probe, torch.cat([table, row[None]])).y[1:, 0])
        for row in extremes
    ]
    assert max(moves) <= S * (1 + 1e-9)
    assert max(moves) == pytest.approx(S)  # reached: not larger than it need be
    assert probe.sensitivity(4) == {None: 2 * C, 0.3: 0.3, 100.0: 2 * C}[spread]


@pytest.mark.parametrize(("sigma", "rejected"), [(1.5, False), (1.5 * 0.8, True)])
def test_the_noise_has_the_size_that_is_paid_for(sigma, rejected):
    """Chi-squared test of sigma sqrt(m) C / B; a wrong sigma is found."""
    probe = private(Gaussian(sigma, seed=0))
    drawn = np.array(
        [release(probe, torch.zeros(0, 5)).y[1:, 0] for _ in range(300)]
    )  # empty batch
    wanted = 1.5 * math.sqrt(4) * C / B
    z = (np.square(drawn / wanted).sum() - drawn.size) / math.sqrt(2 * drawn.size)
    assert (abs(z) > 4) == rejected
    correlations = np.corrcoef(drawn.T) - np.eye(4)
    assert np.abs(correlations).max() < 0.25
    if not rejected:
        assert release(probe, tables()).sigma[0] == pytest.approx(wanted)


def test_every_fit_is_charged_once_with_its_own_sigma_and_q():
    plan = plan_privacy(n=1000, batch=100, steps=10, epsilon=3)
    ledger = Ledger(plan)
    probe = private(Gaussian(7.0), ledger=ledger, sampling_probability=0.05)
    assert ledger.steps == 0
    probe.charge()
    probe.charge()
    assert ledger.report()["history"] == [
        {"noise_multiplier": 7.0, "sampling_probability": 0.05, "steps": 2}
    ]
    assert not ledger.noise_seeded_by_user
    private(Gaussian(1.0, seed=0), ledger=ledger)
    assert ledger.noise_seeded_by_user


def test_state_continues_the_noise():
    one, other = (private(Gaussian(1.0, seed=s)) for s in (0, 1))
    release(one, tables())
    other.load_state_dict(one.state_dict())
    assert np.array_equal(release(one, tables()).y, release(other, tables()).y)


def test_losses_must_be_one_per_sample_and_one_batch():
    moved = Displacements([nn.Parameter(torch.zeros(1))], {"d": [torch.ones(1)]})
    sizes = iter((3, 3, 4, 4, 4))
    for losses, words in (
        (lambda: torch.zeros(()), r"one per sample \[B\], found shape \[\]"),
        (lambda: (torch.zeros(()), 3), "found a pair"),
        (lambda: torch.zeros(next(sizes)), "changes from point to point"),
    ):
        with pytest.raises(ValueError, match=words):
            private().probe(moved, Evaluator(None, micro_batches(losses)), X)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bound": 0.0}, "bound must be positive and finite, found 0"),
        ({"bound": math.inf}, "bound must be"),
        ({"spread": -1.0}, "spread must be"),
        ({"expected_batch": 0}, "expected_batch must be"),
        ({"sampling_probability": 1.5}, r"in \(0, 1\], found 1.5"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        private(**options)
