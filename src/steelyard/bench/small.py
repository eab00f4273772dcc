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
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steelyard import __version__
from steelyard.bench.generate import TASKS, Benchmark, Row, Sizes, generate
from steelyard.bench.memorise import (
    Recipe,
    make_model,
    make_tokenizer,
    steps_for,
    train,
    training_tokens,
)
from steelyard.hf.sources import quiet
from steelyard.runs.files import explain_write_failure, fsync_file, fsync_folder, sha256_of

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

FORMAT = 1  # of the cache: raise it with every change of how models come about
MANIFEST = "manifest.json"
MODELS = ("target", "reference")
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Small:
    """The benchmark's rows with the models. Both are in eval mode, on the CPU, float32.

    folder: where all of it lies on the disk; None without a cache. manifest: seed, sizes, recipe,
    steps, seconds and last training loss of each model, versions of the libraries that made it.
    """

    target: LlamaForCausalLM
    reference: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    rows: Benchmark
    folder: Path | None
    manifest: dict[str, Any]

    @property
    def forget(self) -> tuple[Row, ...]:
        return self.rows.forget

    @property
    def retain(self) -> tuple[Row, ...]:
        return self.rows.retain

    @property
    def non_members(self) -> tuple[Row, ...]:
        return self.rows.non_members

    @property
    def general(self) -> tuple[Row, ...]:
        return self.rows.general


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
        "rows": _digest(dataclasses.asdict(rows)),
    }
    folder = None if cache is None else Path(cache) / f"small-{_digest(identity)[:16]}"
    if folder is not None and (manifest := _verified(folder, identity)) is not None:
        return _load(folder, rows, manifest)
    if folder is not None:  # before a minute of training
        with _one_line(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(rows, recipe.vocabulary)
    made: dict[str, Any] = {}
    manifest = {**identity, "versions": _versions(), "threads": torch.get_num_threads()}
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
        _save(folder, made, tokenizer, rows, manifest)
    return _load(folder, rows, manifest)


def _save(
    folder: Path,
    models: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    rows: Benchmark,
    manifest: dict[str, Any],
) -> None:
    """Write everything beside `folder`, then rename: nobody sees a part of it."""
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=".small-", ignore_cleanup_errors=True
    ) as place:
        whole = Path(place) / folder.name
        whole.mkdir()
        for name, model in models.items():
            with quiet():
                model.save_pretrained(whole / name)
                tokenizer.save_pretrained(whole / name)
        for field in dataclasses.fields(rows):
            lines = (json.dumps(row, ensure_ascii=False) for row in getattr(rows, field.name))
            text = "".join(f"{line}\n" for line in lines)
            (whole / f"{field.name}.jsonl").write_text(text, encoding="utf-8")
        files = {path: sha256_of(whole / path) for path in _files(whole)}
        text = json.dumps({**manifest, "files": files}, indent=1)
        (whole / MANIFEST).write_text(text, encoding="utf-8")
        for path in _files(whole):
            fsync_file(whole / path)
        for path in (whole / "target", whole / "reference", whole):
            fsync_folder(path)
        if folder.exists():  # damaged, or just finished by another process: the same content
            os.replace(folder, Path(place) / "old")
        os.replace(whole, folder)
        fsync_folder(folder.parent)


@contextmanager
def _one_line(folder: Path, needed: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(explain_write_failure(folder, error, needed)) from error


def _verified(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a whole build of this identity; None where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {path: sha256_of(folder / path) for path in _files(folder) if path != MANIFEST}
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("files") != files:
        return None
    manifest.pop("files")
    return manifest if all(manifest.get(k) == v for k, v in identity.items()) else None


def _load(folder: Path, rows: Benchmark, manifest: dict[str, Any]) -> Small:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    with quiet():
        models = {name: LlamaForCausalLM.from_pretrained(folder / name).eval() for name in MODELS}
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "target")
    return Small(**models, tokenizer=tokenizer, rows=rows, folder=folder, manifest=manifest)


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {"steelyard": __version__, **{name: version(name) for name in PACKAGES}}
