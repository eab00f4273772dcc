"""Squared norms of one layer's per-sample gradients, for the two-pass peers.

Each function: (module, input x, output gradient dy, ghost) -> one [B] for each trainable parameter.
ghost: <x x', dy dy'> where that takes fewer operations than the gradients themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def square(rows: Tensor) -> Tensor:
    """Squared norms of rows [B, ...]."""
    return torch.linalg.vector_norm(rows.flatten(1), dim=1).square()


def matrix(x: Tensor, dy: Tensor, ghost: bool) -> Tensor:
    """x [B, L, n], dy [B, L, m]: ||sum_p dy_p (x) x_p||^2."""
    L, n, m = x.shape[1], x.shape[2], dy.shape[2]
    if L == 1:
        return square(x) * square(dy)
    if ghost and L * (m + n) < m * n:
        return (torch.bmm(x, x.mT) * torch.bmm(dy, dy.mT)).sum((1, 2))
    return square(torch.bmm(dy.mT, x))


def linear(module: nn.Module, x: Tensor, dy: Tensor, ghost: bool) -> list[Tensor]:
    x, dy = (t.reshape(t.shape[0], -1, t.shape[-1]) for t in (x, dy))
    found = [matrix(x, dy, ghost)] if module.weight.requires_grad else []
    if module.bias is not None and module.bias.requires_grad:
        found.append(square(dy.sum(1)))
    return found


def convolution(module: nn.Module, x: Tensor, dy: Tensor, ghost: bool) -> list[Tensor]:
    assert isinstance(module, nn.Conv2d)
    if module.groups != 1 or module.dilation != (1, 1) or isinstance(module.padding, str):
        raise ValueError("the peers know convolutions of one group without dilation")
    (down, right), (high, wide) = module.padding, module.kernel_size
    x = F.pad(x, (right, right, down, down)) if down or right else x
    x = x.unfold(2, high, module.stride[0]).unfold(3, wide, module.stride[1])
    patches = x.permute(0, 2, 3, 1, 4, 5).reshape(len(x), -1, x.shape[1] * high * wide)
    dy = dy.flatten(2)  # [B, c_out, L]
    found = [matrix(patches, dy.mT, ghost)]
    return [*found, square(dy.sum(2))] if module.bias is not None else found


def embedding(module: nn.Module, x: Tensor, dy: Tensor, ghost: bool) -> list[Tensor]:
    """Repeated tokens of a sample are added up before squaring."""
    assert isinstance(module, nn.Embedding)
    if module.padding_idx is not None:
        dy = dy * (x != module.padding_idx)[..., None]
    if ghost:
        same = (x[:, :, None] == x[:, None, :]).to(dy.dtype)
        return [(same * torch.bmm(dy, dy.mT)).sum((1, 2))]
    rows = dy.new_zeros(len(x), module.num_embeddings, dy.shape[2])
    return [square(rows.scatter_add_(1, x[:, :, None].expand_as(dy), dy))]


def layer_norm(module: nn.Module, x: Tensor, dy: Tensor, ghost: bool) -> list[Tensor]:
    assert isinstance(module, nn.LayerNorm)
    x = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    x, dy = (t.reshape(t.shape[0], -1, t.shape[-1]) for t in (x, dy))
    found = [square((dy * x).sum(1))]
    return [*found, square(dy.sum(1))] if module.bias is not None else found


SQUARES: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor, bool], list[Tensor]]] = {
    nn.Linear: linear,
    nn.Conv2d: convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
}
