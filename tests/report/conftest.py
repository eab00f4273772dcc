"""Synthetic run folders, as the training loop leaves them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

N = 12_000
BATCH, STEPS = {True: 1024, False: 128}, {True: 352, False: 1407}  # by private
MakeRun = Callable[..., Path]


def events(*, private: bool, steps: int, language: bool = False) -> list[dict[str, Any]]:
    """The events of a run that learns along 1 - exp(-t), with the epsilon growing like sqrt(t)."""
    planned, ceiling, floor = (
        (STEPS[private], 0.83, 0.62) if private else (STEPS[private], 0.902, 0.3)
    )
    shape = {"n": N, "expected_batch": BATCH[private], "steps": planned, "engine": "one pass"}
    shape |= {"private": private, "parameters": 26010, "trainable": 26010, "run": "0a1b2c"}
    rows: list[dict[str, Any]] = [{"time": 1_760_000_000.0, "kind": "start", "step": 0, **shape}]
    every = planned // 20
    for step in sorted({*range(every, steps + 1, every), steps}):
        epsilon = round(2.993 * math.sqrt(step / planned), 4) if private else None
        common = {"time": 1_760_000_000.0 + 0.12 * step, "step": step}
        grown = 1 - math.exp(-7 * step / planned)
        accuracy = round(0.1 + (ceiling - 0.1) * grown + 0.006 * math.sin(step), 4)
        loss = round(2.303 - (2.303 - floor) * grown, 4)
        score = {"perplexity": round(math.exp(loss), 3)} if language else {"accuracy": accuracy}
        train = {"samples_per_s": 2100.5, "lr": 0.5, "loss": None if private else loss - 0.05}
        rows.append({**common, "kind": "train", "epsilon": epsilon, **train})
        measured = {"split": "test", "n": 2000, "epsilon": epsilon, "loss": loss, **score}
        rows.append({**common, "kind": "eval", **measured})
    return rows


def ledger() -> dict[str, Any]:
    return {
        "neighbouring_relation": "add or remove one sample",
        "sampling": "poisson",
        "n": N,
        "q": BATCH[True] / N,
        "sigma": 0.823,
        "steps": STEPS[True],
        "epsilon": 2.993,
        "delta": 1e-5,
        "accountant": "pld",
        "target": 3.0,
        "public": ["the number of training samples", "the number of classes"],
        "unprotected": [],
        "assumptions": [
            "Each batch is a Poisson sample, drawn afresh at every step.",
            "The noise is Gaussian in floating point; the theory is for real numbers.",
        ],
        "noise_seeded_by_user": False,
        "history": [{"noise_multiplier": 0.823, "sampling_probability": 0.0853, "steps": 352}],
    }


def config(*, private: bool) -> dict[str, Any]:
    return {
        "model": "cnn", "data": "fashion-mnist-small", "text": None, "label": None, "length": 128,
        "adapter": "lora", "epsilon": 3.0 if private else None, "delta": 1e-5 if private else None,
        "accountant": "pld", "clip": "auto-s", "groups": "all", "strict": False,
        "epochs": 30 if private else 15, "steps": None, "batch": BATCH[private],
        "micro_batch": 1024, "optimizer": "sgd", "lr": 1.0 if private else 0.05, "momentum": 0.9,
        "weight_decay": 0.0, "schedule": "constant", "warmup": 0, "average": None,
        "device": "auto", "seed": 0, "noise_seed": None, "tracker": "none",
        "command": "steelyard train --epsilon 3 --seed 0" if private else "",
        "run": "0a1b2c", "total_steps": STEPS[private], "plan": {"n": N} if private else None,
        "baseline": None,
    }  # fmt: skip


def result(rows: list[dict[str, Any]], *, private: bool) -> dict[str, Any]:
    last = [row for row in rows if row["kind"] == "eval"][-1]
    scores = {f"test_{k}": last[k] for k in ("loss", "accuracy", "perplexity") if k in last}
    return {
        "private": private, "model": "cnn", "data": "fashion-mnist-small", "steps": STEPS[private],
        "seconds": 57.3, **scores, "epsilon": 2.993 if private else None,
        "delta": 1e-5 if private else None, "noise_multiplier": 0.823 if private else None,
        "parameters": 26010, "trainable": 26010, "samples_per_s": 2101.7,
    }  # fmt: skip


def write(
    folder: Path,
    *,
    private: bool = True,
    baseline: bool = False,
    complete: bool = True,
    language: bool = False,
    extra: list[dict[str, Any]] | None = None,
    change: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """One run folder; `change` updates files by name, `extra` adds events before the end."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = STEPS[private] if complete else STEPS[private] // 2
    rows = events(private=private, steps=steps, language=language)
    spent = rows[-1]["epsilon"]
    rows += extra or []
    if complete:
        rows.append({"time": 1_760_000_099.0, "kind": "finish", "step": steps, "seconds": 57.3})
    files: dict[str, dict[str, Any]] = {
        "config": config(private=private),
        "environment": {
            "python": "3.11.2", "torch": "2.13.0", "steelyard": "0.1.0", "platform": "Linux x86_64",
            "cpu": "AMD EPYC", "cores": 2, "threads": 2, "device": "cpu",
        },
    }  # fmt: skip
    if private:
        files["ledger"] = ledger()
        if not complete:
            files["ledger"].update(steps=steps, epsilon=spent)
    if complete:
        files["result"] = result(rows, private=private)
    for name, content in files.items():
        content.update((change or {}).get(name, {}))
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "events.jsonl").write_text(lines, encoding="utf-8")
    if baseline:
        write(folder / "baseline", private=False, language=language)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(private=..., baseline=..., ...)` writes a run folder and gives its path."""

    def make(name: str = "run", **options: Any) -> Path:
        return write(tmp_path / name, **options)

    return make


def unlearned(folder: Path, **changes: Any) -> Path:
    """A finished unlearning run of three looks; `changes` update files by name, events replace."""
    losses = [(0, 0.004, 0.003), (5, 1.5, 0.1), (10, 3.0, 0.2)]
    looks = [{"kind": "eval", "step": s, "forget_loss": f, "retain_loss": r} for s, f, r in losses]
    steps = [{"kind": "train", "step": s, "cosine": -0.1, "lr": 0.01} for s in range(1, 11)]
    start = {"time": 1_760_000_000.0, "kind": "start", "step": 0}
    events = changes.pop("events", [start, *looks, *steps])
    texts = [{"id": "1", "input": "who?", "output": " Ada", "written": "Ada"}]
    after = [{**texts[0], "written": "Bob"}]
    scores = {"forget": {"recall": 1.0, "exact": 1.0}, "retain": {"recall": 1.0, "exact": 1.0}}
    half = {"forget": {"recall": 0.4, "exact": 0.0}, "retain": {"recall": 1.0, "exact": 1.0}}
    files: dict[str, dict[str, Any]] = {
        "config": {"kind": "unlearn", "method": "npo", "lr": 0.01, "reference": None,
                   "reference_loss": None, "beta": None, "run": "0a1b2c"},
        "environment": {"python": "3.11.2", "steelyard": "0.1.0"},
        "samples": {
            "before": {"samples": {"forget": texts, "retain": texts}, "scores": scores,
                       "twelve": None},
            "after": {"samples": {"forget": after, "retain": texts}, "scores": half,
                      "twelve": None},
        },
        "result": {
            "method": "npo", "model": "/models/tiny", "steps": 10, "planned_steps": 10,
            "stopped": "", "seconds": 2.5, "lr": 0.01, "retain_limit": None,
            "before": {"forget_loss": 0.004, "retain_loss": 0.003},
            "after": {"forget_loss": 3.0, "retain_loss": 0.2}, "parameters": 900, "trainable": 900,
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        content.update(changes.get(name, {}))
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    text = "".join(json.dumps(row) + "\n" for row in events)
    (folder / "events.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def make_unlearned(tmp_path: Path) -> MakeRun:
    """`make_unlearned(name, result={...}, ...)` writes a finished unlearning run; its path."""

    def make(name: str = "unlearned", **changes: Any) -> Path:
        return unlearned(tmp_path / name, **changes)

    return make
