"""A causal language model with its head and its tokenizer, by name: what is scored, not trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steelyard.hf.readers import check_text, read_model, read_tokenizer
from steelyard.hf.sources import locate, one_line, quiet
from steelyard.models import Task
from steelyard.runs.problem import choose_device


def load(name: str, device: str = "auto") -> tuple[Any, Any]:
    """The causal language model `name` with its head, in eval mode on the device; its tokenizer.

    name: also the folder of a peft adapter, which is merged into the model that it names.
    Raises: ValueError in one line for no such model, no tokenizer beside it or one with more tokens
    than the model has, an adapter that does not fit or names no model, or no such device.
    """
    place = choose_device(device)
    adapter = Path(name) if (Path(name) / "adapter_config.json").exists() else None
    path = locate(name if adapter is None else _base_of(adapter))
    with quiet(), one_line(name):
        tokenizer = read_tokenizer(path if adapter is None else adapter)
        task = Task(kind="language", shape=(1,), classes=0, vocabulary=len(tokenizer))
        model, _ = read_model(path, task)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        check_text(model, tokenizer, task)
    return model.to(place).eval(), tokenizer


def _base_of(adapter: Path) -> str:
    """The model that the adapter in a folder names as its own."""
    if not any(adapter.glob("*.safetensors")):  # peft would read pickled weights
        raise ValueError(f"adapter {str(adapter)!r} has no weights: *.safetensors is missing")
    told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = told.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"adapter {str(adapter)!r} names no model: fill in base_model_name_or_path in its "
            "adapter_config.json"
        )
    return base
