"""Parameters by the role they play in a network, or by patterns of their names.

| role | which parameters |
|---|---|
| lora_A, lora_B | the two factors of low-rank updates (peft's, or named lora_A, lora_B) |
| embedding | embedding tables, a head tied to one, patch projections, class tokens, positions |
| head | what lies outside a Hugging Face model's base, its output layer, modules named as heads; |
| | in models of other makes without one, the last linear layer that has no other role |
| norm | scales and shifts of normalisation layers |
| bias | every other bias |
| attention.q, .k, .v, .qkv, .o | projections of attention; qkv: two or three of them in one |
| mlp.in, mlp.out | into and out of the hidden layer of a block's perceptron |
| other | the rest |

The first row that fits decides: a head's bias is "head", a LayerNorm's bias is "norm". The rules go
by types of modules and by the names that model families carry.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Groups = dict[str, list[tuple[str, nn.Parameter]]]

ROLES = (
    "lora_A", "lora_B", "embedding", "head", "norm", "bias", "attention.q", "attention.k",
    "attention.v", "attention.qkv", "attention.o", "mlp.in", "mlp.out", "other",
)  # fmt: skip

# what peft, DDP, FSDP and torch.compile put between the names of a model
_WRAPPERS = {"base_layer", "original_module", "_orig_mod", "_fsdp_wrapped_module"}
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # _NormBase: batch, instance
_LORA = re.compile(r"lora_(?:embedding_)?([ab])", re.I)
_HEADS = re.compile(
    r"(\w+_)?heads?|(pre_)?classifier|score|qa_outputs|embed_out|logits|output_projection"
    r"|(visual|text)_projection"
)
_EMBEDDING = re.compile(r".*embed.*|(.*_)?(token|position|positional|patch(es)?|pos)(_.*)?", re.I)
_NORM = re.compile(r".*norm.*|ln(_\w+|\d*)", re.I)
_IN_ATTENTION = re.compile(r".*att(n|ention).*|mha", re.I)
_IN_MLP = re.compile(r".*(mlp|ffn|feed_?forward|intermediate|expert|DenseReluDense).*|ff", re.I)
_ATTENTION = {
    "attention.q": re.compile(r"w?q|to_q|q_(proj|lin|attn)(_weight)?|query(_proj)?"),
    "attention.k": re.compile(r"w?k|to_k|k_(proj|lin)(_weight)?|key(_proj)?"),
    "attention.v": re.compile(r"w?v|to_v|v_(proj|lin)(_weight)?|value(_proj)?"),
    "attention.qkv": re.compile(
        r"c_attn|(to_)?q?kv(_proj)?|query_key_value|Wq?kv|in_proj(_weight)?"
    ),
    "attention.o": re.compile(r"w?o|to_out|o_proj|out(_proj|_lin)?|c_proj|dense|proj"),
}
_MLP = {
    "mlp.in": re.compile(
        r"fc_?1|fc_in|c_fc|(gate|up|gate_up)_proj|up|wi(_\d)?|w[13]|lin(ear)?_?1|dense_h_to_4h"
    ),
    "mlp.out": re.compile(r"fc_?2|fc_out|c_proj|down(_proj)?|wo|w2|lin(ear)?_?2|dense_4h_to_h"),
}


def by_role(model: nn.Module, *, fine: bool = True) -> Groups:
    """Every trainable parameter under its role, in the order of ROLES; roles without any left out.

    fine=False: "attention", "mlp" and "lora" as one group each. At the start of training B = 0, so
    that A has no gradient: only as one group can the two be measured there.

    Guarantees: every parameter with requires_grad stands in exactly one role, under the name that
    `model.named_parameters()` gives it; a tied weight stands there once, under the first of its
    roles.

    | case | behaviour |
    |---|---|
    | frozen parameters | left out |
    | one linear layer alone | "head" |
    | layers of no known name: hidden layers, convolutions | "other" |
    """
    names = _names(model)
    heads, hugging_face = _heads(model)
    found = {id(p): _role(model, places, heads) for p, places in names.values()}
    if not hugging_face and "head" not in found.values():
        for p in _last_linear(model, found):
            if found.get(id(p)) in ("other", "bias"):
                found[id(p)] = "head"
    groups: Groups = {}
    for role in ROLES:
        label = role if fine else role.split(".")[0].removesuffix("_A").removesuffix("_B")
        members = [(name, p) for name, (p, _) in names.items() if found[id(p)] == role]
        if members:
            groups.setdefault(label, []).extend(members)
    return groups


def by_pattern(
    model: nn.Module, patterns: Sequence[str] | Mapping[str, str | Sequence[str]]
) -> Groups:
    """Trainable parameters by module names ("encoder.layer.0") or shell-style patterns ("*.bias").

    patterns: a list, whose entries become the groups' names; or group name -> one or several. The
    first that matches decides; the rest is "other". A tied weight matches by any of its names.

    Raises ValueError for a pattern that matches no (further) parameter.
    """
    rest, groups = _names(model), Groups()
    known = list(rest)
    wanted = patterns if isinstance(patterns, Mapping) else {entry: entry for entry in patterns}
    for label, entries in wanted.items():
        for pattern in [entries] if isinstance(entries, str) else entries:
            prefix = f"{pattern.rstrip('.')}."
            matched = [
                name
                for name, (_, places) in rest.items()
                if any(fnmatchcase(place, pattern) or place.startswith(prefix) for place in places)
            ]
            if not matched:
                close = difflib.get_close_matches(pattern, known, n=1, cutoff=0.3)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"`patterns` matched no (further) parameter: {pattern!r}{hint}")
            groups.setdefault(label, []).extend((name, rest.pop(name)[0]) for name in matched)
    if rest:
        groups.setdefault("other", []).extend((name, p) for name, (p, _) in rest.items())
    return groups


def by_text(model: nn.Module, text: str) -> Groups:
    """As the command line has it: "roles", "coarse" (`by_role` with fine=False), or patterns of
    `by_pattern` with commas between them."""
    if text in ("roles", "coarse"):
        return by_role(model, fine=text == "roles")
    return by_pattern(model, [pattern.strip() for pattern in text.split(",")])


def _names(model: nn.Module) -> dict[str, tuple[nn.Parameter, list[str]]]:
    """First name of every trainable parameter -> the parameter, and all of its names."""
    places: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(p), []).append(name)
    return {name: (p, places[id(p)]) for name, p in model.named_parameters() if p.requires_grad}


def _heads(model: nn.Module) -> tuple[set[int], bool]:
    """Ids of the modules that Hugging Face models have on top of their bases; is there such one."""
    found: set[int] = set()
    hugging_face = False
    for module in model.modules():
        base = getattr(module, "base_model_prefix", None)
        if not isinstance(base, str):
            continue
        hugging_face = True
        children = dict(module.named_children())
        tops = [child for name, child in children.items() if base in children and name != base]
        output = module.get_output_embeddings()  # type: ignore[operator]
        for top in [*tops, output] if isinstance(output, nn.Module) else tops:
            found.update(id(part) for part in top.modules())
    return found, hugging_face


def _last_linear(model: nn.Module, found: Mapping[int, str]) -> list[nn.Parameter]:
    """Parameters of the last linear layer whose weight has no role yet."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    unnamed = [m for m in linear if found.get(id(m.weight)) == "other"]
    return list(unnamed[-1].parameters(recurse=False)) if unnamed else []


def _role(model: nn.Module, places: Sequence[str], heads: set[int]) -> str:
    return min((_role_at(model, place, heads) for place in places), key=ROLES.index)


def _role_at(model: nn.Module, place: str, heads: set[int]) -> str:
    """The role of a parameter under one of its names."""
    if lora := next((m for part in place.split(".") if (m := _LORA.fullmatch(part))), None):
        return f"lora_{lora[1].upper()}"
    *path, name = place.split(".")
    module = model.get_submodule(".".join(path))
    if "parametrizations" in path:  # weight norm and others: the layer's own weight or bias
        at = path.index("parametrizations")
        path, name = path[:at], path[at + 1]
    path = [
        part
        for before, part in zip(["", *path], path, strict=False)
        if part not in (*_WRAPPERS, "modules_to_save") and before != "modules_to_save"
    ]
    leaf = path[-1] if path else ""
    if id(module) in heads or any(_HEADS.fullmatch(part) for part in (*path, name)):
        return "head"
    flat = all(p.ndim <= 1 for p in module.parameters(recurse=False))
    named = "norm" in type(module).__name__.lower() or _NORM.fullmatch(leaf)
    if isinstance(module, _NORMS) or (flat and named):
        return "norm"
    if name.startswith("bias") or name.endswith("bias"):
        return "bias"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if any(_EMBEDDING.fullmatch(part) for part in (*path, name)):
        return "embedding"
    # a module with parameters of its own (MultiheadAttention, experts) names them tellingly
    above, leaf = (path[:-1], leaf) if name == "weight" else (path, name)
    return _in_block(model, above, leaf)


def _in_block(model: nn.Module, above: list[str], leaf: str) -> str:
    """The role of a weight in a block of a transformer, else "other"."""
    if "to_out" in above:  # a projection and its dropout, in one nn.Sequential
        above, leaf = above[: above.index("to_out")], "to_out"
    beside = _beside(model, above)
    by_name = any(_IN_ATTENTION.fullmatch(part) for part in above)
    queries = any(_matching(_ATTENTION, b) in ("attention.q", "attention.qkv") for b in beside)
    if (by_name or queries) and (role := _matching(_ATTENTION, leaf)):
        return role
    if by_name:
        return "other"
    in_mlp = any(_IN_MLP.fullmatch(part) for part in above)
    if in_mlp and leaf.isdecimal():  # an nn.Sequential
        return "mlp.out" if leaf == max(beside, key=int, default=leaf) else "mlp.in"
    if above[-1:] in (["intermediate"], ["output"]) and leaf == "dense":  # BERT and its heirs
        return "mlp.in" if above[-1] == "intermediate" else "mlp.out"
    repeated = any(part.isdecimal() for part in above)
    attends = any(_IN_ATTENTION.fullmatch(b) for b in beside)
    if in_mlp or queries or attends or repeated:
        return _matching(_MLP, leaf) or "other"
    return "other"


def _beside(model: nn.Module, above: Sequence[str]) -> list[str]:
    """Names of the children of the module at a path, those with weights."""
    try:
        module = model.get_submodule(".".join(above))
    except AttributeError:  # a wrapper stands between
        return []
    return [
        name for name, child in module.named_children() if any(True for _ in child.parameters())
    ]


def _matching(rules: Mapping[str, re.Pattern[str]], leaf: str) -> str | None:
    return next((role for role, rule in rules.items() if rule.fullmatch(leaf)), None)
