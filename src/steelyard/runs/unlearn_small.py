"""The small benchmark from end to end: a target that has memorised it, methods, and a reference.

target     trained on what is to be forgotten and on what is to be retained     (cached)
reference  trained on what is to be retained alone, the same steps               (cached)
method     the target, unlearned; stops at the reference's forget loss

OUT/<method>/     a run folder each, with its own report
OUT/scores.json   LUME's scores of target, reference and methods; processor seconds of each
OUT/report.html, trajectories.png
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.runs.folder import new_folder, refuse_existing, write_json
from steelyard.runs.unlearn_config import UnlearnConfig

if TYPE_CHECKING:
    from steelyard.bench.small_files import Small

Note = Callable[[str], None]
METHODS = ("graddiff", "npo", "ngdiff")
RATES = {"graddiff": 4e-4, "npo": 8e-4, "ngdiff": 2e-4}  # each the best of four: docs/unlearn.md
TUNED_ON = 1  # the seed of that
FIXED = ("forget", "retain", "template", "reference", "out")  # what the benchmark decides
EACH = 10  # rows of every task and kind that are generated
NEW_TOKENS = 64


def compare(out: Path, given: Mapping[str, Any], *, note: Note = lambda text: None) -> Path:
    """All of it into the new folder `out`; the path of the report.

    given: settings of every method's run, as of `UnlearnConfig`; "method": just this one.
    Raises ValueError for settings that the benchmark decides itself.
    """
    from steelyard.report.unlearning_small import write_report
    from steelyard.runs.unlearn import unlearn_loaded

    refuse_existing(out)
    if fixed := [name for name in FIXED if name in given]:
        raise ValueError(
            f"the small benchmark decides --{fixed[0]} itself: drop it, or give a MODEL"
        )
    began, busy = time.monotonic(), time.process_time()
    configs = [_config(method, given) for method in _methods(given)]
    small = _built(configs[0].seed, note)
    from steelyard.runs.unlearn_eval import encoded, mean_loss

    tokens = encoded(small.tokenizer, small.forget, configs[0])
    stop = mean_loss(small.reference, tokens, configs[0].rows)  # the rows that methods look at
    note(f"the reference's forget loss is {stop:.3g}: the methods stop there")
    begun: list[str] = []
    processor = {"target and reference": time.process_time() - busy}
    with new_folder(out, lambda: bool(begun)):
        scores = {
            name: score(model, small)
            for name, model in (("target", small.target), ("reference", small.reference))
        }
        for config in configs:
            begun.append(config.method)
            busy = time.process_time()
            model = copy.deepcopy(small.target)
            config = config.replace(stop_forget=config.stop_forget or stop)
            folder = out / config.method
            unlearn_loaded(
                config, model, small.tokenizer, small.forget, small.retain, folder, note=note
            )
            scores[config.method] = score(model, small)
            processor[config.method] = time.process_time() - busy
        seconds = time.monotonic() - began
        manifest = {k: small.manifest[k] for k in ("seed", "sizes", "target", "reference")}
        content = {
            "scores": scores, "reference_loss": stop, "benchmark": manifest,
            "tuned": _tuned(configs, given),
            "tuned_on": TUNED_ON, "seconds": round(seconds, 1),
            "processor_seconds": {name: round(value, 1) for name, value in processor.items()},
        }  # fmt: skip
        write_json(out / "scores.json", content)
        return write_report(out)


def score(model: Any, small: Small) -> dict[str, Any]:
    """LUME's scores of a model on some rows of the small benchmark, attack and utility included."""
    from steelyard.bench.choices import questions_of
    from steelyard.bench.generate import documents
    from steelyard.bench.lume import evaluate

    found = evaluate(
        model,
        small.tokenizer,
        small.forget,
        small.retain,
        members=documents(small.forget),
        non_members=documents(small.non_members),
        mmlu=questions_of(small.general),
        rows=EACH,
        new_tokens=NEW_TOKENS,
    )
    return found.to_dict()


def _methods(given: Mapping[str, Any]) -> tuple[str, ...]:
    return (given["method"],) if "method" in given else METHODS


def _tuned(configs: list[UnlearnConfig], given: Mapping[str, Any]) -> list[str]:
    """The methods that run with the settings that their rates were tuned for."""
    same = set(given) <= {"method", "seed", "device"}
    return [c.method for c in configs if same and c.method in RATES]


def _config(method: str, given: Mapping[str, Any]) -> UnlearnConfig:
    """No tolerance: the methods are compared at one forget loss, and the retain loss is the price.
    It would also end NPO, whose retain loss rises to 2 nats before it falls again."""
    lr = None if "lr_start" in given else RATES.get(method, 4e-4)
    settings: dict[str, Any] = {
        "model": "small benchmark", "forget": "generated", "retain": "generated",
        "method": method, "adapter": "full", "lr": lr, "epochs": 16.0, "batch": 8,
        "micro_batch": 8, "length": 256, "tolerance": None, "evaluate_every": 5,
    }  # fmt: skip
    settings |= dict(given) | {"method": method}
    return UnlearnConfig(**settings)


def _built(seed: int, note: Note) -> Small:
    from rich.console import Console

    from steelyard.bench.small import build
    from steelyard.data.entries import data_home
    from steelyard.runs.progress import RunProgress

    bars: dict[str, RunProgress] = {}
    began = {"target": time.monotonic(), "reference": time.monotonic()}

    def show(name: str, step: int, steps: int) -> None:
        if name not in bars:
            title = f"training the {name}"
            bars[name] = RunProgress(steps, False, Console(stderr=True), title, unit="steps")
            bars[name].__enter__()
            began[name] = time.monotonic()
        bars[name].update(step, (step - 1) / max(time.monotonic() - began[name], 1e-9))
        if step == steps:
            bars[name].__exit__(None, None, None)

    small = build(seed=seed, cache=data_home() / "small-benchmark", progress=show)
    counts = dataclasses.asdict(small.rows)
    note(f"small benchmark, seed {seed}: {', '.join(f'{len(v)} {k}' for k, v in counts.items())}")
    return small
