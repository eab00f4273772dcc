"""Rules of the convolutions: im2col, so that a convolution is a linear layer on patches.

    y[i, p, :] = W patch[i, p],    g_i = sum_p dy[i, p] (x) patch[i, p]

Patches are laid out in the order of memory: of a channels-last image a row of the kernel is one
contiguous run, of another one a row of positions, and copying runs is several times faster than
gathering numbers. Rows are instantiated where that is cheaper than their ghost norm, and then
re-used for the sum (BK-MixOpt, arXiv 2210.00038, section 2). A transposed convolution is the same
with x and dy exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rules.factors import Dense, Factor, Outer, instantiating_is_cheaper

PATCHES = 2**18  # numbers: what is laid out at one time where rows are instantiated
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def convolution(module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    assert isinstance(module, Convolution)
    factors: dict[str, Factor] = {}
    if "weight" in wanted:
        factors["weight"] = _weight(module, dy, _padded(module, x))
    return factors | _bias(dy, wanted)


def transposed_convolution(
    module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]
) -> dict[str, Factor]:
    assert isinstance(module, Transposed)
    factors: dict[str, Factor] = {}
    if "weight" in wanted:
        assert not isinstance(module.padding, str)
        # what an input position spreads to: x [B, c_in, L], patches of dy; weight [c_in, c_out, k]
        dims = zip(x.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True)
        needed = [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in dims]
        sides = [
            (int(p), need - size - int(p))  # beyond the output padding: cut off
            for p, need, size in zip(module.padding, needed, dy.shape[2:], strict=True)
        ]
        padded = F.pad(dy, [p for side in reversed(sides) for p in side])
        factors["weight"] = _weight(module, x, padded)
    return factors | _bias(dy, wanted)


def _weight(module: Convolution | Transposed, left: Tensor, x: Tensor) -> Factor:
    """left [B, m, *positions]; x [B, n, *size], of which each position sees a patch.

    The weight is [m, n / groups, *kernel], in patches with the channels first (`last_to` -1), or
    summed as [m, *kernel, n] (1).
    """
    B, m, n, G = *left.shape[:2], x.shape[1], module.groups
    positions, kernel = left.shape[2:], module.kernel_size
    # channels last where they are, or where that makes the runs to copy longer
    last = G == 1 and n > 1 and (x.stride(1) == 1 or kernel[-1] * n >= 2 * positions[-1])
    shape = torch.Size((m, *kernel, n) if last else (m, n // G, *kernel))
    L, width = math.prod(positions), math.prod(kernel) * n
    left = left.flatten(2).transpose(1, 2)  # [B, L, m], a view
    if G == 1 and not instantiating_is_cheaper(B, L, m, width):
        return Outer(left, _patches(module, x, positions, last), shape, last_to=1 if last else -1)
    # a few samples at a time: their patches stay in the cache, and cost no fresh memory
    step = max(1, PATCHES // (L * width))
    rows = left.new_empty(B, m, width // G)
    for into, some, of in zip(rows.split(step), left.split(step), x.split(step), strict=True):
        _instantiate(into, some, _patches(module, of, positions, last), G)
    return Dense(rows.view(B, *shape), last_to=1 if last else -1)


def _instantiate(rows: Tensor, left: Tensor, patches: Tensor, groups: int) -> None:
    """left [B, L, m], patches [B, L, kernel * n]: into rows [B, m, kernel * n / groups]."""
    if groups == 1:
        torch.bmm(left.transpose(1, 2), patches, out=rows)
        return
    left = left.unflatten(2, (groups, -1)).permute(0, 2, 3, 1)  # [B, G, m / G, L]
    of = patches.unflatten(2, (groups, -1)).transpose(1, 2)  # [B, G, L, n / G * kernel]
    rows.copy_((left @ of).flatten(1, 2))


def _padded(module: Convolution, x: Tensor) -> Tensor:
    if module.padding == "valid":
        return x
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    if all(side == (0, 0) for side in sides):
        return x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, [p for side in reversed(sides) for p in side], mode=mode)


def _patches(
    module: Convolution | Transposed, x: Tensor, positions: Sequence[int], last: bool
) -> Tensor:
    """What each position sees: x [B, n, *size] -> [B, L, n * kernel], or with `last` and channels
    in the last place of memory, [B, L, kernel * n]; one strided copy in the order of memory."""
    x = x.movedim(1, -1) if last else x
    x = x.contiguous()
    size = x.stride()[1:-1] if last else x.stride()[2:]
    places = [step * s for step, s in zip(size, module.stride, strict=True)]
    kernel = [step * d for step, d in zip(size, module.dilation, strict=True)]
    B, L = len(x), math.prod(positions)
    if last:
        shape = (B, *positions, *module.kernel_size, x.shape[-1])
        strides = (x.stride(0), *places, *kernel, 1)
        return x.as_strided(shape, strides, x.storage_offset()).reshape(B, L, -1)
    shape = (*x.shape[:2], *module.kernel_size, *positions)
    strides = (*x.stride()[:2], *kernel, *places)
    return x.as_strided(shape, strides, x.storage_offset()).reshape(B, -1, L).transpose(1, 2)


def _bias(dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    return {"bias": Dense(dy.flatten(2).sum(2))} if "bias" in wanted else {}
