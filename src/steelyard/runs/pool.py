"""Train many small runs on a few processes, and never one of them twice.

Results are appended to `results.jsonl` in the cache folder, one line a run, as they come: a
measurement that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from steelyard.runs.arms import Job, Outcome
from steelyard.runs.config import TrainConfig

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
    text = json.dumps(said, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


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
        self.file = self.cache / "results.jsonl"
        self.known = dict(_read(self.file))
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """After an error or Ctrl-C, what has not begun does not begin."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome]:
        keys = [key_of(job) for job in jobs]
        missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in self.known}
        began = time.monotonic()
        for done, (key, outcome) in enumerate(self._train(missing), start=1):
            self.known[key] = outcome
            self._append(key, missing[key], outcome)
            left = (time.monotonic() - began) / done * (len(missing) - done)
            self.say(
                f"{done}/{len(missing)} {_told(missing[key])}: {outcome.accuracy:.2f} % in "
                f"{outcome.seconds:.1f} s; {left / 60:.0f} min left of these"
            )
        return [self.known[key] for key in keys]

    def _train(self, missing: dict[str, Job]) -> Iterator[tuple[str, Outcome]]:
        assert self.train is not None
        if self.workers < 1 or not missing:
            for key, job in missing.items():
                yield key, self.train(job, self.cache)
            return
        if self.train is train:  # one process computes what all of them read
            for data, features in {(job.config.data, job.features) for job in missing.values()}:
                if features is not None:
                    _whole(data, features, self.cache)
        if self._executor is None:  # kept: a new process spends seconds on imports and plans
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, context, _begin)
        futures = {
            self._executor.submit(self.train, job, self.cache): key for key, job in missing.items()
        }
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _append(self, key: str, job: Job, outcome: Outcome) -> None:
        record = {
            "key": key,
            **dataclasses.asdict(outcome),
            "part": job.part,
            "features": job.features,
            "config": job.config.to_dict(),
        }
        self.cache.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as file:
            # a line that a power cut tore stays alone
            file.seek(max(0, file.tell() - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


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


def _begin() -> None:
    """A new process: one thread, since two processes share two cores better than two threads twice.

    It ends with the process that made it, also when that one is killed.
    """
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _read(file: Path) -> Iterator[tuple[str, Outcome]]:
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            yield (
                record["key"],
                Outcome(accuracy=float(record["accuracy"]), seconds=float(record["seconds"])),
            )
        except (ValueError, KeyError, TypeError):  # torn by a power cut: it is trained again
            continue


def _told(job: Job) -> str:
    config = job.config
    budget = "no privacy" if config.epsilon is None else f"epsilon {config.epsilon:.3g}"
    names = ("filters", "clip", "optimizer", "momentum", "public_weight", "public_first")
    shown = [str(value) for name in names if (value := getattr(config, name, None))]
    where = f"{job.features or config.data} {job.part} seed {config.seed}"
    return f"{where}, {budget}, lr {config.lr:g}, {' '.join(shown)}"
