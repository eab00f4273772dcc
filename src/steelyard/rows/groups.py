"""Clipping groups: a partition of the parameters, and each group's share R_m of the bound R.

Group-wise clipping (Bu et al., arXiv 2310.19215): C_{i,m} from the norm of sample i's gradient in
group m, with sum_m R_m^2 = R^2, so the sensitivity, the noise and the accounting are those of one
group.

| `groups` | partition |
|---|---|
| "all" | one group: best accuracy, most memory |
| "layer" | one per layer (weight and bias together); layers that share a weight share a group |
| "parameter" | one per parameter tensor |
| int k | k contiguous blocks of layers, of nearly equal parameter count |
| [entry, ...] | one per module's name (all in it) or shell-style pattern, one for the rest |

`shares`: R_m^2 is proportional to group m's share; equal by default, so R_m = R / sqrt(M).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

Groups = str | int | Sequence[str]


def partition(names: Mapping[str, nn.Parameter], groups: Groups) -> list[list[str]]:
    """Lists of parameter names, in the model's order; every name stands in exactly one list.

    Raises ValueError for an unknown style, a pattern that matches nothing, more blocks than layers.
    """
    if groups == "all":
        return [list(names)]
    if groups == "parameter":
        return [[name] for name in names]
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    if groups == "layer":
        return list(layers.values())
    if isinstance(groups, int):
        return _blocks(list(layers.values()), names, groups)
    if isinstance(groups, str):
        raise ValueError(
            f"unknown clipping groups {groups!r}: choose all, layer, parameter, "
            "a number of blocks, or a list of module names or name patterns"
        )
    return _by_pattern(list(names), list(groups))


def bounds(count: int, bound: float, shares: Sequence[float] | None = None) -> list[float]:
    """R_m = R sqrt(share_m / sum of shares): sum_m R_m^2 = R^2. Equal shares by default."""
    shares = [1.0] * count if shares is None else list(shares)
    if len(shares) != count:
        raise ValueError(f"{count} clipping groups need {count} shares, found {len(shares)}")
    if not all(0 < share < math.inf for share in shares):
        raise ValueError(f"shares of the clipping bound must be positive, found {shares}")
    return [bound * math.sqrt(share / sum(shares)) for share in shares]


def _blocks(
    layers: list[list[str]], names: Mapping[str, nn.Parameter], count: int
) -> list[list[str]]:
    if not 1 <= count <= len(layers):
        raise ValueError(f"cannot cut {len(layers)} layers into {count} clipping blocks")
    total = sum(p.numel() for p in names.values())
    blocks: list[list[str]] = [[]]
    done = 0
    for i, layer in enumerate(layers):
        missing = count - len(blocks)  # blocks still to open; every one needs a layer
        full = done >= total * len(blocks) / count
        if blocks[-1] and missing and (full or len(layers) - i <= missing):
            blocks.append([])
        blocks[-1] += layer
        done += sum(names[name].numel() for name in layer)
    return blocks


def _by_pattern(names: list[str], patterns: list[str]) -> list[list[str]]:
    rest, result = list(names), []
    for pattern in patterns:
        prefix = f"{pattern.rstrip('.')}."
        matched = [n for n in rest if fnmatchcase(n, pattern) or n.startswith(prefix)]
        if not matched:
            close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"`groups` matched no (further) parameter: {pattern!r}{hint}")
        result.append(matched)
        rest = [name for name in rest if name not in matched]
    return result + ([rest] if rest else [])
