"""Curves of loss and learning rate from run folders, CSV files and TensorBoard's event files.

A step t from 1 moves w_{t-1} to w_t at the rate eta_t. A training loss logged at step t is of the
batch before that move, so it belongs to w_{t-1}; a test loss logged behind step t belongs to w_t.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.plans.schedule_shapes import KINDS, Floats, Shape
from steelyard.runs.events import read_events

SETTINGS = ("model", "data", "optimizer", "batch", "momentum", "weight_decay", "clip", "groups")
LOSSES = ("auto", "train", "test")
EXTRA = "reading TensorBoard's files needs the extra: pip install 'steelyard[track]'"


@dataclass(frozen=True, kw_only=True, eq=False)
class LossCurve:
    """One run. lr: [T] the rate of every step. steps, losses: [n], steps taken when each loss was
    measured, rising. split: "train", "test" or the name of a column. shape: of the schedule where
    it is known. settings: what runs must share to follow one law. notes: what the reader decided.
    """

    name: str
    lr: Floats
    steps: Floats
    losses: Floats
    split: str
    shape: Shape | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def horizon(self) -> int:
        """T, the run's optimizer steps."""
        return len(self.lr)

    @property
    def peak(self) -> float:
        return float(self.lr.max())

    def final(self, tail: float = 0.05) -> float:
        """The mean loss over the last `tail` of the steps, or the last one alone."""
        return float(
            self.losses[self.steps > min((1 - tail) * self.horizon, self.steps[-1] - 1)].mean()
        )


def read_curves(source: str | Path, loss: str = "auto", lr: str = "lr") -> list[LossCurve]:
    """The runs in `source`: a run folder, a CSV file (one run, or several by a column `run`), or a
    TensorBoard event file or folder.

    loss: "auto" is the training loss where all of it is logged, else the test loss (a private run
    logs no training loss); or "train", "test", or the name of a column or tag. lr: name of the
    learning rate's column or tag.

    Raises ValueError, one line: nothing to read, no such column, values that are not finite, a run
    that did not finish.
    """
    path = Path(source)
    if (path / "events.jsonl").is_file():
        return [_from_run(path, loss)]
    if path.suffix == ".csv" and path.is_file():
        return _from_csv(path, loss, lr)
    events = "events.out.tfevents"
    if path.is_dir() and any(events in p.name for p in path.iterdir()):
        return [_from_tensorboard(path, loss, lr)]
    if path.is_file() and events in path.name:
        return [_from_tensorboard(path, loss, lr)]
    raise ValueError(
        f"nothing to read at '{path}': give a run folder, a .csv file, or TensorBoard's event files"
    )


def _from_run(folder: Path, loss: str) -> LossCurve:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        planned = int(config["total_steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{folder}' has no readable config.json of a run ({error!r})") from None
    events = read_events(folder / "events.jsonl")
    finish = [event["step"] for event in events if event["kind"] == "finish"]
    if not finish:
        done = max((event["step"] for event in events), default=0)
        raise ValueError(
            f"'{folder}' stopped at step {done} of {planned}: finish it with steelyard train "
            "--resume, or leave it out"
        )
    T = finish[-1]
    train = [event for event in events if event["kind"] == "train"]
    lr = _every_step([(e["step"], e["lr"]) for e in train], T, str(folder))
    shape = _shape_of(config, T)
    if shape is not None:
        exact = float(config["lr"]) * shape(T)
        logged = np.array([e["step"] for e in train])
        same = np.allclose(exact[logged - 1], lr[logged - 1], rtol=1e-6, atol=0)
        lr, shape = (exact, shape) if same else (lr, None)
    notes: list[str] = []
    private = config.get("epsilon") is not None
    whole = all(event.get("loss") is not None for event in train)
    if loss == "train" and not whole:
        why = "a private run logs none" if private else "some are not finite"
        raise ValueError(f"'{folder}' has no training losses: {why}; use the test loss")
    split = ("train" if whole else "test") if loss == "auto" else loss
    if split not in LOSSES:
        raise ValueError(f"unknown loss {loss!r} of '{folder}': choose one of {', '.join(LOSSES)}")
    if split == "train":
        points = [(e["step"] - 1, e["loss"]) for e in train]
    else:
        points = [(e["step"], e.get("loss")) for e in events if e["kind"] == "eval"]
        if loss == "auto":
            notes.append("a private run logs no training loss: its test loss is used, as public")
        if config.get("average"):
            notes.append("the test loss is of averaged weights, which the law does not describe")
    noise = (config.get("plan") or {}).get("noise_multiplier")
    settings = {key: config[key] for key in SETTINGS if key in config}
    settings |= {"private": private} | ({} if noise is None else {"noise": noise})
    return _curve(folder.as_posix(), lr, points, split, shape, settings, notes)


def _shape_of(config: Mapping[str, Any], T: int) -> Shape | None:
    """The schedule of a run by its settings; None where public steps make it another."""
    if config.get("schedule") not in KINDS or config.get("public_first"):
        return None
    warmup = int(config.get("warmup", 0))
    return Shape(kind=config["schedule"], warmup=warmup / T) if warmup < T else None


def _from_csv(path: Path, loss: str, lr: str) -> list[LossCurve]:
    name = "loss" if loss in ("auto", "train") else loss
    runs: dict[str, list[tuple[float, float | None, float | None]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        for wanted in ("step", lr, name):
            if wanted not in columns:
                raise ValueError(f"'{path}' has no column {wanted!r}, it has {', '.join(columns)}")
        for row in rows:
            try:
                step = float(row["step"])
                pair = [float(row[key]) if row[key] else None for key in (lr, name)]
            except (ValueError, TypeError):
                raise ValueError(
                    f"'{path}' line {rows.line_num} is not numbers: {list(row.values())}"
                ) from None
            runs.setdefault(row.get("run") or path.stem, []).append((step, pair[0], pair[1]))
    if not runs:
        raise ValueError(f"'{path}' has no rows below its header")
    return [
        _logged(
            run,
            [(step, rate) for step, rate, _ in points if rate is not None],
            [(step, value) for step, _, value in points if value is not None],
            name,
        )
        for run, points in runs.items()
    ]


def _from_tensorboard(path: Path, loss: str, lr: str) -> LossCurve:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise ValueError(EXTRA) from None
    log = EventAccumulator(str(path), size_guidance={"scalars": 0})
    log.Reload()
    tags: list[str] = log.Tags()["scalars"]

    def find(what: str, names: Iterable[str]) -> str:
        for name in names:
            if name in tags:
                return name
        raise ValueError(
            f"'{path}' has no {what} {' or '.join(names)}, it has {', '.join(tags) or 'no tags'}"
        )

    rates = find("learning rate", dict.fromkeys((lr, f"train/{lr}", "train/learning_rate")))
    guesses = {
        "auto": ("train/loss", "loss", "Loss/train", "test/loss"),
        "train": ("train/loss", "loss", "Loss/train"),
        "test": ("test/loss", "eval/loss", "Loss/test"),
    }
    tag = find("loss", guesses.get(loss, (loss,)))
    read = {name: [(e.step, e.value) for e in log.Scalars(name)] for name in (rates, tag)}
    return _logged(path.as_posix(), read[rates], read[tag], tag)


def _logged(
    name: str, rates: list[tuple[float, float]], losses: list[tuple[float, float]], split: str
) -> LossCurve:
    """A run of which only the log is known: it is taken to end with its last line."""
    first = min((step for step, _ in (*rates, *losses)), default=1)
    shift = 1 if first == 0 else 0  # a loop that counts its steps from 0
    T = int(max((step for step, _ in (*rates, *losses)), default=0)) + shift
    lr = _every_step([(step + shift, rate) for step, rate in rates], T, name)
    test = "test" in split.lower() or "eval" in split.lower() or "val" in split.lower()
    behind = shift if test else shift - 1
    return _curve(name, lr, [(s + behind, v) for s, v in losses], split, None, {}, [])


def _every_step(points: list[tuple[float, float]], T: int, name: str) -> Floats:
    """[T] rates from those that were logged, straight lines between them."""
    latest = dict(sorted(points, key=lambda point: point[0]))  # a resumed run logs a step again
    rates = np.array(list(latest.values()), dtype=float)
    if not latest or not np.isfinite(rates).all() or rates.min() < 0 or rates.max() == 0:
        raise ValueError(f"'{name}' has no learning rates, or some below 0 or not finite: log them")
    return np.interp(np.arange(1, T + 1), list(latest), rates)


def _curve(
    name: str,
    lr: Floats,
    points: list[tuple[float, Any]],
    split: str,
    shape: Shape | None,
    settings: Mapping[str, Any],
    notes: list[str],
) -> LossCurve:
    latest = dict(sorted(points, key=lambda point: point[0]))
    losses = np.array([math.nan if v is None else v for v in latest.values()], dtype=float)
    if not len(losses):
        raise ValueError(f"'{name}' has no {split} loss: log it, or name another with --loss")
    if not np.isfinite(losses).all():
        raise ValueError(f"'{name}' has a {split} loss that is not finite: leave the run out")
    return LossCurve(
        name=name,
        lr=lr,
        steps=np.array(list(latest), dtype=float),
        losses=losses,
        split=split,
        shape=shape,
        settings=settings,
        notes=tuple(notes),
    )
