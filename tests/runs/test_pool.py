"""The pool: no run is trained twice, and an interrupted measurement goes on where it stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from steelyard.runs import pool as pools
from steelyard.runs.arms import Job, Outcome
from steelyard.runs.config import TrainConfig
from steelyard.runs.pool import Pool, key_of, train

CONFIG = TrainConfig(model="mlp", data="fashion-mnist-small", epochs=1)
JOBS = [Job(config=CONFIG.replace(lr=lr)) for lr in (0.1, 0.2, 0.3)]


class Fake:
    def __init__(self, stop_at: float | None = None) -> None:
        self.trained, self.stop_at = [], stop_at

    def __call__(self, job: Job, cache) -> Outcome:
        if job.config.lr == self.stop_at:
            raise KeyboardInterrupt
        self.trained.append(job.config.lr)
        return Outcome(accuracy=100 * job.config.lr, seconds=1.5)


def test_equal_jobs_are_trained_once_and_answered_in_order(tmp_path):
    fake = Fake()
    pool = Pool(cache=tmp_path, workers=0, train=fake)
    outcomes = pool([*JOBS, JOBS[0]])
    assert [one.accuracy for one in outcomes] == [10, 20, 30, 10]
    assert fake.trained == [0.1, 0.2, 0.3]
    pool(JOBS)
    assert len(fake.trained) == 3


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Pool(cache=tmp_path, workers=0, train=Fake(stop_at=0.3))(JOBS)
    later = Fake()
    lines: list[str] = []
    outcomes = Pool(cache=tmp_path, workers=0, train=later, say=lines.append)(JOBS)
    assert later.trained == [0.3]
    assert [one.accuracy for one in outcomes] == [10, 20, 30]
    assert [one.seconds for one in outcomes] == [1.5] * 3
    assert len(lines) == 1
    assert "lr 0.3" in lines[0]


def test_a_line_that_was_torn_is_trained_again_and_spoils_no_other(tmp_path):
    Pool(cache=tmp_path, workers=0, train=Fake())(JOBS)
    file = tmp_path / "results.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    later = Fake()
    Pool(cache=tmp_path, workers=0, train=later)(JOBS)
    assert later.trained == [0.3]
    last = Fake()
    Pool(cache=tmp_path, workers=0, train=last)(JOBS)
    assert last.trained == []


def test_what_is_written_says_what_was_run(tmp_path):
    Pool(cache=tmp_path, workers=0, train=Fake())(JOBS[:1])
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert record["key"] == key_of(JOBS[0])
    assert record["accuracy"] == 10
    assert TrainConfig.from_dict(record["config"]) == CONFIG.replace(lr=0.1)


def test_the_key_depends_on_all_that_decides_a_run(monkeypatch):
    job = JOBS[0]
    others = [
        JOBS[1],
        Job(config=job.config.replace(seed=1)),
        Job(config=job.config.replace(filters=("doppler:0.9",))),
        Job(config=job.config, part="validation"),
        Job(config=job.config, features="minilm"),
    ]
    keys = {key_of(one) for one in (job, *others)}
    assert len(keys) == 6
    assert key_of(Job(config=CONFIG.replace(lr=0.1))) == key_of(job)
    before = key_of(job)
    monkeypatch.setattr(pools, "RESULTS", pools.RESULTS + 1)
    assert key_of(job) != before


def test_validation_is_a_part_of_the_training_samples_and_no_test_sample(tmp_path, tiny_table):
    pools._table.cache_clear()
    pools._whole.cache_clear()
    whole = pools._table("fashion-mnist-small", "test", None, tmp_path)
    part = pools._table("fashion-mnist-small", "validation", None, tmp_path)
    assert part.n + part.n_test == whole.n
    assert part.n_test == pytest.approx(whole.n / 12, rel=0.1)
    rows = {row.tobytes() for row in np.asarray(whole.train_x)}
    kept = {row.tobytes() for row in np.asarray(part.train_x)}
    judged = {row.tobytes() for row in np.asarray(part.test_x)}
    assert judged <= rows
    assert not judged & kept


def test_one_job_is_trained_and_comes_out_the_same_again(tmp_path):
    job = Job(
        config=CONFIG.replace(
            epochs=None, steps=2, batch=64, epsilon=8.0, delta=1e-5, noise_seed=3
        ),
        part="validation",
    )
    first, second = train(job, tmp_path), train(job, tmp_path)
    assert first.accuracy == second.accuracy
    assert 0 < first.accuracy < 100
    assert first.seconds > 0


def test_a_loss_that_is_not_finite_is_an_accuracy_of_zero(tmp_path):
    job = Job(config=CONFIG.replace(epochs=None, steps=6, epsilon=None, lr=1e30, batch=64))
    assert train(job, tmp_path).accuracy == 0.0


def test_plans_are_computed_once_for_runs_that_differ_in_rate_and_seed(monkeypatch):
    from steelyard.runs import preview

    asked: list[float] = []
    pools._plan.cache_clear()
    monkeypatch.setattr(preview, "plan_for", lambda config, n: asked.append(n) or (None, 7))
    for lr, seed in ((0.1, 0), (0.2, 0), (0.1, 5)):
        pools.plan_of(CONFIG.replace(lr=lr, seed=seed), 100)
    pools.plan_of(CONFIG.replace(epsilon=1.0), 100)
    pools.plan_of(CONFIG, 200)
    assert asked == [100, 100, 200]
    pools._plan.cache_clear()


@pytest.mark.slow
def test_processes_train_what_this_process_would(tmp_path):
    small = CONFIG.replace(epochs=None, steps=2, batch=64, epsilon=8.0, delta=1e-5, noise_seed=3)
    jobs = [Job(config=small.replace(lr=lr)) for lr in (0.1, 0.5, 0.1)]
    with Pool(cache=tmp_path, workers=2) as pool:
        found = pool(jobs)
        more = pool([Job(config=small.replace(lr=0.2))])
    assert found[0] == found[2]
    assert found[1].accuracy == train(jobs[1], tmp_path).accuracy
    assert len(more) == 1
    assert pool._workers._executor is None
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3
