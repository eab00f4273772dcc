"""Rules of the convolutions: im2col, so that a convolution is a linear layer on patches.

    y[i, p, :] = W patch[i, p],    g_i = sum_p dy[i, p] (x) patch[i, p]

Patches are laid out with the channels last: of a channels-last image a row of the kernel is one
contiguous run, and copying runs is several times faster than gathering numbers. Rows are
instantiated where that is cheaper than their ghost norm, and then re-used for the sum (BK-MixOpt,
arXiv 2210.00038, section 2). A transposed convolution is the same with x and dy exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rules.factors import Dense, Factor, Outer

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def convolution(module: nn.Module, x: Tensor, dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    assert isinstance(module, Convolution)
    factors: dict[str, Factor] = {}
    if "weight" in wanted:
        patches = _patches(module, _padded(module, x), dy.shape[2:])
        factors["weight"] = _weight(module, dy, patches)
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
        factors["weight"] = _weight(module, x, _patches(module, padded, x.shape[2:]))
    return factors | _bias(dy, wanted)


def _weight(module: Convolution | Transposed, left: Tensor, patches: Tensor) -> Factor:
    """left [B, m, *positions], patches [B, L, *kernel, n]: weight [m, n / groups, *kernel]."""
    B, G = len(left), module.groups
    kernel, n = patches.shape[2:-1], patches.shape[-1]
    if G > 1:
        left = left.reshape(B, G, left.shape[1] // G, -1)  # [B, G, m / G, L]
        grouped = patches.unflatten(-1, (G, n // G)).movedim(-2, 1).flatten(3)
        rows = left @ grouped  # [B, G, m / G, kernel * n / G]
        rows = rows.unflatten(3, (*kernel, n // G)).movedim(-1, 3)
        return Dense(rows.reshape(B, *module.weight.shape))
    factor = Outer(
        left.movedim(1, -1).reshape(B, -1, left.shape[1]),
        patches.flatten(2),
        torch.Size((left.shape[1], *kernel, n)),
        last_to=1,
    )
    return factor.cheaper()


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


def _patches(module: Convolution | Transposed, x: Tensor, positions: Sequence[int]) -> Tensor:
    """What each position sees: x [B, c, *size] -> [B, L, *kernel, c], one strided copy."""
    x = x.movedim(1, -1).contiguous()  # free for channels-last images
    steps = x.stride()[1:-1]
    view = x.as_strided(
        (x.shape[0], *positions, *module.kernel_size, x.shape[-1]),
        (
            x.stride(0),
            *(step * s for step, s in zip(steps, module.stride, strict=True)),
            *(step * d for step, d in zip(steps, module.dilation, strict=True)),
            1,
        ),
        x.storage_offset(),
    )
    return view.reshape(x.shape[0], math.prod(positions), *module.kernel_size, x.shape[-1])


def _bias(dy: Tensor, wanted: Set[str]) -> dict[str, Factor]:
    return {"bias": Dense(dy.flatten(2).sum(2))} if "bias" in wanted else {}
