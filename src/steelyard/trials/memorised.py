"""What an unlearning trial begins with: rows, a model that has memorised them, and its reference.

| data | rows | models |
|---|---|---|
| small | the generated benchmark | `steelyard.bench.small.build` |
| lume | documents of the real LUME files, as many of each task | the same recipe on these rows |

With `start` LUME's models are a pretrained one, trained further on the rows. LUME's prompts are cut
to their last words; its non-members are documents that were not taken. General facts are the
generated ones in both. Builds lie in a cache folder, so that a trial in another process just loads
them.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from steelyard.bench.generate import Benchmark, Sizes, generate
from steelyard.bench.lume_data import document, read_rows
from steelyard.bench.memorise import (
    Recipe,
    make_model,
    make_tokenizer,
    steps_for,
    train,
    training_tokens,
)
from steelyard.bench.small import build
from steelyard.bench.small_files import MODELS, Small, digest, load, save, verified
from steelyard.data.entries import data_home
from steelyard.runs.language_model import load as load_model

FORMAT = 1  # of LUME's builds: raise it with every change of how models come about
WORDS = 32  # the last ones of a LUME prompt that are kept: training is several times shorter
LONGEST = 900  # letters of a row: documents with longer ones are not taken
DATA = ("small", "lume")
SETS = ("forget", "retain", "non_members")
Row = dict[str, Any]


def lume_folder() -> Path:
    """Where LUME's forget.jsonl and retain.jsonl are looked for where no folder is given."""
    return data_home() / "lume"


def memorised(
    *,
    data: str,
    seed: int,
    sizes: Mapping[str, int],
    recipe: Mapping[str, Any] | None = None,
    cache: str | None = None,
    folder: str | None = None,
    start: str | None = None,
    device: str = "cpu",
) -> Small:
    """Rows, target, reference; from this process or the cache, or trained and put there.

    sizes, recipe: of `Sizes` and `Recipe`. cache: a folder; default: "benchmarks" beside the data
    sets. folder: of the LUME files. start: a causal language model, as of `steelyard unlearn`, in
    place of an untrained one; of the recipe its training counts. device: of training and models.
    All plain values, so that they are settings of a trial.
    Raises ValueError for unknown data, a start or a device that is not there, LUME files with too
    few documents or not there, and a start for generated data.
    """
    if start is not None and data != "lume":
        raise ValueError(f"start {start!r} is for the data 'lume': the data {data!r} have none")
    if data not in DATA:
        raise ValueError(f"unknown data {data!r}: there are {', '.join(DATA)}")
    at = str(data_home() / "benchmarks") if cache is None else cache
    place = str(lume_folder()) if folder is None else folder
    options = json.dumps([dict(sizes), dict(recipe or {})])
    return _memorised(data, seed, options, at, place, start, device)


@lru_cache(maxsize=3)
def _memorised(
    data: str, seed: int, options: str, cache: str, folder: str, start: str | None, device: str
) -> Small:
    given = json.loads(options)
    sizes, recipe = Sizes(**given[0]), Recipe(**given[1])
    if data == "small":
        made = build(sizes, seed=seed, recipe=recipe, cache=cache)
    else:
        rows = lume_rows(Path(folder), sizes, seed)
        made = _lume(rows, seed, recipe, Path(cache), start, device)
    for model in (made.target, made.reference):
        _moved(model, device)
    return made


def _moved(model: Any, device: str) -> Any:
    return model.to(torch.device(device))


def _lume(
    rows: Benchmark, seed: int, recipe: Recipe, cache: Path, start: str | None, device: str
) -> Small:
    """As `build`, of rows that are there."""
    identity = {
        "format": FORMAT,
        "data": "lume",
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "rows": digest(dataclasses.asdict(rows)),
    }
    if start is not None:
        identity |= {"start": start, "device": device}
    place = cache / f"lume-{digest(identity)[:16]}"
    if (known := verified(place, identity)) is not None:
        return load(place, rows, known)
    tokenizer, fresh = _starts(rows, seed, recipe, start, device)
    kept = [*rows.retain, *rows.general_train]
    sets = (training_tokens(tokenizer, [*rows.forget, *kept]), training_tokens(tokenizer, kept))
    steps = steps_for(sets[0], recipe)
    manifest: dict[str, Any] = dict(identity)
    models: dict[str, Any] = {}
    for name, tokens in zip(MODELS, sets, strict=True):
        models[name] = _moved(fresh(), device)
        began = time.process_time()
        loss = train(models[name], tokens, recipe, steps=steps, seed=seed)
        seconds = time.process_time() - began
        manifest[name] = {"rows": len(tokens), "steps": steps, "seconds": seconds, "loss": loss}
    cache.mkdir(parents=True, exist_ok=True)
    save(place, models, tokenizer, rows, manifest)
    return load(place, rows, manifest)


def _starts(
    rows: Benchmark, seed: int, recipe: Recipe, start: str | None, device: str
) -> tuple[Any, Callable[[], Any]]:
    """The tokenizer, and what makes the model that a training begins with."""
    if start is not None:
        pretrained, tokenizer = load_model(start, device)
        return tokenizer, lambda: copy.deepcopy(pretrained)
    tokenizer = make_tokenizer(rows, recipe.vocabulary)
    return tokenizer, lambda: make_model(tokenizer, recipe, seed=seed)


def lume_rows(folder: Path, sizes: Sizes, seed: int) -> Benchmark:
    """Documents of each task drawn by `seed` from LUME's files, of those in ASCII and short enough.

    Raises ValueError where there are too few.
    """
    files = {name: _documents(read_rows(folder / f"{name}.jsonl")) for name in ("forget", "retain")}
    sets: dict[str, list[Row]] = {name: [] for name in SETS}
    for task in sorted({task for task, _ in files["forget"]}):
        draw = random.Random(f"lume {seed} {task}")
        others: list[list[Row]] = []
        for name, documents in files.items():
            fine = [rows for key, rows in documents.items() if key[0] == task and _short(rows)]
            draw.shuffle(fine)
            count = getattr(sizes, name)
            _take(sets[name], fine, count, f"{folder}, {name}, {task}")
            others += fine[count:]
        draw.shuffle(others)
        _take(sets["non_members"], others, sizes.non_members, f"{folder}, non-members, {task}")
    general = generate(Sizes(forget=1, retain=1, non_members=1, facts=sizes.facts), seed=seed)
    return Benchmark(
        **{name: tuple(rows) for name, rows in sets.items()},
        general_train=general.general_train,
        general=general.general,
    )


def _take(rows: list[Row], documents: Sequence[Sequence[Row]], count: int, where: str) -> None:
    if len(documents) < count:
        raise ValueError(f"{where}: {len(documents)} documents are left, {count} are asked for")
    rows += [row for document in documents[:count] for row in document]


def _documents(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        prompt = " ".join(row["input"].split()[-WORDS:])
        found.setdefault(document(row), []).append({**row, "input": prompt})
    return found


def _short(rows: Sequence[Row]) -> bool:
    texts = [f"{row['input']} {row['output']}" for row in rows]
    return all(text.isascii() and len(text) <= LONGEST for text in texts)
