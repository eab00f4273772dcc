"""Gradient canaries: what they do to a gradient, and what their moves are evidence of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from steelyard.bench.gradient import GradientCanaries, evidence, strongest
from steelyard.rows.per_sample import PerSample
from steelyard.runs.config import TrainConfig
from steelyard.runs.problem import Problem, make_problem
from steelyard.weightings.clip import AutoClip, FlatClip, GlobalClip, NormalizedClip

M = 20


@pytest.fixture
def problem(tiny_table) -> Problem:
    return make_problem(TrainConfig(model="mlp", data="tiny", steps=1, device="cpu"), tiny_table)


@pytest.fixture
def planted(problem) -> GradientCanaries:
    return GradientCanaries(problem, M, None, 0, weighting=FlatClip(0.5), groups="all")


def test_a_canary_is_clipped_to_the_bound_at_its_own_coordinate(planted):
    with PerSample(planted.model, FlatClip(0.5), expected_batch=4) as rows:
        rows.backward(planted.losses(torch.tensor([96, 96 + 7])))
        clipped = dict(zip(rows.names, rows.take().tensors, strict=True))
    table = clipped.pop("tables.0.weight")[:, 0]
    assert table.nonzero().flatten().tolist() == [0, 7]
    torch.testing.assert_close(table[[0, 7]], torch.full((2,), -0.5 / 4))
    assert not any(bool(t.any()) for t in clipped.values())


def test_ordinary_samples_train_the_model_and_leave_the_table_alone(planted, problem):
    indices = torch.arange(5)
    x, y = problem.batch(planted._order[indices])
    torch.testing.assert_close(planted.losses(indices), problem.losses(problem.model, x, y))
    with PerSample(planted.model, FlatClip(0.5), expected_batch=4) as rows:
        rows.backward(planted.losses(torch.tensor([0, 1, 96 + 3])))
        clipped = dict(zip(rows.names, rows.take().tensors, strict=True))
    assert clipped.pop("tables.0.weight").nonzero()[:, 0].tolist() == [3]
    assert all(bool(t.any()) for t in clipped.values())


@pytest.mark.parametrize(
    ("groups", "tables", "signal"),
    [
        ("all", 1, 1.0),
        ("layer", 8, (8 / 10) ** 0.5),  # two layers, four tables for each
        ("parameter", 16, (16 / 20) ** 0.5),
        (["tables.*"], 1, 0.5**0.5),
        (2, 8, 0.5**0.5),  # the tables are small: all in the last block
    ],
)
def test_among_groups_a_canary_moves_by_what_all_its_groups_allow(problem, groups, tables, signal):
    rule = FlatClip(0.5)
    made = GradientCanaries(problem, M, None, 0, weighting=rule, groups=groups)
    assert len(made.model.tables) == tables
    assert made.signal == pytest.approx(signal)
    with PerSample(made.model, rule, expected_batch=4, groups=groups) as rows:
        rows.backward(made.losses(torch.tensor([96 + 7])))
        taken = dict(zip(rows.names, rows.take().tensors, strict=True))
    moved = torch.cat([t[7] for name, t in taken.items() if name.startswith("tables.")])
    assert float(moved.norm()) == pytest.approx(signal * 0.5 / 4)
    for name, p in made.model.named_parameters():
        p.grad = taken[name]
    made.observe()  # along the direction of the move, so nothing of it is lost
    assert made._moves[0][7] == pytest.approx(signal * 0.5 / 4)
    assert np.abs(made._moves[0]).sum() == pytest.approx(signal * 0.5 / 4)


@pytest.mark.parametrize(
    ("rule", "norm"),
    [
        (FlatClip(0.5), 5.0),
        (AutoClip(0.5), 5.0),
        (NormalizedClip(0.5, stability=0.1), 5.0),
        (GlobalClip(0.5), 0.4995),  # drops what is longer
    ],
)
def test_a_canary_is_as_strong_as_the_rule_allows(rule, norm):
    assert strongest(rule) == pytest.approx(norm)
    reached = float(rule(torch.tensor([norm])) * norm)
    assert 0.48 <= reached <= 0.5


def test_evidence_is_the_log_likelihood_ratio():
    rng = np.random.default_rng(0)
    q, sigma, signal = 0.3, 0.8, 0.6
    moves = sigma * rng.standard_normal((50, 400))
    moves[:, :10] += signal * (rng.random((50, 10)) < q)
    found = evidence(moves, signal=signal, q=q)
    estimated = np.median(np.abs(moves)) / norm.ppf(0.75)
    assert estimated == pytest.approx(sigma, rel=0.05)
    out = norm.pdf(moves, 0, estimated)
    ratio = (1 - q) + q * norm.pdf(moves, signal, estimated) / out
    np.testing.assert_allclose(found, np.log(ratio).sum(0))


def test_evidence_at_the_ends():
    rng = np.random.default_rng(0)
    moves = rng.standard_normal((5, 300))
    everybody = evidence(moves, signal=1.0, q=1.0)  # every step's sum is then what counts
    assert np.array_equal(np.argsort(everybody), np.argsort(moves.sum(0)))
    silent = np.zeros((5, 300))  # no noise at all
    silent[2, 7] = 1.0
    found = evidence(silent, signal=1.0, q=0.1)
    assert np.isfinite(found).all()
    assert found.argmax() == 7
    assert (found > 0).sum() == 1


def test_more_ordinary_samples_than_there_are_is_refused(problem):
    with pytest.raises(ValueError, match=r"needs 97 training samples"):
        GradientCanaries(problem, M, 97, 0, weighting=FlatClip(1.0), groups="all")
