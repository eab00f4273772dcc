"""Which parameters of a pretrained model are trained: low-rank updates, bias terms, head, or all.

Every choice trains the head in full, because a new task's head starts from random numbers. A
language model's head (its output embedding) is pretrained: it is trained by "head" and "full" only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import nn

ADAPTERS = ("lora", "bias", "head", "full")
# Names that attention's query and value (or fused) projections carry across model families.
ATTENTION = {
    "query", "value", "query_proj", "value_proj", "q_proj", "v_proj", "q_lin", "v_lin",
    "c_attn", "query_key_value", "qkv_proj", "qkv", "Wqkv", "in_proj", "q", "v",
}  # fmt: skip


def adapt(
    hf: Any,
    adapter: str,
    *,
    kind: str,
    head: list[str],
    new: Iterable[str] = (),
    rank: int = 8,
    targets: str = "attention",
) -> Any:
    """`hf` with requires_grad set for `adapter`; under "lora" wrapped in a `peft.PeftModel`.

    `kind`: the task's. `head`: paths of the modules trained in full. `new`: parameters that the
    checkpoint lacked: they are random, so their modules are trained in full too.
    "lora": W + (alpha/r) B A with r = rank, alpha = 2 r, no dropout. B = 0 at the start: training
    begins at the pretrained model. `targets`: "attention" (query and value) or "all-linear".
    "bias": every bias term.
    Sources: LoRA, Hu et al. 2022 (arXiv:2106.09685), under privacy Yu et al. 2022
    (arXiv:2110.06500); BitFit, Ben Zaken et al. 2022 (arXiv:2106.10199), under privacy Bu et al.
    2022 (arXiv:2210.00036).
    Raises: ValueError for an unknown adapter or targets, rank < 1, a model without biases.
    """
    check(adapter, rank=rank, targets=targets)
    owners = {name.rpartition(".")[0] for name in new}  # "": the whole model
    trained = [*head, *sorted(o for o in owners if not _inside(o, head))]
    if adapter == "lora":
        return _lora(hf, kind, trained, rank=rank, targets=targets)
    biases = [p for name, p in hf.base_model.named_parameters() if name.endswith("bias")]
    if adapter == "bias" and not biases:
        raise ValueError(f"{hf.config.model_type} models have no bias terms: use adapter 'lora'")
    hf.requires_grad_(adapter == "full")
    for path in trained:  # by module, not by name: a tied weight goes by its first name only
        hf.get_submodule(path).requires_grad_(True)
    for parameter in biases if adapter == "bias" else ():
        parameter.requires_grad_(True)
    return hf


def check(adapter: str, *, rank: int, targets: str) -> None:
    """Raises: ValueError for what `adapt` would refuse, before any file is read."""
    for what, value, known in (
        ("adapter", adapter, ADAPTERS),
        ("LoRA targets", targets, ("attention", "all-linear")),
    ):
        if value not in known:
            close = difflib.get_close_matches(value, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"unknown {what} {value!r}: {hint}use one of {', '.join(known)}")
    if rank < 1:
        raise ValueError(f"LoRA rank {rank}: use 1 or more")


def lora_targets(hf: Any, trained: list[str], targets: str) -> list[str]:
    """Paths of the linear layers of the base model to adapt: all of them where no name is known."""
    from transformers.pytorch_utils import Conv1D

    linear = [
        path
        for path, module in hf.base_model.named_modules(prefix=hf.base_model_prefix)
        if isinstance(module, nn.Linear | Conv1D) and not _inside(path, trained)
    ]
    attention = [path for path in linear if path.rpartition(".")[2] in ATTENTION]
    return attention if attention and targets == "attention" else linear


def _lora(hf: Any, kind: str, trained: list[str], *, rank: int, targets: str) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if "" in trained:
        raise ValueError("its files lack a parameter of the model itself: use adapter 'full'")
    paths = lora_targets(hf, trained, targets)
    if not paths:
        raise ValueError(f"{hf.config.model_type} models have no linear layer: use adapter 'bias'")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=paths,
        modules_to_save=trained or None,
        fan_in_fan_out=isinstance(hf.get_submodule(paths[0]), Conv1D),
        task_type={"text": TaskType.SEQ_CLS, "language": TaskType.CAUSAL_LM}.get(kind),
    )
    return get_peft_model(hf, config)


def _inside(name: str, folders: Iterable[str]) -> bool:
    """Whether the path `name` is one of `folders` or lies below one."""
    return any(name == folder or name.startswith(f"{folder}.") for folder in folders)
