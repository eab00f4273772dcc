"""DiceSGD: what clipping cut off is remembered, clipped itself, and fed back: no clipping bias.

Zhang, Bu, Wu, Hong, "Differentially Private SGD Without Clipping Bias: An Error-Feedback Approach",
arXiv 2311.14632 (ICLR 2024).

| symbol | here |
|---|---|
| (1/B) sum_i clip_R1(g_i) | `gradient.tensors` |
| (1/B) sum_i g_i | `gradient.raw`, each row hard-clipped at g_max = `largest` |
| e | `self._error`: secret |
| R1, R2 = rho R1 | `bound`, `feedback` rho; both on the MEAN scale |
| sigma, Reff | `noise_multiplier`; `plans.feedback.inflation` is Reff / R1 |
| ||.|| | over all parameters together, also where rows are clipped in groups |

    X   = min(1, R2 / ||e||)
    dir = (1/B) sum_i clip_R1(g_i) + X e
    e  <- e - X e + (1/B) sum_i (g_i - clip_R1(g_i))        the paper's e + mean g - dir
    released = dir + (sigma Reff / B) z                     the noise is not part of e

This is NOT DP-SGD: e depends on the raw gradients of past batches. See `plans.feedback`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steelyard.filters.gaussian import Gaussian
from steelyard.plans import feedback as accounts
from steelyard.plans.checks import chosen
from steelyard.types import Clipped, Noised, Removable
from steelyard.weightings.clip import FlatClip

KIND = "dice"
LARGEST = 100.0  # times R1: where raw rows are cut, lest one outlier fill e for hundreds of steps


class Dice:
    """Mechanism with error feedback: dir = mean clip_R1(g_i) + clip_R2(e), then Gaussian noise.

    noise_multiplier: sigma as accounted: the plan's in modes "paper" and "one-pass",
    `plans.feedback.noise_for`'s in mode "conservative". bound: R1, the rows' own. feedback: rho =
    R2 / R1; without bias only if rho >= 1. accounting: how a ledger is charged, see
    `plans.feedback`; None draws DP-SGD's noise, which is not enough, and refuses every ledger.
    largest: g_max in the unit of R1, default 100 R1; rows past it keep a bias. anti_windup: keep
    e min(X, 1 - X) instead of e (1 - X), as the authors' code does: ||e|| stays bounded, and what
    clipping cut off is no longer made up for in full.

    Guarantees: R1 -> inf and sigma = 0: SGD; rho = 0: DP-SGD; sum of dir = sum of mean gradients
    minus e (without anti_windup). `Noised.sensitivity` is Reff / B. e is never released; whatever
    reads it, a log or a learning rate, breaks the guarantee.

    | case | behaviour |
    |---|---|
    | empty batch | dir = clip_R2(e), noise as always |
    | no raw sums (rows not connected) | ValueError |
    | resuming without e | `reset()`, in every mode, at a step chosen beforehand |
    | rows that are not clipped flat | ValueError: R1 would not be on the scale of ||g|| |

    Raises ValueError for inputs outside their range, and for a mode without what it needs.
    """

    def __init__(
        self,
        noise_multiplier: float,
        *,
        bound: float,
        feedback: float = 1.0,
        accounting: str | None = None,
        largest: float | None = None,
        anti_windup: bool = False,
        seed: int | None = None,
    ):
        if not bound > 0:
            raise ValueError(f"the clipping bound must be positive, found {bound}")
        if not feedback >= 0:
            raise ValueError(f"feedback = R2 / R1 must be 0 or positive, found {feedback}: use 1")
        if accounting is not None:
            chosen("accounting mode", accounting, accounts.MODES)
        if accounting == "one-pass" and largest is None:
            raise ValueError("mode one-pass needs largest=g_max: a hard bound on raw gradients")
        self.bound, self.feedback, self.accounting = float(bound), float(feedback), accounting
        self.largest = float(LARGEST * bound if largest is None else largest)
        if not self.largest >= bound:
            raise ValueError(
                f"largest must be at least the bound {bound:g}, found {self.largest:g}: raise it"
            )
        if accounting == "one-pass" and anti_windup:
            raise ValueError("mode one-pass is proven without anti_windup only: leave it out")
        self.anti_windup = bool(anti_windup)
        self._gaussian = Gaussian(noise_multiplier, seed=seed)
        self._inflation: float | None = 1.0 if accounting is None else None
        if accounting in ("paper", "one-pass"):
            self._inflation = accounts.inflation(
                accounting, rho=self.feedback, bound=self.bound, largest=self.largest
            )
        self._expected_batch: float | None = None  # of the rows, once connected
        self._error: list[Tensor] = []
        self._steps = 0

    @property
    def noise_multiplier(self) -> float:
        """sigma as accounted; the noise drawn is larger, by `plans.feedback.inflation`."""
        return self._gaussian.noise_multiplier

    @property
    def seeded(self) -> bool:
        return self._gaussian.seeded

    @property
    def inflation(self) -> float:
        """The noise drawn over the noise accounted; mode conservative: known once attached."""
        return 1.0 if self._inflation is None else self._inflation

    @property
    def sampling(self) -> str | None:
        """How batches must be drawn for the mode to hold: a plan's `sampling`."""
        return accounts.SAMPLING[self.accounting] if self.accounting else None

    @property
    def assumption(self) -> str | None:
        """What the guarantee rests on, for a ledger's report."""
        return accounts.assumption(self.accounting) if self.accounting else None

    def connect(self, optimizer: Optimizer, rows: Any) -> Sequence[Removable]:
        """Asks the rows for raw sums too. Raises ValueError for rows that do not fit."""
        if not isinstance(rows.weighting, FlatClip):
            raise ValueError(
                f"error feedback needs flat clipping, found {type(rows.weighting).__name__}: give "
                f"the rows FlatClip({self.bound:g})"
            )
        if rows.weighting.bound != self.bound:
            raise ValueError(
                f"the rows clip at {rows.weighting.bound:g}, error feedback at {self.bound:g}: "
                "give both one bound"
            )
        if rows.armed:
            raise ValueError("error feedback needs whole steps: attach it before rows.backward")
        self._expect(float(rows.expected_batch))
        rows.raw_bound = self.largest
        return [_Raw(rows)]

    def charges(self, sampling_probability: float) -> list[tuple[float, float]]:
        """(noise multiplier, sampling probability) of the releases in the coming step.

        Raises ValueError without an accounting mode, or past the one pass of mode one-pass.
        """
        if self.accounting is None:
            raise ValueError(
                "error feedback is not DP-SGD, so its epsilon needs a choice: "
                f"accounting= one of {', '.join(accounts.MODES)}"
            )
        return accounts.charges(
            self.accounting,
            self.noise_multiplier,
            sampling_probability=sampling_probability,
            rho=self.feedback,
            expected_batch=self._expected_batch,
            step=self._steps,
        )

    @torch.no_grad()
    def privatise(self, gradient: Clipped) -> Noised:
        """One step of the box; the gradient's tensors are overwritten, raw ones included."""
        if gradient.raw is None:
            raise ValueError("the rows kept no raw sums: attach(optimizer, rows, mechanism) first")
        clipped, raw = list(gradient.tensors), list(gradient.raw)
        factor = self._factor(gradient.sensitivity)
        if not self._error:
            self._error = [torch.zeros_like(tensor) for tensor in clipped]  # float32 or better
        X = self._share(_norm(self._error))
        kept = min(X, 1.0 - X) if self.anti_windup else 1.0 - X
        torch._foreach_sub_(raw, clipped)
        torch._foreach_add_(clipped, self._error, alpha=X)  # dir
        torch._foreach_mul_(self._error, kept)
        torch._foreach_add_(self._error, raw)
        self._steps += 1
        # with Reff / B for R1 / B, sigma times the sensitivity is the noise that is in the tensors
        return self._gaussian.privatise(Clipped(clipped, factor * gradient.sensitivity))

    @property
    def buffers(self) -> int:
        """Gradient-sized tensors: e, and the second sum."""
        return 2

    def reset(self) -> None:
        """e <- 0, as after resuming without it. Steps and noise go on: nothing is drawn twice.

        No mode's guarantee weakens, if the moment does not depend on e or the data.
        """
        self._error = []

    def state_dict(self) -> dict[str, Any]:
        """Private: e holds raw gradients, and the noise can be drawn again from the rest."""
        return {
            "private": True,
            "kind": KIND,
            "noise": self._gaussian.state_dict(),
            "error": [tensor.clone() for tensor in self._error],
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved, bit for bit. Raises ValueError for any other state."""
        if state.keys() != self.state_dict().keys() or state["kind"] != KIND:
            raise ValueError(f"not a saved state of Dice: found {sorted(map(str, state))}")
        self._gaussian.load_state_dict(state["noise"])
        self._error = [tensor.clone() for tensor in state["error"]]
        self._steps = int(state["steps"])

    def _share(self, norm: float) -> float:
        """X = min(1, R2 / ||e||)."""
        if self.feedback == 0:
            return 0.0
        R2 = self.feedback * self.bound
        return min(1.0, R2 / norm) if norm > 0 else 1.0

    def _factor(self, sensitivity: float) -> float:
        """Reff / R1; mode conservative learns B from the first step, if not connected."""
        if self._inflation is None:
            self._expect(self.bound / sensitivity)
        assert self._inflation is not None
        return self._inflation

    def _expect(self, expected_batch: float) -> None:
        self._expected_batch = expected_batch
        if self.accounting == "conservative":
            self._inflation = accounts.inflation(
                "conservative", rho=self.feedback, expected_batch=expected_batch
            )


class _Raw:
    """Raw sums are asked for until `remove`."""

    def __init__(self, rows: Any):
        self._rows = rows

    def remove(self) -> None:
        self._rows.raw_bound = None


def _norm(tensors: list[Tensor]) -> float:
    return math.hypot(*(float(norm) for norm in torch._foreach_norm(tensors)))
