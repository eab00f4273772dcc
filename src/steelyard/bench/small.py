"""A small language model that has memorised the generated benchmark, and its retrained reference.

    rows = generate(sizes, seed)
    tokenizer = BPE on the rows of all sets, digits one by one
    target    = train(forget + retain + general_train)
    reference = train(         retain + general_train)      same start, same number of steps

The reference is what exact unlearning of `forget` would give. Both are Llama models of transformers
with the tokenizer saved beside them, so that anything which takes a model folder takes these.

Sentence-completion rows are trained on as whole documents, question-and-answer rows on the answer.
The tokenizer saw every set alike, non-members too: were it made from the trained rows alone,
non-members would be cut into more pieces, and an untrained model could tell them apart.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from steelyard.bench.generate import TASKS, Sizes, generate
from steelyard.bench.memorise import (
    Recipe,
    make_model,
    make_tokenizer,
    steps_for,
    train,
    training_tokens,
)
from steelyard.bench.small_files import Small, digest, load, save, verified, versions
from steelyard.runs.files import explain_write_failure

FORMAT = 1  # of the cache: raise it with every change of how models come about
Progress = Callable[[str, int, int], None]


def build(
    sizes: Sizes | None = None,
    *,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    recipe: Recipe | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Small:
    """The small benchmark of a seed: rows, tokenizer, target and reference.

    cache: folder in which a build is looked up by its arguments and kept; each build is a folder
    `small-...` with target/, reference/, a .jsonl file per set and manifest.json. It appears there
    by one rename, whole; one whose files differ from its manifest is built anew and replaced.
    progress: called as progress("target" | "reference", step, steps) after every step.

    Guarantees: the rows, the tokenizer and the start are functions of the arguments; weights are
    too on one machine with one number of threads. PyTorch's global random state is as before.
    Raises: ValueError for the cases of `generate`, and when the cache cannot be written.
    """
    sizes, recipe = sizes or Sizes(), recipe or Recipe()
    rows = generate(sizes, seed=seed, tasks=tasks)
    identity = {
        "format": FORMAT,
        "seed": seed,
        "sizes": dataclasses.asdict(sizes),
        "tasks": list(tasks),
        "recipe": dataclasses.asdict(recipe),
        "rows": digest(dataclasses.asdict(rows)),
    }
    folder = None if cache is None else Path(cache) / f"small-{digest(identity)[:16]}"
    if folder is not None and (manifest := verified(folder, identity)) is not None:
        return load(folder, rows, manifest)
    if folder is not None:  # before a minute of training
        with _one_line(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(rows, recipe.vocabulary)
    made: dict[str, Any] = {}
    manifest = {**identity, "versions": versions(), "threads": torch.get_num_threads()}
    general = list(rows.general_train)
    whole = [*rows.forget, *rows.retain, *general]
    steps = steps_for(training_tokens(tokenizer, whole), recipe)
    for name, own in (("target", whole), ("reference", [*rows.retain, *general])):
        model = make_model(tokenizer, recipe, seed=seed)
        data = training_tokens(tokenizer, own)
        begun = time.perf_counter()
        report = None if progress is None else lambda k, name=name: progress(name, k, steps)
        loss = train(model, data, recipe, steps=steps, seed=seed, progress=report)
        seconds = round(time.perf_counter() - begun, 2)
        manifest[name] = {"rows": len(own), "steps": steps, "seconds": seconds, "loss": loss}
        made[name] = model
    if folder is None:
        return Small(**made, tokenizer=tokenizer, rows=rows, folder=None, manifest=manifest)
    with _one_line(folder, sum(p.nbytes for model in made.values() for p in model.parameters())):
        save(folder, made, tokenizer, rows, manifest)
    return load(folder, rows, manifest)


@contextmanager
def _one_line(folder: Path, needed: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(explain_write_failure(folder, error, needed)) from error
