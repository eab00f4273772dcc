"""Task-vector negation: learn the forget set, then walk the other way.

Ilharco et al. 2023, "Editing models with task arithmetic" (ICLR), arXiv:2212.04089.

| symbol | variable |
|---|---|
| w_target | `target`: the weights before unlearning |
| w_finetuned_on_forget | `finetuned`: the target, trained further on the forget set |
| s_tv | `scale` |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def negate(
    target: Mapping[str, Tensor], finetuned: Mapping[str, Tensor], scale: float = 1.0
) -> dict[str, Tensor]:
    """w = w_target - scale * (w_finetuned_on_forget - w_target), key by key, of two state dicts.

    Computed in float32 (float64 where a weight is), returned in the target's precision and on its
    device as new tensors. Integers and booleans are copied from the target.
    scale: 0 returns the target bit for bit. No retain row, no loss, no training loop: the retained
    knowledge is safe only as far as the two directions differ.
    Raises: ValueError for other keys or shapes, naming the first; for a scale that is not finite.
    """
    if not abs(scale) < float("inf"):
        raise ValueError(f"scale={scale}: use a finite number")
    if different := sorted(set(target) ^ set(finetuned)):
        raise ValueError(f"{different[0]!r} is in one state dict only: use two of the same model")
    return {name: _walk(name, target[name], finetuned[name], scale) for name in target}


def _walk(name: str, w: Tensor, tuned: Tensor, scale: float) -> Tensor:
    if w.shape != tuned.shape:
        raise ValueError(f"{name!r} has shapes {list(w.shape)} and {list(tuned.shape)}")
    if not w.is_floating_point():
        return w.detach().clone()
    kind = torch.promote_types(w.dtype, torch.float32)
    start = w.detach().to(kind)
    return (start - scale * (tuned.detach().to(w.device, kind) - start)).to(w.dtype)
