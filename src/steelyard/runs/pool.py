"""Train many small runs on a few processes, and never one of them twice.

Results are appended to `results.jsonl` in the cache folder, one line a run, as they come: a
measurement that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from steelyard.runs.arms import Job, Outcome
from steelyard.runs.config import TrainConfig
from steelyard.runs.workers import Call, Workers

if TYPE_CHECKING:
    from steelyard.data import Table
    from steelyard.runs.problem import Problem

RESULTS = 1  # raise it when a change of the library alters what a run computes
CACHE = Path("runs") / "claims"
WORKERS = 2
VALIDATION_SHARE = 1 / 12  # of the training samples, by content: 5,000 of 60,000
VALIDATION_SALT = 4711
PLAN_FREE = {"lr": 1.0, "seed": 0, "noise_seed": None}  # settings that no plan depends on


def key_of(job: Job) -> str:
    """The name of a run in the cache: equal for equal settings, whatever defaults are added."""
    changed = {
        item.name: getattr(job.config, item.name)
        for item in dataclasses.fields(job.config)
        if item.default is dataclasses.MISSING or getattr(job.config, item.name) != item.default
    }
    said = [RESULTS, job.part, job.features, changed]
    return _hash(said)


def _hash(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]


@dataclass
class Pool:
    """`pool(jobs)` -> their outcomes, from the cache or trained on `workers` processes.

    train: what trains one job, a function that a new process can import. workers 0: in this
    process; else the processes live until the pool is left (`with Pool() as pool`). say: called
    with one line after every run. Jobs that are equal are trained once.
    """

    cache: Path = CACHE
    workers: int = WORKERS
    train: Callable[[Job, Path], Outcome] | None = None
    say: Callable[[str], None] = field(default=lambda line: None)

    def __post_init__(self) -> None:
        self.cache = Path(self.cache).absolute()
        self.train = self.train or train
        self._workers = Workers(self.cache / "results.jsonl", self.workers, self.say)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.__exit__(*error)

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome]:
        assert self.train is not None
        self._prepare(jobs)
        calls = {
            key_of(job): Call(
                function=_trained,
                arguments=(self.train, job, self.cache),
                told=_told(job),
                about={
                    "part": job.part,
                    "features": job.features,
                    "config": job.config.to_dict(),
                },
            )
            for job in jobs
        }
        found = self._workers(calls)
        outcomes = {
            key: Outcome(accuracy=float(one["accuracy"]), seconds=float(one["seconds"]))
            for key, one in found.items()
        }
        return [outcomes[key_of(job)] for job in jobs]

    def each(
        self, function: Callable[..., dict[str, Any]], settings: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """function(**one) -> plain values, for each of the settings; equal ones once.

        function: importable by a new process. A constant RESULTS in its module is a part of the
        cache's key: raise it when a change alters what the function computes.
        """
        version = getattr(sys.modules[function.__module__], "RESULTS", 1)
        name = f"{function.__module__}.{function.__qualname__}"
        keys = [_hash([name, version, one]) for one in settings]
        calls = {
            key: Call(
                function=_called,
                arguments=(function, dict(one)),
                told=f"{function.__name__}({', '.join(f'{k}={v}' for k, v in one.items())})",
                about={"function": name, "settings": dict(one)},
            )
            for key, one in zip(keys, settings, strict=True)
        }
        found = self._workers(calls)
        return [found[key] for key in keys]

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """One process computes what all of them read."""
        known = self._workers.known
        if self.train is train and self.workers > 0:
            missing = [job for job in jobs if key_of(job) not in known]
            for data, features in {(job.config.data, job.features) for job in missing}:
                if features is not None:
                    _whole(data, features, self.cache)


def _trained(train: Callable[[Job, Path], Outcome], job: Job, cache: Path) -> dict[str, Any]:
    return dataclasses.asdict(train(job, cache))


def _called(function: Callable[..., dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    return function(**settings)


def train(job: Job, cache: Path) -> Outcome:
    """Train one job in this process. A loss that is not finite is an accuracy of 0."""
    from steelyard.runs.claims import accuracy

    began = time.monotonic()
    problem = _problem(job, cache)
    try:
        result = accuracy(job.config, problem, quiet=True)
    except FloatingPointError:
        result = 0.0
    return Outcome(accuracy=result, seconds=round(time.monotonic() - began, 2))


def _problem(job: Job, cache: Path) -> Problem:
    from steelyard import models
    from steelyard.runs.problem import make_problem

    table = _table(job.config.data, job.part, job.features, cache)
    problem = make_problem(job.config, table)
    if job.features is None:
        return problem
    head = models.build("mlp", problem.task, seed=job.config.seed, hidden=())
    return dataclasses.replace(problem, model=head)


@lru_cache(maxsize=2)
def _table(data: str, part: str, features: str | None, cache: Path) -> Table:
    """The data set; under "validation", a part of the training samples in place of the test set."""
    from steelyard.data.split import held_out, keys, take

    table = _whole(data, features, cache)
    if part == "test":
        return table
    assert part == "validation"
    assert table.train_y is not None
    mask = held_out(keys(table.train_x), share=VALIDATION_SHARE, seed=VALIDATION_SALT)
    return dataclasses.replace(
        table,
        train_x=take(table.train_x, ~mask),
        train_y=table.train_y[~mask],
        test_x=take(table.train_x, mask),
        test_y=table.train_y[mask],
    )


@lru_cache(maxsize=1)
def _whole(data: str, features: str | None, cache: Path) -> Table:
    from steelyard.data import load

    table = load(data)
    if features is None:
        return table
    from steelyard.runs.embedding import embedded

    return embedded(table, features, cache)


@lru_cache(maxsize=64)
def _plan(config: TrainConfig, n: int) -> Any:
    from steelyard.runs.preview import plan_for

    return plan_for(config, n)


def plan_of(config: TrainConfig, n: int) -> Any:
    """`plan_for`, computed once for all runs that differ only in what no plan depends on."""
    return _plan(config.replace(**PLAN_FREE), n)


def _told(job: Job) -> str:
    config = job.config
    budget = "no privacy" if config.epsilon is None else f"epsilon {config.epsilon:.3g}"
    names = ("filters", "clip", "optimizer", "momentum", "public_weight", "public_first")
    shown = [str(value) for name in names if (value := getattr(config, name, None))]
    where = f"{job.features or config.data} {job.part} seed {config.seed}"
    return f"{where}, {budget}, lr {config.lr:g}, {' '.join(shown)}"
