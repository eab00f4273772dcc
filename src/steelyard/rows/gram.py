"""Inner products of whole gradients, and their weighted sum, written into one of them.

    G_ij = s_i s_j sum over parameters <g_i, g_j>          float64 [k, k], on the CPU
    out  = sum_i w_i g_i                                   into the last row's tensors

A row is one tensor or None (no gradient: zero) for each parameter. Products are taken in pieces of
`PIECE` numbers in float32 or better, and the pieces are added in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steelyard.rows.reference import accumulator

Row = list[Tensor | None]
PIECE, PIECE_ON_DEVICES = 1 << 16, 1 << 22  # numbers: a core's cache; few kernels
HALF = (torch.float16, torch.bfloat16)


@torch.no_grad()
def gram(rows: Sequence[Row], scales: Sequence[float] | None = None) -> Tensor:
    """[k, k] float64 of the rows times their scales. bf16 and fp16 rows are widened piece by piece,
    so their squares do not overflow."""
    k = len(rows)
    parts: dict[tuple[int, int], list[Tensor]] = {(i, j): [] for i in range(k) for j in range(i, k)}
    for tensors in zip(*rows, strict=True):
        pieces = [None if t is None else _pieces(t) for t in tensors]
        for (i, j), found in parts.items():
            a, b = pieces[i], pieces[j]
            if a is not None and b is not None:
                found += [torch.dot(_exact(x), _exact(y)) for x, y in zip(a, b, strict=True)]
    out = torch.zeros(k, k, dtype=torch.float64)
    for (i, j), found in parts.items():
        out[i, j] = out[j, i] = _total(found)
    s = torch.ones(k, dtype=torch.float64) if scales is None else _float64(scales)
    return out * s[:, None] * s[None, :]


@torch.no_grad()
def combine(rows: Sequence[Row], weights: Sequence[float]) -> Row:
    """sum_i w_i g_i; None where no row has a gradient. The tensors of the last row that has one are
    overwritten. Half precision is rounded once."""
    return [_combined(list(tensors), weights) for tensors in zip(*rows, strict=True)]


def _combined(tensors: list[Tensor | None], weights: Sequence[float]) -> Tensor | None:
    terms = [(t, float(w)) for t, w in zip(tensors, weights, strict=True) if t is not None]
    if not terms:
        return None
    out, own = terms[-1]
    wide = _wide(out) if _wide(out) is out else _wide(out).clone()
    if own != 1:
        wide.mul_(own)
    for t, w in terms[:-1]:
        wide.add_(t, alpha=w)
    return out if wide is out else out.copy_(wide)


def cosines(matrix: Tensor) -> Tensor:
    """[k, k]: G_ij / sqrt(G_ii G_jj), nan where a row is zero."""
    norms = matrix.diagonal().clamp(min=0).sqrt()
    return (matrix / (norms[:, None] * norms[None, :])).clamp(-1, 1)


def _pieces(t: Tensor) -> tuple[Tensor, ...]:
    return t.reshape(-1).split(PIECE if t.device.type == "cpu" else PIECE_ON_DEVICES)


def _wide(t: Tensor) -> Tensor:
    return t.to(accumulator(t))


def _exact(t: Tensor) -> Tensor:
    """bf16 numbers lie on a coarse grid, where a CPU's running float32 sum rounds to one side."""
    return t.double() if t.dtype in HALF and t.device.type == "cpu" else _wide(t)


def _total(found: list[Tensor]) -> Tensor:
    """The sum in float64; one transfer from each device."""
    total = torch.zeros((), dtype=torch.float64)
    for kind in {(t.device, t.dtype) for t in found}:
        here = torch.stack([t for t in found if (t.device, t.dtype) == kind])
        total += here.cpu().double().sum()
    return total


def _float64(values: Sequence[float]) -> Tensor:
    return torch.tensor([float(v) for v in values], dtype=torch.float64)
