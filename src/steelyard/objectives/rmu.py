"""RMU: steer a layer's hidden states on forget data to one random direction; keep them on retain.

Li et al. 2024, "The WMDP benchmark: measuring and reducing malicious use with unlearning",
arXiv:2403.03218.

| symbol | variable |
|---|---|
| h_l(x), h0_l(x) | `hidden(model, tokens, layer)`, `reference.hidden(tokens, layer)` [B, T, d] |
| v / norm(v), v ~ U[0, 1)^d | `RMU.direction(d)` |
| s | `steering` |
| MSE(a, b) = (1/d) sum_j (a_j - b_j)^2 | `_distance` |

Only layers up to l are moved by it; public recipes train layers l-2 to l, their `down_proj` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from steelyard.generators import fresh_root, generator
from steelyard.objectives.answers import expect_reference, expect_tokens
from steelyard.objectives.layers import hidden
from steelyard.objectives.reference import Reference
from steelyard.objectives.tokens import IGNORED, Tokens, answer_lengths


@dataclass(frozen=True, kw_only=True)
class RMU:
    """F = mean over samples of the token mean of MSE(h_l(x_f), steering * v / norm(v)).

    Tokens: those OF the answer (the state where they are read, not where they are predicted).
    layer: a block's number from 0, or a module's dotted path. `seed` fixes v. Bounded below by 0.
    Defaults: TOFU's of open-unlearning (layer 7, steering 2); WMDP used 6.5 and a retain weight of
    1200. Public code differs: it divides by the answers' lengths through a broadcast [B] / [B, 1],
    which gives mean(sums) * mean(1 / lengths); and it draws v from the global generator.
    Raises: ValueError for an unknown layer, or states that no trainable parameter reaches.
    """

    layer: int | str = 7
    steering: float = 2.0
    seed: int = 0

    needs_reference: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = False

    def direction(self, width: int) -> Tensor:
        """v / norm(v) [d] float32 on the CPU: a function of the seed and d alone."""
        draw = generator(fresh_root(self.seed), "rmu direction")
        v = torch.rand(width, generator=draw)
        return v / v.norm()

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], a mean square, not negative."""
        expect_tokens(tokens)
        h = _trained(hidden(model, tokens, self.layer), model, self.layer)
        return _distance(h, self.steering * self.direction(h.shape[-1]).to(h.device), tokens)

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


@dataclass(frozen=True, kw_only=True)
class KeepHidden:
    """R = mean over samples of the token mean of MSE(h_l(x_r), h0_l(x_r)): RMU's retain row.

    Called EMBED_DIFF in public code. 0 at p = p0, with gradient 0; `layer` as in `RMU`.
    """

    layer: int | str = 7

    needs_reference: ClassVar[bool] = True
    needs_pair: ClassVar[bool] = False

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], a mean square, not negative."""
        expect_tokens(tokens)
        h0 = expect_reference(reference).hidden(tokens, self.layer)
        h = _trained(hidden(model, tokens, self.layer), model, self.layer)
        return _distance(h, h0, tokens)

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


def _distance(h: Tensor, target: Tensor, tokens: Tokens) -> Tensor:
    """Token mean [B] of the mean squares of h - target [B, T, d], at least in float32."""
    mask = tokens.labels != IGNORED
    lengths = answer_lengths(mask)
    wide = h if h.dtype == torch.float64 else h.float()
    squares = (wide - target.to(wide.dtype)).square().mean(-1)  # [B, T]
    return torch.where(mask, squares, 0).sum(1) / lengths


def _trained(h: Tensor, model: nn.Module, layer: int | str) -> Tensor:
    if torch.is_grad_enabled() and not h.requires_grad:
        trained = any(p.requires_grad for p in model.parameters())
        why = (
            "only later layers are trained, or checkpointing is reentrant"
            if trained
            else ("the model has no trainable parameter")
        )
        raise ValueError(f"nothing trained reaches layer {layer!r} ({why}): choose another layer")
    return h
