"""Arms: a search of equal size for each, widened by one rule, judged apart from the result."""

from __future__ import annotations

import math

import pytest

from steelyard.runs.arms import SEARCH_SEED, WIDENINGS, Arm, Experiment, Outcome, measure
from steelyard.runs.config import TrainConfig

BASE = TrainConfig(model="mlp", data="fashion-mnist-small", epochs=1, momentum=0.0)
GRID = (1.0, 2.0, 4.0)


def experiment(*arms: Arm, seeds=(0, 1, 2), epsilons=(1.0, 8.0)) -> Experiment:
    return Experiment(data="here", base=BASE, arms=arms, epsilons=epsilons, seeds=seeds)


class Fake:
    """Accuracy falls with the distance of log2(lr) from `best`; every job is remembered."""

    def __init__(self, best: float) -> None:
        self.best, self.jobs = best, []

    def __call__(self, jobs):
        self.jobs += jobs
        return [
            Outcome(
                accuracy=90 - abs(math.log2(job.config.lr) - self.best) + job.config.seed / 1000,
                seconds=2.0,
            )
            for job in jobs
        ]

    def rates(self, part: str) -> list[float]:
        return [job.config.lr for job in self.jobs if job.part == part]


def test_the_best_rate_of_the_search_is_run_on_every_seed_and_judged_on_the_test_set():
    fake = Fake(best=1)
    (cell,) = measure(experiment(Arm(name="a", rates=GRID), epsilons=(3.0,)), fake)
    search = [job for job in fake.jobs if job.part == "validation"]
    reported = [job for job in fake.jobs if job.part == "test"]
    assert [job.config.lr for job in search] == list(GRID)
    assert {job.config.seed for job in search} == {SEARCH_SEED}
    assert [(job.config.lr, job.config.seed) for job in reported] == [(2.0, s) for s in (0, 1, 2)]
    assert {job.config.epsilon for job in fake.jobs} == {3.0}
    assert cell.rate == 2.0
    assert cell.values == {0: 90.0, 1: 90.001, 2: 90.002}
    assert cell.seconds == 2.0 * 6
    assert not cell.at_an_end
    assert cell.entry()["lr"] == 2.0
    assert cell.entry()["values"] == [90.0, 90.001, 90.002]
    assert cell.entry()["sd"] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("best", "tried", "end"),
    [
        (3, [1, 2, 4, 8, 16], False),  # 8 was best, so 16 was tried as well
        (10, [1, 2, 4, 8, 16], True),
        (-1, [1, 2, 4, 0.5, 0.25], False),
        (-9, [1, 2, 4, 0.5, 0.25], True),
    ],
)
def test_a_best_rate_at_an_end_widens_the_grid_by_one_step_at_most_twice(best, tried, end):
    fake = Fake(best)
    (cell,) = measure(experiment(Arm(name="a", rates=GRID), epsilons=(3.0,)), fake)
    assert fake.rates("validation") == tried
    assert len(tried) <= len(GRID) + WIDENINGS
    assert cell.at_an_end is end
    assert cell.entry()["rate_at_an_end"] is end


def test_only_the_arm_at_its_end_is_widened():
    fake = Fake(best=1)
    arms = (Arm(name="a", rates=GRID), Arm(name="b", rates=(8.0, 16.0, 32.0)))
    a, b = measure(experiment(*arms, epsilons=(3.0,)), fake)
    assert sorted(a.search) == [1, 2, 4]
    assert sorted(b.search) == [2, 4, 8, 16, 32]


def test_of_equal_rates_the_lower_one_is_taken():
    (cell,) = measure(experiment(Arm(name="a", rates=GRID), epsilons=(3.0,)), Fake(best=0.5))
    assert cell.search[1.0] == cell.search[2.0]
    assert cell.rate == 0.5 or cell.rate == 1.0
    assert cell.rate == min(rate for rate in cell.search if cell.search[rate] >= 89.5)


def test_arms_are_trained_where_they_should_be():
    fake = Fake(best=1)
    arms = (
        Arm(name="all", rates=GRID, changes={"filters": ("doppler:0.9",)}),
        Arm(name="once", rates=GRID, private=False),
        Arm(name="one", rates=GRID, epsilons=(8.0,), epsilon_of=lambda epsilon: 2 * epsilon),
    )
    cells = measure(experiment(*arms), fake)
    listed = [(cell.arm.name, cell.epsilon) for cell in cells]
    assert listed == [("all", 1.0), ("all", 8.0), ("once", None), ("one", 8.0)]
    trained = {(job.config.epsilon, job.config.filters) for job in fake.jobs}
    assert trained == {(1.0, ("doppler:0.9",)), (8.0, ("doppler:0.9",)), (None, ()), (16.0, ())}


def test_one_seed_gives_all_private_arms_the_same_noise():
    fake = Fake(best=1)
    measure(experiment(Arm(name="a", rates=GRID), Arm(name="b", rates=GRID, private=False)), fake)
    for job in fake.jobs:
        expected = None if job.config.epsilon is None else job.config.seed
        assert job.config.noise_seed == expected


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: experiment(Arm(name="a", rates=GRID), Arm(name="b", rates=GRID[:2])),
            "grid of the same size, found 3 for 'a', 2 for 'b'",
        ),
        (
            lambda: experiment(Arm(name="a", rates=GRID), Arm(name="a", rates=GRID)),
            "two arms are called 'a'",
        ),
        (lambda: experiment(Arm(name="a", rates=GRID), seeds=(0, 1)), "three seeds at least"),
        (lambda: experiment(Arm(name="a", rates=GRID), seeds=(0, 1, 100)), "search's 100"),
        (lambda: Arm(name="a", rates=(1.0, 2.0, 8.0)), "one constant factor"),
        (lambda: Arm(name="a", rates=(2.0, 1.0)), "one constant factor"),
        (lambda: Arm(name="a", rates=(1.0,)), "two positive rates"),
        (lambda: Arm(name="a", rates=GRID, role="winner"), "role 'winner'"),
    ],
)
def test_an_unfair_comparison_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
