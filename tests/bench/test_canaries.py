"""Coins, and canaries with a wrong label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steelyard.bench.canaries import InputCanaries, coins
from steelyard.runs.config import TrainConfig
from steelyard.runs.problem import Problem, make_problem

M = 20


@pytest.fixture
def problem(tiny_table) -> Problem:
    return make_problem(TrainConfig(model="mlp", data="tiny", steps=1, device="cpu"), tiny_table)


def test_coins_are_fair_and_a_function_of_the_seed():
    one, again, other = coins(10_000, 1), coins(10_000, 1), coins(10_000, 2)
    assert torch.equal(one, again)
    for flips in (one, other, one ^ other):
        assert abs(int(flips.sum()) - 5000) < 250  # five standard deviations


def test_input_canaries_have_wrong_labels_and_are_nobody_else(problem):
    made = InputCanaries(problem, M, None, 0)
    assert made.ordinary == M
    order = made._order
    assert len(order.unique()) == 2 * M
    truth = problem.train_y
    assert truth is not None
    right = made._y == truth[order]
    assert right[:M].all()
    assert not right[M:].any()
    assert int(made._y.max()) < problem.task.classes


def test_an_input_canary_scores_by_the_fall_of_its_loss(problem):
    made = InputCanaries(problem, M, None, 0)
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.5)
    trained = torch.tensor([M + 2, M + 5])
    for _ in range(30):
        optimizer.zero_grad()
        made.losses(trained).mean().backward()
        optimizer.step()
    scores = made.scores(unit=1.0, q=0.1)
    assert np.median(scores) == pytest.approx(0, abs=1e-12)
    assert (scores[[2, 5]] > 0.5).all()
    after = made.losses(torch.arange(M, 2 * M)).detach().double().numpy()
    fell = made._before - after
    np.testing.assert_allclose(scores, fell - np.median(fell), atol=1e-6)


def test_more_samples_than_there_are_is_refused(problem):
    with pytest.raises(ValueError, match=r"needs 110 training samples and finds 96"):
        InputCanaries(problem, 55, None, 0)
