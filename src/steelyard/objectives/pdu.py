"""PDU: flatten the logits on forget data under the constraint that the retain loss stays small.

Entesari et al. 2025, "Constrained entropic unlearning: a primal-dual framework for large language
models", arXiv:2506.05314.

| symbol | variable |
|---|---|
| F = mean of (max_v z - mean_v z)^2 | `PDU` |
| R <= eps | the constraint; `epsilon` |
| lambda | `PrimalDual.multiplier` |
| L = w_F F + lambda (R - eps) | what a step with `PrimalDual`'s weights descends |
| lambda <- max(0, lambda + step (R - eps)) | `PrimalDual.update(R)` |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from steelyard.objectives.answers import Positions, logits_at, mean_over, places
from steelyard.objectives.reference import Reference
from steelyard.objectives.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class PDU:
    """F = mean over samples of the token mean of (max_v z_t - mean_v z_t)^2, v over the vocabulary.

    0 exactly where all logits are equal (a uniform p); bounded below by that; no softmax.
    positions: "answer" (those that predict an answer token) or "all" but padding.
    Public code differs: it averages over all positions of the batch, padding included.
    """

    positions: Positions = "answer"

    needs_reference: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = False

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], in squared logits, not negative."""
        mask = places(tokens, self.positions)
        z = logits_at(model, tokens, mask)
        return mean_over((z.amax(-1) - z.mean(-1)).square(), mask)

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


class PrimalDual:
    """The multiplier of the retain constraint, as a weighting of the rows "retain" and "forget".

        Tasks(parameters, PrimalDual()).backward(retain=CE()(...), forget=PDU()(...))

    Weights: lambda for retain, `forget` for forget; the Gram matrix is not looked at.
    update(R): lambda <- max(0, lambda + step (R - epsilon)). per="step": every backward does it
    with its own retain loss, after that has been weighed by the old lambda; per="epoch": you do,
    with the mean over retain data. The first `warmup` updates change nothing.
    Defaults: epsilon as for TOFU, initial the least and step that of public code, where lambda
    starts at 50 to 100 and waits for 5 epochs.
    State (`state_dict`): multiplier and number of updates.

    Raises: ValueError for negative numbers, other rows, a bare Gram matrix (it has no names), a
    retain loss that is not finite.
    """

    def __init__(
        self,
        *,
        epsilon: float = 0.3,
        initial: float = 50.0,
        step: float = 1.0,
        forget: float = 1.0,
        warmup: int = 0,
        per: Literal["step", "epoch"] = "step",
    ) -> None:
        options = {"initial": initial, "step": step, "forget": forget, "warmup": warmup}
        for name, value in options.items():
            if not value >= 0:
                raise ValueError(f"{name}={value}: use 0 or more")
        if per not in ("step", "epoch"):
            raise ValueError(f"per={per!r}: use 'step' or 'epoch'")
        self.epsilon, self.step, self.forget = epsilon, step, forget
        self.warmup, self.per = warmup, per
        self.multiplier, self.updates = float(initial), 0

    def __call__(self, gram: Tensor) -> Tensor:
        raise ValueError(
            "PrimalDual weighs rows by their names and the retain loss, which are not in the Gram "
            "matrix: use it in Tasks(parameters, PrimalDual())"
        )

    def given(self, names: Sequence[str], losses: Tensor) -> Callable[[Tensor], Tensor]:
        """The weights of this step's rows; then, per step, the update."""
        if sorted(names) != ["forget", "retain"]:
            raise ValueError(f"the rows are {', '.join(names)}: PDU weighs 'retain' and 'forget'")
        by_name = {"retain": self.multiplier, "forget": self.forget}
        weights = torch.tensor([by_name[name] for name in names], dtype=torch.float64)
        if self.per == "step":
            self.update(losses[list(names).index("retain")])
        return lambda gram: weights

    def update(self, retain_loss: float | Tensor) -> float:
        """The new lambda, from a retain loss in the units of `epsilon`."""
        loss = float(retain_loss)
        if not math.isfinite(loss):
            raise ValueError(f"the retain loss is {loss}: the multiplier cannot follow it")
        self.updates += 1
        if self.updates > self.warmup:
            self.multiplier = max(0.0, self.multiplier + self.step * (loss - self.epsilon))
        return self.multiplier

    def state_dict(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.multiplier, self.updates = float(state["multiplier"]), int(state["updates"])
