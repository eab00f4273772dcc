"""The folder of a memorised benchmark: two models, a tokenizer, a file per set and a manifest.

It appears by one rename, whole, and is used only while its files are those of its manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard import __version__
from steelyard.bench.generate import Benchmark, Row
from steelyard.hf.sources import quiet
from steelyard.runs.files import fsync_file, fsync_folder, sha256_of

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MANIFEST = "manifest.json"
MODELS = ("target", "reference")
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


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


def save(
    folder: Path,
    models: Mapping[str, Any],
    tokenizer: Any,
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


def verified(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
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


def load(folder: Path, rows: Benchmark, manifest: dict[str, Any]) -> Small:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    with quiet():
        models = {name: LlamaForCausalLM.from_pretrained(folder / name).eval() for name in MODELS}
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "target")
    return Small(**models, tokenizer=tokenizer, rows=rows, folder=folder, manifest=manifest)


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    return {"steelyard": __version__, **{name: version(name) for name in PACKAGES}}
