"""A choice of parameter groups as a configuration of the package peft, where peft has one.

| chosen | configuration |
|---|---|
| LoRA's A and B, with or without all biases and whole modules (head, norms, ...) | `LoraConfig` |
| the group "norm", with or without whole modules | `LNTuningConfig` |
| anything else | none: set requires_grad by `Selection.apply` |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
_LORA = re.compile(r"(.*)\.lora_([AB])\.[^.]+(\.weight)?")
_WRAPPERS = re.compile(r"^base_model\.model\.|\.base_layer|\.modules_to_save\.[^.]+")


def peft_config(chosen: Shapes, left: Shapes, any_layer: bool, options: dict[str, Any]) -> Any:
    """chosen, left: group -> parameter name -> shape, of the measured model.

    any_layer: numbers in the modules' paths stand for any number, for a model of more layers.
    options: handed on to the configuration, before all a LoRA's lora_alpha (2 r without it).

    Raises ValueError for a choice that peft cannot express exactly.
    """
    names = {name: shape for shapes in chosen.values() for name, shape in shapes.items()}
    others = [name for shapes in left.values() for name in shapes]
    factors = {name: m for name in names if (m := _LORA.fullmatch(name))}
    if factors:
        return _lora(names, others, factors, any_layer, options)
    if "norm" in chosen:
        from peft import LNTuningConfig

        rest = [n for group, shapes in chosen.items() if group != "norm" for n in shapes]
        targets = _modules(chosen["norm"], others, any_layer)
        saved = _modules(rest, others, any_layer) or None
        return LNTuningConfig(**{"target_modules": targets, "modules_to_save": saved} | options)
    raise ValueError(
        f"peft has no configuration that trains {', '.join(chosen) or 'nothing'} alone: use "
        "apply(model)"
    )


def _lora(
    names: Mapping[str, tuple[int, ...]],
    others: list[str],
    factors: Mapping[str, re.Match[str]],
    any_layer: bool,
    options: dict[str, Any],
) -> Any:
    from peft import LoraConfig

    sides = {side: {m[1] for m in factors.values() if m[2] == side} for side in "AB"}
    if sides["A"] != sides["B"] or any(_LORA.fullmatch(name) for name in others):
        raise ValueError(
            "peft trains all of a LoRA's A and B, or none: measure them as one group, "
            "by_role(model, fine=False), or use apply(model)"
        )
    ranks = {
        shape[0] for name, shape in names.items() if name in factors and factors[name][2] == "A"
    }
    if len(ranks) > 1:
        raise ValueError(f"the LoRA has several ranks, {sorted(ranks)}: use apply(model)")
    (rank,) = ranks
    owners = {n.rpartition(".")[0] for n in names if n not in factors and not n.endswith("bias")}
    lone = {n for n in names if n.endswith("bias") and n.rpartition(".")[0] not in owners}
    if lone and (other := next((name for name in others if name.endswith("bias")), None)):
        raise ValueError(
            f"peft trains all biases or none, but {other!r} was not chosen: use apply(model)"
        )
    whole = [name for name in names if name not in factors and name not in lone]
    paths = sorted(_plain(path) for path in sides["A"])
    return LoraConfig(
        **{
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": _pattern(paths) if any_layer else paths,
            "bias": "all" if lone else "none",
            "modules_to_save": _modules(whole, others, any_layer) or None,
        }
        | options
    )


def _modules(names: Iterable[str], others: list[str], any_layer: bool) -> list[str]:
    """Paths of the modules of which all measured parameters are in `names`."""
    names = list(names)
    owners = {name.rpartition(".")[0] for name in names}
    for name in others:
        if name.rpartition(".")[0] in owners:
            raise ValueError(
                f"peft trains whole modules, but {name!r} was not chosen while another parameter "
                "of its module was: use apply(model)"
            )
    plain = {_plain(owner) for owner in owners}
    if any_layer:  # what stands behind the last number, the same in every layer
        plain = {re.sub(r"^.*\.\d+\.", "", path) for path in plain}
    return sorted(plain)


def _plain(path: str) -> str:
    """A module's path in the model that peft wraps."""
    return _WRAPPERS.sub("", path)


def _pattern(paths: Iterable[str]) -> str:
    """A regular expression of the paths, numbers open."""
    open_paths = {re.sub(r"(?<=\.)\d+(?=\\\.)", r"\\d+", re.escape(path)) for path in paths}
    return "|".join(sorted(open_paths))
