"""Per-sample gradients of one parameter, kept in the shape they arrive in.

A parameter used several times in a forward pass (tied weights, a module called twice) has one
factor per use. Its squared row norm is the sum of all inner products, cross terms included:

    ||sum_u g_i^u||^2 = sum_u sum_v <g_i^u, g_i^v>

| factor | gradient of sample i | from |
|---|---|---|
| `Dense` | G[i] | norms, biases, small or instantiated weights |
| `Outer` | sum_p left[i, p] (x) right[i, p] | Linear, convolutions (left = dy, right = input) |
| `OneHot` | sum_p e_{index[i, p]} (x) dy[i, p] | Embedding |

"Ghost" norms never form G: <h h', dy dy'> (arXiv 2210.00038, section 2). They subtract large
numbers where positions cancel, and an under-estimated norm breaks the bound, so every factor also
knows its `magnitude`, the sum of its terms' norms: where the norm is far below it, it is computed
again in float64, and it never counts as less than what rounding leaves of the magnitude.
Shapes: B samples, L positions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Instantiating a weight's rows and re-using them for the sum costs no extra product but moves
# 3 * B * m * n numbers; the ghost norm costs 2 B L^2 (m + n) more operations. Measured on CPUs: a
# number moved costs as much as about this many operations, from memory and from the cache.
FROM_MEMORY, FROM_CACHE = 48, 8
CACHED = 2**21  # so many numbers stay in the cache
AT_ONCE = 2**22  # products of positions in memory at one time: long sequences go in parts
PART = 2_048  # numbers of a row whose squares are added up in one go
BLOCKED = 48  # positions from which on half of the products are worth leaving out


def lengths(rows: Tensor) -> Tensor:
    """L2 norms of [B, n]: [B]. In parts where rows are long: torch adds up squares one after the
    other, and in float32 the norm of a million numbers comes out too small by 1e-4."""
    whole = rows.shape[1] // PART * PART
    if rows.shape[1] <= 2 * PART:
        return torch.linalg.vector_norm(rows, dim=1)
    parts = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, PART)), dim=2)
    rest = torch.linalg.vector_norm(rows[:, whole:], dim=1)
    return torch.hypot(torch.linalg.vector_norm(parts, dim=1), rest)


def instantiating_is_cheaper(B: int, L: int, m: int, n: int) -> bool:
    """Of a matrix [m, n] with L positions in each of B samples: rather than the ghost norm."""
    per_number = FROM_CACHE if B * m * n <= CACHED else FROM_MEMORY
    faster = per_number * 3 * m * n < 2 * L * L * (m + n)
    small = m * n <= 1.25 * L * (m + n)  # rows wait in memory for their clipping, as factors do
    return L > 1 and faster and small


@dataclass(slots=True)
class Dense:
    """Instantiated per-sample gradients [B, *shape]; `last_to` as in `Outer`."""

    rows: Tensor
    last_to: int = -1

    def norms(self) -> tuple[Tensor, Tensor]:  # squared norms, magnitudes: [B], [B]
        norms = _lengths(self.flat())
        return norms.square(), norms

    def weighted_sum(self, weights: Tensor) -> Tensor:  # [B] -> [*shape]
        total = (weights.to(self.rows.dtype) @ self.flat()).view(self.rows.shape[1:])
        return total if self.last_to == -1 else total.movedim(-1, self.last_to).contiguous()

    def flat(self) -> Tensor:  # [B, numbers]
        return self.rows.reshape(self.rows.shape[0], -1)

    def in_double(self, samples: Tensor) -> Dense:
        return Dense(self.rows[samples].double(), self.last_to)


@dataclass(slots=True)
class Outer:
    """left [B, L, m], right [B, L, n]: gradient [m, n], viewed as `shape`.

    last_to: where the last dimension of that view goes in the parameter's own shape (convolutions
    keep their channels last while they are summed).
    """

    left: Tensor
    right: Tensor
    shape: torch.Size
    last_to: int = -1

    def norms(self) -> tuple[Tensor, Tensor]:
        if self.left.shape[1] == 1:
            norms = lengths(self.left[:, 0]) * lengths(self.right[:, 0])
            return norms.square(), norms
        (B, L, _), left, right = self.left.shape, self.left, self.right
        squares, magnitudes = left.new_zeros(B), left.new_zeros(B)
        # products of positions p, p' are symmetric: blocks of p against p' from there on
        step = min(L if L < BLOCKED else -(-L // 4), max(1, AT_ONCE // (B * L)))
        for p in range(0, L, step):
            products = torch.bmm(left[:, p : p + step], left[:, p:].transpose(1, 2))
            products.mul_(torch.bmm(right[:, p : p + step], right[:, p:].transpose(1, 2)))
            squares += 2 * products.sum((1, 2)) - products[:, :, :step].sum((1, 2))
            magnitudes += products.diagonal(dim1=1, dim2=2).sqrt().sum(1)
        return squares, magnitudes

    def weighted_sum(self, weights: Tensor) -> Tensor:
        left, right, weights = self.left, self.right, weights.to(self.left.dtype)
        if left.shape[2] <= right.shape[2]:
            left = left * weights[:, None, None]
        else:
            right = right * weights[:, None, None]
        total = (left.flatten(0, 1).T @ right.flatten(0, 1)).view(self.shape)
        return total if self.last_to == -1 else total.movedim(-1, self.last_to).contiguous()

    def in_double(self, samples: Tensor) -> Outer:
        left, right = self.left[samples].double(), self.right[samples].double()
        return Outer(left, right, self.shape, self.last_to)

    def instantiated(self) -> Dense:
        """The same rows as [B, *shape]: B * m * n numbers, re-used for norm and sum."""
        rows = torch.bmm(self.left.transpose(1, 2), self.right)
        return Dense(rows.view(rows.shape[0], *self.shape), self.last_to)

    def cheaper(self) -> Outer | Dense:
        """Itself or its instantiated rows, whichever makes norm and sum cheaper."""
        B, L, m = self.left.shape
        cheaper = instantiating_is_cheaper(B, L, m, self.right.shape[2])
        return self.instantiated() if cheaper else self


@dataclass(slots=True)
class OneHot:
    """index [B, L] int64, dy [B, L, d]: gradient [V, d] with V = `vocabulary`."""

    index: Tensor
    dy: Tensor
    vocabulary: int

    def norms(self) -> tuple[Tensor, Tensor]:
        """Repeated tokens of a sample are added up before squaring."""
        B, L = self.index.shape
        samples = torch.arange(B, device=self.index.device).repeat_interleave(L)
        keys, where = torch.unique(
            samples * self.vocabulary + self.index.flatten(), return_inverse=True
        )
        sums = self.dy.new_zeros(len(keys), self.dy.shape[2])
        sums.index_add_(0, where, self.dy.flatten(0, 1))
        squares = torch.linalg.vector_norm(sums, dim=1).square()
        total = squares.new_zeros(B).index_add_(0, keys // self.vocabulary, squares)
        return total, torch.linalg.vector_norm(self.dy, dim=2).sum(1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        out = self.dy.new_zeros(self.vocabulary, self.dy.shape[2])
        weighted = self.dy * weights.to(self.dy.dtype)[:, None, None]
        return out.index_add_(0, self.index.flatten(), weighted.flatten(0, 1))

    def in_double(self, samples: Tensor) -> OneHot:
        return OneHot(self.index[samples], self.dy[samples].double(), self.vocabulary)


Factor = Dense | Outer | OneHot


# Below this share of its magnitude a squared norm is computed again in float64: what is left of a
# float32 then has a relative error of about 1e-3 at most.
CANCELLED = 1e-4


def squared_norms(parameters: Sequence[list[Factor]]) -> Tensor:
    """sum over parameters of ||sum_u g_i^u||^2, u over its uses, cross terms included: [B]."""
    found = [_norms(uses) for uses in parameters]
    dtype = functools.reduce(torch.promote_types, (s.dtype for s, _ in found))
    squares = torch.stack([s.to(dtype) for s, _ in found])  # [parameters, B]
    magnitudes = torch.stack([m.to(dtype) for _, m in found])
    safe = all(len(uses) == 1 and isinstance(uses[0], Dense) for uses in parameters)
    cancelled = squares < CANCELLED * magnitudes.square()
    if not safe and dtype != torch.float64 and bool(cancelled.any()):
        for k in cancelled.any(1).nonzero().squeeze(1).tolist():
            samples = cancelled[k].nonzero().squeeze(1)
            again, _ = _norms([use.in_double(samples) for use in parameters[k]])
            squares[k, samples] = again.to(dtype)
    # the sum itself is rounded too: a row is never smaller than its own rounding error
    rounding = 100 * torch.finfo(dtype).eps * magnitudes
    return torch.maximum(squares, rounding.square()).sum(0)


def _norms(uses: list[Factor]) -> tuple[Tensor, Tensor]:
    squares, magnitudes = uses[0].norms()
    for i, use in enumerate(uses[1:], start=1):
        more, size = use.norms()
        squares, magnitudes = squares + more, magnitudes + size
        for other in uses[:i]:
            squares = squares + 2 * inner(other, use)
    return squares, magnitudes


def weighted_sum(uses: list[Factor], weights: Tensor) -> Tensor:
    """sum_i w_i sum_u g_i^u, in the parameter's shape."""
    total = uses[0].weighted_sum(weights)
    for use in uses[1:]:
        total += use.weighted_sum(weights)
    return total


def inner(a: Factor, b: Factor) -> Tensor:
    """<g_i^a, g_i^b> for every sample i: [B]."""
    if _last_to(a) != _last_to(b):
        a, b = _plain(a), _plain(b)
    if isinstance(a, Dense):
        if isinstance(b, Dense):
            return (a.flat() * b.flat()).sum(1)
        if isinstance(b, Outer):
            rows = a.rows.view(a.rows.shape[0], b.left.shape[2], b.right.shape[2])
            return (torch.bmm(b.left, rows) * b.right).sum((1, 2))
        index = b.index[:, :, None].expand_as(b.dy)
        return (a.rows.gather(1, index) * b.dy).sum((1, 2))
    if isinstance(a, OneHot):
        if isinstance(b, OneHot):
            same = a.index[:, :, None] == b.index[:, None, :]
            return (same * torch.bmm(a.dy, b.dy.transpose(1, 2))).sum((1, 2))
        if isinstance(b, Outer):
            # tied embedding and head: sum_{p,p'} left[p', token_p] (dy_p . right_p')
            index = a.index[:, None, :].expand(-1, b.left.shape[1], -1)
            picked = b.left.gather(2, index)  # [B, L_b, L_a]
            return (picked * torch.bmm(b.right, a.dy.transpose(1, 2))).sum((1, 2))
    if isinstance(a, Outer) and isinstance(b, Outer):
        return _paired(a, b)
    return inner(b, a)  # the product is symmetric; the pairs above cover one order of each


def _last_to(factor: Factor) -> int:
    return -1 if isinstance(factor, OneHot) else factor.last_to


def _plain(factor: Factor) -> Factor:
    """In the layout of the parameter itself."""
    if isinstance(factor, OneHot) or factor.last_to == -1:
        return factor
    rows = (factor if isinstance(factor, Dense) else factor.instantiated()).rows
    return Dense(rows.movedim(-1, factor.last_to + 1))


def _paired(a: Outer, b: Outer) -> Tensor:
    """sum_{p,p'} (a_p . b_p')(a'_p . b'_p'): [B], some positions of a at a time."""
    step = max(1, AT_ONCE // (len(a.left) * b.left.shape[1]))
    total = a.left.new_zeros(len(a.left))
    for left, right in zip(a.left.split(step, 1), a.right.split(step, 1), strict=True):
        products = torch.bmm(left, b.left.transpose(1, 2))
        total += products.mul_(torch.bmm(right, b.right.transpose(1, 2))).sum((1, 2))
    return total


def _lengths(rows: Tensor) -> Tensor:
    """[B, numbers] -> [B]. Block by block: on CPUs `vector_norm` adds the squares up one after the
    other, and errs by up to 1e-3 for rows of millions of float32 numbers (an embedding's)."""
    of, block = torch.linalg.vector_norm, 4096
    whole = rows.shape[1] // block * block
    if whole <= block:
        return of(rows, dim=1)
    blocks = of(rows[:, :whole].unflatten(1, (-1, block)), dim=2)
    return of(torch.cat([blocks, of(rows[:, whole:], dim=1, keepdim=True)], 1), dim=1)
