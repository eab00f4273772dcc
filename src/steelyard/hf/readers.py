"""Read a located model folder (or the packaged GGUF file) and check that it fits the task."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from steelyard.models import Task

CLASSES = {
    "text": "AutoModelForSequenceClassification",
    "language": "AutoModelForCausalLM",
    "image": "AutoModelForImageClassification",
}
TOKENIZER = ("tokenizer*", "vocab*", "*.model", "*.gguf")  # files that a tokenizer is read from


def check_task(name: str, task: Task) -> None:
    """Raises: ValueError for a task that no Hugging Face model here can take."""
    if task.kind not in CLASSES:
        raise ValueError(f"model {name!r} does not take {task.kind} data: use 'mlp'")
    if task.kind != "language" and task.classes < 2:
        raise ValueError(f"model {name!r} needs at least 2 classes, the data has {task.classes}")


def read_model(path: Path, task: Task) -> tuple[Any, set[str]]:
    """The model, float32 on the CPU, and the parameters that its files lack (they are random).

    Raises: ValueError when the files do not fit the config, or a language model is not causal.
    """
    hf, new = _read_gguf(path, task) if path.suffix == ".gguf" else _read_folder(path, task)
    if task.kind == "language":
        if new:
            raise ValueError(f"no pretrained language head ({min(new)} is missing): try 'smollm2'")
        _check_causal(hf)
    return hf, new


def read_tokenizer(path: Path) -> Any:
    """The tokenizer beside the model; its end-of-text token pads where it has no token for that."""
    from transformers import AutoTokenizer

    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    if not any(file for pattern in TOKENIZER for file in folder.glob(pattern)):
        raise ValueError("no tokenizer beside the weights (tokenizer.json): save it there too")
    tokenizer: Any = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **where
    )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no pad_token and no eos_token: set one and save it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_text(hf: Any, tokenizer: Any, task: Task) -> None:
    """Raises: ValueError when texts exceed the positions, or token ids the vocabulary."""
    length, known = task.shape[0], getattr(hf.config, "max_position_embeddings", None)
    limit = min(known or tokenizer.model_max_length, tokenizer.model_max_length)
    if length > limit:
        raise ValueError(f"texts of {length} tokens are too long: use at most {limit}")
    rows = hf.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {rows}: they differ"
        )


def head_modules(hf: Any, task: Task) -> list[str]:
    """Paths of the classification head: the children beside the pretrained base model."""
    if task.kind == "language":
        return []
    head = [
        name
        for name, child in hf.named_children()
        if child is not hf.base_model and any(True for _ in child.parameters())
    ]
    if not head or hf.base_model is hf:
        raise ValueError(f"no classification head found in {type(hf).__name__}")
    return head


def output_modules(hf: Any) -> list[str]:
    """Path of a language model's output embedding."""
    return [name for name, module in hf.named_modules() if module is hf.get_output_embeddings()]


def _read_folder(folder: Path, task: Task) -> tuple[Any, set[str]]:
    import transformers

    labels = {"num_labels": task.classes, "ignore_mismatched_sizes": True}  # another task's head
    hf, info = getattr(transformers, CLASSES[task.kind]).from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **({} if task.kind == "language" else labels),
    )
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    base = {f"{hf.base_model_prefix}.{name}" for name, _ in hf.base_model.named_parameters()}
    lost = base & set(info["missing_keys"])
    if base & mismatched or 2 * len(lost) > len(base):
        wrong = min(base & mismatched or lost)
        raise ValueError(f"weights and config.json do not fit ({wrong}): save the model again")
    return hf, set(info["missing_keys"]) | mismatched


def _read_gguf(path: Path, task: Task) -> tuple[Any, set[str]]:
    """SmolLM2, rebuilt: transformers marks its plain float32 weights as quantised, not saveable."""
    from transformers import (
        AutoModelForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
    )

    if task.kind == "image":
        raise ValueError("it is a language model: it does not take images")
    with contextlib.redirect_stderr(io.StringIO()):  # the reader's progress bar has no switch
        read: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
    config = LlamaConfig(
        **{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    )
    if task.kind == "language":
        hf: Any = LlamaForCausalLM(config)
        hf.generation_config = read.generation_config
    else:
        config.num_labels = task.classes
        hf = LlamaForSequenceClassification(config)
    hf.base_model.load_state_dict(read.base_model.state_dict())
    hf.tie_weights()  # the output embedding is the input embedding
    return hf.eval(), set()


def _check_causal(hf: Any) -> None:
    """Raises: ValueError when a later token changes an earlier logit, as in BERT."""
    tokens = torch.tensor([[0, 1, 2], [0, 1, 3]])
    with torch.no_grad():
        a, b = hf(input_ids=tokens).logits[:, :2]
    if not torch.allclose(a, b, atol=1e-4 * float(a.abs().max())):
        kind = hf.config.model_type
        raise ValueError(f"{kind} reads the tokens to come: it is no causal language model")
