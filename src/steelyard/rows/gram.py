"""Inner products of whole gradients, and their weighted sum, written into one of them.

    G_ij = s_i s_j sum over parameters <g_i, g_j>          float64 [k, k], on the CPU
    out  = sum_i w_i g_i                                   into the last row's tensors

A row is one tensor or None (no gradient: zero) for each parameter. Products are taken in pieces of
`PIECE` numbers in float32 or better, and the pieces are added in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steelyard.rows.reference import accumulator

Row = list[Tensor | None]
Column = tuple[Tensor | None, ...]  # of one shape, or None
PIECE, PIECE_ON_DEVICES = 1 << 16, 1 << 22  # numbers: a core's cache; few kernels
SMALL = 1 << 14  # smaller tensors are joined: a call costs more than they do
HALF = (torch.float16, torch.bfloat16)


@torch.no_grad()
def gram(rows: Sequence[Row], scales: Sequence[float] | None = None) -> Tensor:
    """[k, k] float64 of the rows times their scales. bf16 and fp16 rows are widened piece by piece,
    so their squares do not overflow."""
    k = len(rows)
    parts: dict[tuple[int, int], list[Tensor]] = {(i, j): [] for i in range(k) for j in range(i, k)}
    pairs = list(parts.items())
    for raw in pieces(zip(*rows, strict=True)):
        piece = [None if t is None else _exact(t) for t in raw]
        for (i, j), found in pairs:
            a, b = piece[i], piece[j]
            if a is not None and b is not None:
                found.append(a.dot(b))
    s = [1.0] * k if scales is None else scales
    out = [[0.0] * k for _ in range(k)]  # numbers: k is small, and tiny tensors cost more
    for (i, j), total in zip(parts, totals([found for _, found in pairs]), strict=True):
        out[i][j] = out[j][i] = s[i] * s[j] * total
    return torch.tensor(out, dtype=torch.float64)


@torch.no_grad()
def combine(rows: Sequence[Row], weights: Sequence[float]) -> Row:
    """sum_i w_i g_i; None where no row has a gradient. The tensors of the last row that has one are
    overwritten. Half precision is rounded once."""
    columns = list(zip(*rows, strict=True))
    joined = [_together(column) for column in columns]
    if any(joined):
        *others, last = (
            [t for t, one in zip(row, joined, strict=True) if one and t is not None] for row in rows
        )
        torch._foreach_mul_(last, float(weights[-1]))
        for row, w in zip(others, weights, strict=False):
            torch._foreach_add_(last, row, alpha=float(w))
    return [
        tensors[-1] if one else _combined(tensors, weights)
        for tensors, one in zip(columns, joined, strict=True)
    ]


def _combined(tensors: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor | None:
    terms = [(t, float(w)) for t, w in zip(tensors, weights, strict=True) if t is not None]
    if not terms:
        return None
    out, own = terms[-1]
    in_place = all(t.is_contiguous() for t, _ in terms) and _wide(out) is out
    if not in_place:
        total = _wide(out) * own
        for t, w in terms[:-1]:
            total.add_(t, alpha=w)
        return out.copy_(total)
    for last, *others in zip(_flat(out), *(_flat(t) for t, _ in terms[:-1]), strict=True):
        if own != 1:
            last.mul_(own)
        for piece, (_, w) in zip(others, terms, strict=False):
            last.add_(piece, alpha=w)
    return out


def cosines(matrix: Tensor) -> Tensor:
    """[k, k]: G_ij / sqrt(G_ii G_jj), nan where a row is zero."""
    norms = matrix.diagonal().clamp(min=0).sqrt()
    return (matrix / (norms[:, None] * norms[None, :])).clamp(-1, 1)


def pieces(columns: Iterable[Column]) -> Iterator[Column]:
    """The numbers of the columns side by side, flat: small columns joined, large ones cut. Used
    without gradients."""
    buckets: dict[Any, list[Column]] = {}
    filled: dict[Any, int] = {}
    for column in columns:
        first = next((t for t in column if t is not None), None)
        if first is None:
            continue
        size = PIECE if first.device.type == "cpu" else PIECE_ON_DEVICES
        if first.numel() > (SMALL if size == PIECE else size):
            cut = [None if t is None else t.reshape(-1).split(size) for t in column]
            for place in range(-(-first.numel() // size)):
                yield tuple(None if one is None else one[place] for one in cut)
            continue
        kind = tuple(None if t is None else (t.dtype, t.device) for t in column)
        buckets.setdefault(kind, []).append(column)
        filled[kind] = filled.get(kind, 0) + first.numel()
        if filled[kind] >= size:
            yield _join(buckets.pop(kind))
            filled[kind] = 0
    yield from map(_join, buckets.values())


def totals(found: Sequence[Sequence[Tensor]]) -> list[float]:
    """Of each list of numbers on any devices, the sum in float64; one wait for each device."""
    sums = [sum(t.item() for t in some if t.device.type == "cpu") for some in found]
    far = [(i, t) for i, some in enumerate(found) for t in some if t.device.type != "cpu"]
    for kind in {(t.device, t.dtype) for _, t in far}:
        here = [(i, t) for i, t in far if (t.device, t.dtype) == kind]
        numbers = torch.stack([t for _, t in here]).cpu().double().tolist()
        for (i, _), number in zip(here, numbers, strict=True):
            sums[i] += number
    return [float(one) for one in sums]


def _join(bucket: list[Column]) -> Column:
    return tuple(
        None
        if row[0] is None
        else torch.cat([t.detach().reshape(-1) for t in row if t is not None])
        for row in zip(*bucket, strict=True)
    )


def _together(column: Column) -> bool:
    """Whether one call can combine this column and others: small on a CPU, anything on devices."""
    return all(
        t is not None
        and t.is_contiguous()
        and t.dtype not in HALF
        and (t.device.type != "cpu" or t.numel() <= SMALL)
        for t in column
    )


def _flat(t: Tensor) -> tuple[Tensor, ...]:
    size = PIECE if t.device.type == "cpu" else PIECE_ON_DEVICES
    flat = t.reshape(-1)
    return (flat,) if len(flat) <= size else flat.split(size)


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype not in HALF else t.to(accumulator(t))


def _exact(t: Tensor) -> Tensor:
    """bf16 numbers lie on a coarse grid, where a CPU's running float32 sum rounds to one side."""
    return t.double() if t.dtype in HALF and t.device.type == "cpu" else _wide(t)
