"""Recipes: from settings to a run folder with a model, a ledger and a report.

    OUT/config.json, environment.json, events.jsonl, ledger.json, result.json, model.safetensors
    OUT/checkpoints/      the last two
    OUT/baseline/         the same without privacy (optional twin)
    OUT/report.html, curves.png, curves.csv

Everything that can be wrong with the input is found before the folder is made.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from steelyard.data import load
from steelyard.plans.privacy import PrivacyPlan, plan_privacy
from steelyard.runs.checkpoint import NoCheckpointError
from steelyard.runs.config import TrainConfig, parse_groups
from steelyard.runs.environment import environment
from steelyard.runs.events import Events
from steelyard.runs.files import write_atomically
from steelyard.runs.loop import Interrupted, Training
from steelyard.runs.problem import Problem, make_problem
from steelyard.runs.progress import RunProgress
from steelyard.runs.trackers import find_tracker

Note = Callable[[str], None]

# Tuned once for each side with equal effort (docs/experiments.md); the cost of tuning is not
# charged.
DEFAULT = TrainConfig(
    model="cnn",
    data="fashion-mnist-small",
    epsilon=3.0,
    delta=1e-5,
    epochs=30,
    batch=1024,
    micro_batch=1024,
    clip="auto-s",
    optimizer="sgd",
    lr=1.0,
    momentum=0.9,
)
DEFAULT_BASELINE = DEFAULT.replace(epsilon=None, delta=None, batch=128, lr=0.05, epochs=15)

# Where only a model is named: settings that are sensible for its kind.
_TRANSFORMER = DEFAULT.replace(optimizer="adamw", lr=1e-3, batch=512, micro_batch=64, epochs=10)
BY_MODEL = {
    "cnn": DEFAULT,
    "mlp": DEFAULT.replace(model="mlp", lr=0.5),
    "vit": _TRANSFORMER.replace(model="vit"),
    "gpt": _TRANSFORMER.replace(model="gpt", micro_batch=32),
}
BY_KIND = {"image": "cnn", "features": "mlp", "text": "minilm"}


def settle(settings: dict[str, Any], *, private: bool) -> tuple[TrainConfig, TrainConfig]:
    """The run's settings and its twin's without privacy, from what the user gave."""
    given = dict(settings)
    if "data" in given and "model" not in given:
        table = load(
            given["data"], text=given.get("text"), label=given.get("label"), test=given.get("test")
        )
        labelled = table.train_y is not None
        given["model"] = BY_KIND[table.kind] if labelled else "gpt"
    model = given.get("model", DEFAULT.model)
    start = BY_MODEL.get(model, _TRANSFORMER.replace(model=model))
    if "data" in given:
        start = start.replace(delta=None)  # chosen from n
    if "steps" in given and "epochs" not in given:
        given["epochs"] = None
    config = start.replace(**given)
    quiet = {"epsilon": None, "delta": None, "noise_seed": None}
    if not private:
        config = config.replace(**quiet)
    twin = config.replace(**quiet)
    if model == DEFAULT.model:  # its own tuned settings, unless the user chose
        tuned = {k: getattr(DEFAULT_BASELINE, k) for k in ("batch", "lr", "epochs")}
        twin = twin.replace(**{k: v for k, v in tuned.items() if k not in given})
    if not private and model == DEFAULT.model:
        config = twin
    return config, twin


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a run would do and cost: the answer to `--dry-run`."""

    plan: PrivacyPlan | None
    steps: int
    n: int
    n_test: int
    parameters: int
    trainable: int
    engine: str
    memory: dict[str, float]  # MiB, by part
    notes: list[str]


def plan_for(config: TrainConfig, n: int) -> tuple[PrivacyPlan | None, int]:
    """The privacy plan (None without privacy) and the number of steps."""
    if not config.private:
        if config.batch > n:
            raise ValueError(f"--batch {config.batch} exceeds the {n} training samples: lower it")
        return None, config.steps or max(1, -(-int(float(config.epochs or 0) * n) // config.batch))
    plan = plan_privacy(
        n=n,
        batch=config.batch,
        steps=config.steps,
        epochs=config.epochs,
        epsilon=config.epsilon,
        delta=config.delta,
        accountant=config.accountant,
    )
    return plan, plan.steps


def train(
    config: TrainConfig,
    out: Path,
    *,
    baseline: TrainConfig | None = None,
    command: str = "",
    note: Note = lambda text: None,
) -> Path:
    """Train into the new folder `out`, then the twin without privacy, then write the report.

    Returns the report's path. Raises ValueError (one line) before anything is written.
    """
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ValueError(
            f"the output folder {str(out)!r} exists already: choose another --out, or continue "
            "it with "
            f"--resume {out}"
        )
    problem = make_problem(config)
    plan, steps = plan_for(config, problem.n)
    training = Training(problem, config, plan, steps, run_id=uuid.uuid4().hex)
    tracker = find_tracker(config.tracker, out, out.name)
    twin = None if baseline is None else (baseline, plan_for(baseline, problem.n)[1])
    _write_start(out, training, command=command, baseline=baseline)
    with Events(out / "events.jsonl", [tracker] if tracker else []) as events:
        events.emit("start", 0, run=training.run_id, **_shape(training))
        _finish(training, out, events, note)
    if twin is not None:
        _baseline(twin[0], out / "baseline", note)
    return _report(out)


def resume(out: Path, *, note: Note = lambda text: None) -> Path:
    """Go on with the run in `out`, bit for bit as if it had not been interrupted."""
    saved = _read_config(out)
    config = TrainConfig.from_dict(saved)
    if not (out / "result.json").exists():
        problem = make_problem(config)
        plan = PrivacyPlan.from_dict(saved["plan"]) if saved.get("plan") else None
        steps = plan.steps if plan else int(saved["total_steps"])
        training = Training(problem, config, plan, steps, run_id=saved["run"])
        try:
            for line in training.resume(out):
                note(line)
        except NoCheckpointError:
            note("no checkpoint yet: starting from the first step")
        tracker = find_tracker(config.tracker, out, out.name, resumed_at=training.step)
        with Events(out / "events.jsonl", [tracker] if tracker else []) as events:
            events.resume(training.step, f"step {training.step}")
            _finish(training, out, events, note)
    if (out / "baseline" / "config.json").exists():
        resume_only(out / "baseline", note)
    elif saved.get("baseline"):
        _baseline(TrainConfig.from_dict(saved["baseline"]), out / "baseline", note)
    return _report(out)


def resume_only(out: Path, note: Note) -> None:
    if not (out / "result.json").exists():
        resume(out, note=note)


def preview(config: TrainConfig) -> Preview:
    """Everything but the training. Raises what `train` would raise."""
    problem = make_problem(config)
    plan, steps = plan_for(config, problem.n)
    training = Training(problem, config, plan, steps, run_id="preview")
    return Preview(
        plan=plan,
        steps=steps,
        n=problem.n,
        n_test=len(problem.test_x),
        parameters=_count(problem, trainable=False),
        trainable=_count(problem, trainable=True),
        engine=training.rows.engine if training.rows else "autograd",
        memory=estimate_memory(training),
        notes=problem.notes,
    )


def estimate_memory(training: Training) -> dict[str, float]:
    """MiB needed, by part; activations are measured on two samples and scaled to a micro-batch."""
    problem, config = training.problem, training.config
    parameters = 4 * _count(problem, trainable=False)
    trainable = 4 * _count(problem, trainable=True)
    moments = {"sgd": 1 if config.momentum else 0, "adam": 2, "adamw": 2}[config.optimizer]
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    two = torch.arange(min(2, problem.n))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        problem.losses(problem.model, *problem.batch(two))
    if training.rows is not None:
        training.rows.discard()
    own = {p.untyped_storage().data_ptr() for p in problem.model.parameters()}
    per_sample = sum(size for place, size in held.items() if place not in own) / len(two)
    pieces = min(config.micro_batch, config.batch)
    # all-layer clipping holds the output gradients of every layer until the norms are known
    factor = 2 if training.rows is not None and parse_groups(config.groups) == "all" else 1
    data = problem.train_x.nbytes + problem.test_x.nbytes
    parts = {
        "parameters": parameters,
        "gradients": trainable,
        "optimizer": moments * trainable,
        "average": parameters if config.average else 0,
        "activations": factor * per_sample * pieces,
        "data": data,
    }
    return {name: size / 2**20 for name, size in parts.items()}


def free_folder(config: TrainConfig, parent: Path = Path("runs")) -> Path:
    """runs/<data>-<model>-<k> with the first free k."""
    stem = "".join(c if c.isalnum() else "-" for c in f"{Path(config.data).stem}-{config.model}")
    k = 1
    while (parent / f"{stem}-{k}").exists():
        k += 1
    return parent / f"{stem}-{k}"


def _baseline(config: TrainConfig, out: Path, note: Note) -> None:
    problem = make_problem(config)
    plan, steps = plan_for(config, problem.n)
    training = Training(problem, config, plan, steps, run_id=uuid.uuid4().hex)
    _write_start(out, training, command="")
    with Events(out / "events.jsonl") as events:
        events.emit("start", 0, run=training.run_id, **_shape(training))
        _finish(training, out, events, note)


def _finish(training: Training, out: Path, events: Events, note: Note) -> None:
    """Run to the end and write the results; the ledger is written whatever happens."""
    config, plan = training.config, training.plan
    title = "private" if plan else "not private"
    try:
        with RunProgress(
            training.steps,
            plan is not None,
            title=title,
            target_epsilon=config.epsilon,
            start=training.step,
        ) as progress:
            measured = training.run(out, events, progress)
    finally:
        if training.ledger is not None and training.ledger.steps:
            _write(out / "ledger.json", training.ledger.report())
    epsilon = training.ledger.epsilon() if training.ledger else None
    events.emit("finish", training.step, seconds=training.seconds, epsilon=epsilon)
    weights = {k: v.detach().contiguous() for k, v in _untied(training.released).items()}
    save_file(weights, out / "model.safetensors.tmp")
    (out / "model.safetensors.tmp").replace(out / "model.safetensors")
    seen = training.expected_batch * training.steps
    _write(
        out / "result.json",
        {
            "private": plan is not None,
            "model": config.model,
            "data": config.data,
            "steps": training.steps,
            "seconds": round(training.seconds, 3),
            "samples_per_s": round(seen / max(training.seconds, 1e-9), 1),
            "epsilon": epsilon,
            "delta": plan.delta if plan else None,
            "noise_multiplier": plan.noise_multiplier if plan else None,
            **{f"test_{name}": value for name, value in measured.items()},
            **{k: v for k, v in _shape(training).items() if k in ("parameters", "trainable")},
        },
    )


def _shape(training: Training) -> dict[str, Any]:
    return {
        "private": training.plan is not None,
        "n": training.problem.n,
        "expected_batch": training.expected_batch,
        "steps": training.steps,
        "parameters": _count(training.problem, trainable=False),
        "trainable": _count(training.problem, trainable=True),
        "engine": training.rows.engine if training.rows else "autograd",
    }


def _count(problem: Problem, *, trainable: bool) -> int:
    return sum(p.numel() for p in problem.model.parameters() if p.requires_grad or not trainable)


def _untied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state with tied tensors once, under their first name."""
    seen: dict[int, str] = {}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if seen.setdefault(tensor.data_ptr() or id(tensor), name) == name
    }


def _write_start(
    out: Path, training: Training, *, command: str, baseline: TrainConfig | None = None
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    settings = training.config.to_dict() | {
        "command": command,
        "run": training.run_id,
        "total_steps": training.steps,
        "plan": training.plan.to_dict() if training.plan else None,
        "baseline": baseline.to_dict() if baseline else None,
    }
    _write(out / "environment.json", environment(training.problem.device))
    _write(out / "config.json", settings)


def _read_config(out: Path) -> dict[str, Any]:
    path = out / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"nothing to resume: {str(path)!r} does not exist") from None
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from None


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1, allow_nan=True) + "\n")


def _report(out: Path) -> Path:
    from steelyard.report.page import (
        write_report,
    )  # matplotlib: only when there is a report to draw

    return write_report(out)


__all__ = [
    "DEFAULT",
    "DEFAULT_BASELINE",
    "Interrupted",
    "Preview",
    "preview",
    "resume",
    "settle",
    "train",
]
