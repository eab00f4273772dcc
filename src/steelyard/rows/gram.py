"""Inner products of whole gradients, and their weighted sum, written into one of them.

    G_ij = s_i s_j sum over parameters <g_i, g_j>          float64 [k, k], on the CPU
    out  = sum_i w_i g_i                                   into the last row's tensors

A row is one tensor or None (no gradient: zero) for each parameter. Products are taken in pieces of
`PIECE` numbers in float32 or better, and the pieces are added in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from steelyard.rows.reference import accumulator

Row = list[Tensor | None]
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
    for pieces in _pieces(rows):
        for (i, j), found in pairs:
            a, b = pieces[i], pieces[j]
            if a is not None and b is not None:
                found.append(a.dot(b))
    s = [1.0] * k if scales is None else scales
    out = [[0.0] * k for _ in range(k)]  # numbers: k is small, and tiny tensors cost more
    for (i, j), found in pairs:
        out[i][j] = out[j][i] = s[i] * s[j] * _total(found)
    return torch.tensor(out, dtype=torch.float64)


@torch.no_grad()
def combine(rows: Sequence[Row], weights: Sequence[float]) -> Row:
    """sum_i w_i g_i; None where no row has a gradient. The tensors of the last row that has one are
    overwritten. Half precision is rounded once."""
    columns = list(zip(*rows, strict=True))
    joined = [_small(c) and all(t is not None and t.is_contiguous() for t in c) for c in columns]
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


def _pieces(rows: Sequence[Row]) -> Iterator[list[Tensor | None]]:
    """All numbers of the rows side by side, flat: small tensors joined, large ones cut."""
    bucket: list[tuple[Tensor | None, ...]] = []
    filled = 0
    for tensors in zip(*rows, strict=True):
        if _small(tensors) and (not bucket or _alike(bucket[0], tensors)):
            bucket.append(tensors)
            filled += next(t.numel() for t in tensors if t is not None)
            if filled >= PIECE:
                yield _join(bucket)
                bucket, filled = [], 0
            continue
        flat = [None if t is None else _flat(t) for t in tensors]
        for place in range(max((len(one) for one in flat if one is not None), default=0)):
            yield [None if one is None else _exact(one[place]) for one in flat]
    if bucket:
        yield _join(bucket)


def _join(bucket: list[tuple[Tensor | None, ...]]) -> list[Tensor | None]:
    return [
        torch.cat([t.reshape(-1) for t in row if t is not None])
        for row in zip(*bucket, strict=True)
    ]


def _small(tensors: Sequence[Tensor | None]) -> bool:
    return all(t is not None and t.numel() <= SMALL and t.dtype not in HALF for t in tensors)


def _alike(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    a, b = some[0], others[0]
    assert a is not None
    assert b is not None
    return a.dtype == b.dtype and a.device == b.device


def _flat(t: Tensor) -> tuple[Tensor, ...]:
    size = PIECE if t.device.type == "cpu" else PIECE_ON_DEVICES
    flat = t.reshape(-1)
    return (flat,) if len(flat) <= size else flat.split(size)


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype not in HALF else t.to(accumulator(t))


def _exact(t: Tensor) -> Tensor:
    """bf16 numbers lie on a coarse grid, where a CPU's running float32 sum rounds to one side."""
    return t.double() if t.dtype in HALF and t.device.type == "cpu" else _wide(t)


def _total(found: list[Tensor]) -> float:
    """The sum in float64; one transfer from each device."""
    far = {(t.device, t.dtype) for t in found if t.device.type != "cpu"}
    total = sum(t.item() for t in found if t.device.type == "cpu")
    for kind in far:
        here = torch.stack([t for t in found if (t.device, t.dtype) == kind])
        total += float(here.cpu().double().sum())
    return total
