"""Unlearning as a recipe: from a model and two files to a run folder with a model and a report.

    OUT/config.json, environment.json, events.jsonl, result.json, samples.json
    OUT/model/            model (LoRA: adapter) and tokenizer, as transformers and peft load them
    OUT/checkpoints/      the last two
    OUT/report.html, trajectory.png, trajectory.csv

Everything that can be wrong with the input is found before the folder is made.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from steelyard.bench.generation import greedy
from steelyard.bench.lume import evaluate as evaluate_lume
from steelyard.bench.lume_data import check_sets
from steelyard.bench.metrics import exact_match, rouge_l
from steelyard.data.prompts import read_prompts, refuse_overlap
from steelyard.hf.readers import read_tokenizer
from steelyard.hf.sources import locate, one_line, quiet
from steelyard.models import Task
from steelyard.runs.checkpoint import NoCheckpointError
from steelyard.runs.environment import environment
from steelyard.runs.events import Events
from steelyard.runs.folder import new_folder, refuse_existing, write_json
from steelyard.runs.problem import choose_device
from steelyard.runs.progress import RunProgress
from steelyard.runs.unlearn_config import UnlearnConfig
from steelyard.runs.unlearn_eval import encoded, evaluating, mean_loss
from steelyard.runs.unlearning import Row, Unlearning

Note = Callable[[str], None]
SHOWN = 4  # rows of each set whose answers are kept, before and after
EACH = 8  # rows of every task and kind that are generated for the scores


def unlearn(config: UnlearnConfig, out: Path, *, note: Note = lambda text: None) -> Path:
    """Unlearn into the new folder `out`; the path of its report.

    Raises ValueError (one line); where that is before the first step, nothing of `out` is left.
    """
    refuse_existing(out)
    forget, retain = _rows(config)
    _refuse_long(config, {"forget": forget, "retain": retain})
    model, tokenizer = load(config)
    return unlearn_loaded(config, model, tokenizer, forget, retain, out, note=note)


def unlearn_loaded(
    config: UnlearnConfig,
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[Row],
    retain: Sequence[Row],
    out: Path,
    *,
    note: Note = lambda text: None,
) -> Path:
    """As `unlearn`, of a model and rows that are there already; the model is changed in place."""
    refuse_existing(out)
    refuse_overlap(forget, retain)
    stop = _reference_loss(config, forget, note)
    run = Unlearning(
        config, model, tokenizer, forget, retain, run_id=uuid.uuid4().hex, stop_forget=stop
    )
    settings = config.to_dict() | {
        "kind": "unlearn", "run": run.run_id, "plan": None, "total_steps": run.steps,
        "reference_loss": stop,
    }  # fmt: skip
    with new_folder(out, lambda: run.step > 0):
        write_json(out / "environment.json", environment(run.device))
        write_json(out / "config.json", settings)
        note(f"{out}: {config.method}, {len(forget)} rows to forget, {len(retain)} to retain")
        before = look(model, tokenizer, forget, retain, config)
        write_json(out / "samples.json", {"before": before})
        with Events(out / "events.jsonl") as events:
            events.emit("start", 0, run=run.run_id, n_forget=len(forget), n_retain=len(retain))
            _finish(run, forget, retain, out, events)
    return out / "report.html"


def resume(out: Path, *, note: Note = lambda text: None) -> Path:
    """Go on with the run in `out`, bit for bit as if it had not been interrupted."""
    saved = _settings(out)
    if (out / "result.json").exists():
        note(f"{out}: finished already")
        return out / "report.html"
    config = UnlearnConfig.from_dict(saved)
    forget, retain = _rows(config)
    model, tokenizer = load(config)
    run = Unlearning(
        config, model, tokenizer, forget, retain, run_id=saved["run"],
        stop_forget=saved["reference_loss"],
    )  # fmt: skip
    try:
        for line in run.resume(out):
            note(line)
        note(f"{out}: going on after step {run.step} of {run.steps}")
    except NoCheckpointError:
        note(f"{out}: no checkpoint yet, starting from the first step")
    with Events(out / "events.jsonl") as events:
        events.resume(run.step, f"step {run.step}")
        _finish(run, forget, retain, out, events)
    return out / "report.html"


def load(config: UnlearnConfig) -> tuple[nn.Module, Any]:
    """The model of the settings, with its adapter, on its device; and its tokenizer."""
    from steelyard.hf.models import load_hf

    device = choose_device(config.device)
    task = Task(kind="language", shape=(config.length,), vocabulary=2)
    wrapped, tokenizer = load_hf(
        config.model, task, config.adapter, rank=config.rank, targets="all-linear",
        seed=config.seed,
    )  # fmt: skip
    if (
        config.adapter == "lora"
    ):  # the saved adapter names its base so, not by a path of this machine
        base = wrapped.hf.get_base_model()
        base.name_or_path = base.config._name_or_path = config.model
        wrapped.hf.active_peft_config.base_model_name_or_path = config.model
    return wrapped.hf.to(device), tokenizer


def look(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[Row],
    retain: Sequence[Row],
    config: UnlearnConfig,
) -> dict[str, Any]:
    """What the model writes for some rows of both sets, and how much of the answers it is.

    scores: of rows in LUME's form its twelve, from `EACH` rows of every task and kind; else mean
    ROUGE-L recall and exact match of `config.rows` rows of each set. samples: prompts, answers and
    what was written.
    """
    sets = {"forget": forget, "retain": retain}
    try:
        check_sets(forget, retain)
    except ValueError:  # the user's own rows
        most = max(SHOWN, config.rows)
        said = {k: _answers(model, tokenizer, v[:most], config) for k, v in sets.items()}
        return {
            "samples": {name: own[:SHOWN] for name, own in said.items()},
            "scores": {name: _scores(own[: config.rows]) for name, own in said.items()},
            "twelve": None,
        }
    samples = {k: _answers(model, tokenizer, v[:SHOWN], config) for k, v in sets.items()}
    found = evaluate_lume(
        model, tokenizer, forget, retain, rows=EACH, seed=config.seed,
        new_tokens=_room(config), template=config.template,
    )  # fmt: skip
    return {
        "samples": samples,
        "scores": found.scores,
        "twelve": found.twelve,
        "aggregate": found.aggregate,
    }


def _answers(
    model: nn.Module, tokenizer: Any, rows: Sequence[Row], config: UnlearnConfig
) -> list[dict[str, str]]:
    texts = greedy(
        model,
        tokenizer,
        [row["input"] for row in rows],
        max_new_tokens=_room(config),
        template=config.template,
        names=[f"row {row['id']}" for row in rows],
    )
    return [
        {"id": str(row["id"]), "input": row["input"], "output": row["output"], "written": text}
        for row, text in zip(rows, texts, strict=True)
    ]


def _scores(found: Sequence[dict[str, str]]) -> dict[str, float]:
    recalls = [rouge_l(one["output"], one["written"]).recall for one in found]
    exact = [exact_match(one["output"], one["written"]) for one in found]
    return {"recall": sum(recalls) / len(found), "exact": sum(exact) / len(found)}


def _room(config: UnlearnConfig) -> int:
    """New tokens for an answer: prompts and answers share the length."""
    return max(1, min(64, config.length // 2))


def _rows(config: UnlearnConfig) -> tuple[list[Row], list[Row]]:
    forget, retain = read_prompts(config.forget), read_prompts(config.retain)
    refuse_overlap(forget, retain)
    return forget, retain


def _refuse_long(config: UnlearnConfig, sets: dict[str, list[Row]]) -> None:
    """With the tokenizer alone: a large model is not loaded for rows that do not fit."""
    path = locate(config.model)
    with quiet(), one_line(config.model):
        tokenizer = read_tokenizer(path)
    for name, rows in sets.items():
        encoded(tokenizer, rows, config, name)


def _reference_loss(config: UnlearnConfig, forget: Sequence[Row], note: Note) -> float | None:
    """The forget loss of the reference model, to stop at; None without one."""
    if config.reference is None:
        return config.stop_forget
    model, tokenizer = load(config.replace(model=config.reference, adapter="full"))
    tokens = encoded(tokenizer, forget, config)
    with evaluating(model):
        loss = mean_loss(model, tokens, config.rows)
    note(f"the reference's forget loss is {loss:.3g}: unlearning stops there")
    return loss


def _finish(
    run: Unlearning, forget: Sequence[Row], retain: Sequence[Row], out: Path, events: Events
) -> None:
    from steelyard.report.unlearning import write_report

    config = run.config
    with RunProgress(run.steps, False, title=config.method, start=run.step) as progress:
        last = run.run(out, events, progress)
    events.emit("finish", run.step, seconds=run.seconds)
    saved: Any = run.model
    with quiet():
        saved.save_pretrained(out / "model")
        run.tokenizer.save_pretrained(out / "model")
    after = look(run.model, run.tokenizer, forget, retain, config)
    before = json.loads((out / "samples.json").read_text(encoding="utf-8"))["before"]
    write_json(out / "samples.json", {"before": before, "after": after})
    result = {
        "kind": "unlearn",
        "method": config.method,
        "model": config.model,
        "steps": run.step,
        "planned_steps": run.steps,
        "stopped": run.stopped,
        "seconds": round(run.seconds, 3),
        "lr": run.optimizer.param_groups[0]["lr"],
        "before": run.first,
        "after": last,
        "retain_limit": run.limit,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "trainable": sum(p.numel() for p in run.parameters),
    }
    write_json(out / "result.json", result)
    write_report(out)


def _settings(out: Path) -> dict[str, Any]:
    from steelyard.runs.folder import read_settings

    saved = read_settings(out)
    if saved.get("kind") != "unlearn":
        raise ValueError(f"{str(out)!r} is no unlearning run: steelyard train --resume {out}")
    return saved
