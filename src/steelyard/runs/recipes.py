"""Recipes: from settings to a run folder with a model, a ledger and a report.

    OUT/config.json, environment.json, events.jsonl, ledger.json, result.json, model.safetensors
    OUT/checkpoints/      the last two
    OUT/baseline/         the same without privacy (optional twin)
    OUT/report.html, curves.png, curves.csv

Everything that can be wrong with the input is found before the folder is made; a run that fails
before its first step takes the folder back.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steelyard.data import Table
from steelyard.plans.privacy import PrivacyPlan
from steelyard.runs.checkpoint import CheckpointError, NoCheckpointError
from steelyard.runs.config import TrainConfig
from steelyard.runs.environment import environment
from steelyard.runs.events import Events
from steelyard.runs.folder import (
    free_folder,
    new_folder,
    read_settings,
    refuse_existing,
    refuse_full_disk,
    write_json,
    write_weights,
)
from steelyard.runs.loop import Training
from steelyard.runs.optimizers import moments
from steelyard.runs.preview import Preview, estimate_memory, plan_for, preview
from steelyard.runs.problem import make_problem
from steelyard.runs.progress import RunProgress
from steelyard.runs.settings import DEFAULT, DEFAULT_BASELINE, Settled, settle
from steelyard.runs.trackers import find_tracker

Note = Callable[[str], None]
REPORT_BYTES = 2**22  # the report, its plots and the event log


def train(
    config: TrainConfig,
    out: Path,
    *,
    baseline: TrainConfig | None = None,
    table: Table | None = None,
    command: str = "",
    note: Note = lambda text: None,
) -> Path:
    """Train into the new folder `out`, then the twin without privacy, then write the report.

    `table`: the data, where it was read already. Returns the report's path. Raises ValueError (one
    line); where that is before the first step, nothing of `out` is left.
    """
    refuse_existing(out)
    training = _prepare(config, table)
    if baseline is not None:
        plan_for(baseline, training.problem.n)  # what is wrong with it is said now
    _start(training, out, command=command, baseline=baseline, note=note)
    if baseline is not None:
        _start(_prepare(baseline, table), out / "baseline", command="", note=note)
    return _report(out)


def resume(out: Path, *, note: Note = lambda text: None) -> Path:
    """Go on with the run in `out`, bit for bit as if it had not been interrupted."""
    saved = read_settings(out)
    _go_on(out, saved, note)
    twin = out / "baseline"
    if (twin / "config.json").exists():
        _go_on(twin, read_settings(twin), note)
    elif saved.get("baseline"):
        _start(_prepare(TrainConfig.from_dict(saved["baseline"])), twin, command="", note=note)
    return _report(out)


def _prepare(config: TrainConfig, table: Table | None = None) -> Training:
    problem = make_problem(config, table)
    plan, steps = plan_for(config, problem.n)
    return Training(problem, config, plan, steps, run_id=uuid.uuid4().hex)


def _start(
    training: Training,
    out: Path,
    *,
    command: str,
    note: Note,
    baseline: TrainConfig | None = None,
) -> None:
    """A run from its first step to its results."""
    config = training.config
    refuse_full_disk(out, _bytes(training))
    settings = config.to_dict() | {
        "command": command,
        "run": training.run_id,
        "total_steps": training.steps,
        "plan": training.plan.to_dict() if training.plan else None,
        "baseline": baseline.to_dict() if baseline else None,
    }
    with new_folder(out, lambda: training.step > 0):
        write_json(out / "environment.json", environment(training.problem.device))
        write_json(out / "config.json", settings)
        note(f"{out}: {_headline(training)}")
        warnings = training.private.warnings if training.private else []
        for text in (training.schedule.about, *training.schedule.notes, *warnings):
            if text:
                note(text)
        tracker = find_tracker(config.tracker, out, out.name)
        with Events(out / "events.jsonl", [tracker] if tracker else []) as events:
            events.emit("start", 0, run=training.run_id, **_shape(training))
            _finish(training, out, events)


def _go_on(out: Path, saved: dict[str, Any], note: Note) -> None:
    """A run from its newest checkpoint to its results; nothing where it has them."""
    if (out / "result.json").exists():
        note(f"{out}: finished already")
        return
    config = TrainConfig.from_dict(saved)
    problem = make_problem(config)
    plan = PrivacyPlan.from_dict(saved["plan"]) if saved["plan"] else None
    training = Training(problem, config, plan, saved["total_steps"], run_id=saved["run"])
    try:
        for line in training.resume(out):
            note(line)
        note(f"{out}: going on after step {training.step} of {training.steps}")
    except NoCheckpointError:
        note(f"{out}: no checkpoint yet, starting from the first step")
    tracker = find_tracker(config.tracker, out, out.name, resumed_at=training.step)
    with Events(out / "events.jsonl", [tracker] if tracker else []) as events:
        if events.path.stat().st_size == 0:  # killed before the first event
            events.emit("start", 0, run=training.run_id, **_shape(training))
        events.resume(training.step, f"step {training.step}")
        _finish(training, out, events)


def _finish(training: Training, out: Path, events: Events) -> None:
    """Run to the end and write the results; the ledger is written whatever happens."""
    config, plan = training.config, training.plan
    try:
        with RunProgress(
            training.steps,
            plan is not None,
            title="private" if plan else "not private",
            target_epsilon=config.epsilon,
            start=training.step,
        ) as progress:
            measured = training.run(out, events, progress)
    except CheckpointError as error:
        if (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
            how = f"steelyard train --resume {shlex.quote(str(out))}"
            raise CheckpointError(f"{error}; go on later with: {how}") from error
        raise
    finally:
        if training.ledger is not None and training.ledger.steps:
            report = training.ledger.report()
            report["assumptions"] += training.problem.assumptions
            write_json(out / "ledger.json", report)
    epsilon = training.ledger.epsilon() if training.ledger else None
    events.emit("finish", training.step, seconds=training.seconds, epsilon=epsilon)
    write_weights(out / "model.safetensors", training.released)
    if training.private is not None:
        training.private.write_spectrum(out / "spectrum.csv")
    beside = config.public_batch * training.public_steps
    seen = training.expected_batch * (training.steps - training.public_steps) + beside
    parameters, trainable = training.sizes
    result = {
        "private": plan is not None,
        "model": config.model,
        "data": config.data,
        "steps": training.steps,
        "seconds": round(training.seconds, 3),
        "samples_per_s": round(seen / max(training.seconds, 1e-9), 1),
        "epsilon": epsilon,
        "public_steps": training.public_steps,
        "delta": plan.delta if plan else None,
        "noise_multiplier": plan.noise_multiplier if plan else None,
        "noise_inflation": training.private.inflation if training.private else None,
        "n_public": training.problem.n_public,
        **{f"test_{name}": value for name, value in measured.items()},
        "parameters": parameters,
        "trainable": trainable,
    }
    write_json(out / "result.json", result)


def _shape(training: Training) -> dict[str, Any]:
    parameters, trainable = training.sizes
    return {
        "private": training.plan is not None,
        "n": training.problem.n,
        "n_public": training.problem.n_public,
        "expected_batch": training.expected_batch,
        "steps": training.steps,
        "parameters": parameters,
        "trainable": trainable,
        "engine": training.engine,
    }


def _headline(training: Training) -> str:
    plan = training.plan
    protection = "no privacy"
    if plan is not None:
        budget = f"epsilon {plan.target_epsilon:g} at delta {plan.delta:.2g}"
        protection = f"{budget}, noise {plan.noise_multiplier:.3f}"
        if training.private is not None and (more := training.private.inflation) != 1:
            protection += f" x {more:.3f} for error feedback"
    return f"{training.steps:,} steps, {protection}"


def _bytes(training: Training) -> int:
    """About what the run will need on the disk: two checkpoints and a third being written."""
    parameters, trainable = training.sizes
    copies = 2 if training.config.average else 1
    kept = moments(training.config) + (training.private.buffers if training.private else 0)
    checkpoint = 4 * (copies * parameters + kept * trainable)
    return 3 * checkpoint + 4 * parameters + REPORT_BYTES


def _report(out: Path) -> Path:
    from steelyard.report.page import write_report  # matplotlib: only to draw a report

    return write_report(out)


__all__ = [
    "DEFAULT",
    "DEFAULT_BASELINE",
    "Preview",
    "Settled",
    "estimate_memory",
    "free_folder",
    "plan_for",
    "preview",
    "refuse_existing",
    "resume",
    "settle",
    "train",
]
