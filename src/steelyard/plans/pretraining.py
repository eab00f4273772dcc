"""A short public phase before the private one: when to switch, and what is charged.

Bu, Zhang, Hong, Zha, Karypis, "Pre-training Differentially Private Models with Limited Public
Data" (DPCP), NeurIPS 2024, arXiv 2402.18752.

| symbol | here |
|---|---|
| s, T, P | `share`, `steps`, the public set |
| B, n, sigma | `batch`, `n_private`, the plan's `noise_multiplier` |
| B*_DP, decelerator | values for `Flattened`, from `steelyard.plans.landscape` |

    t <  s T   AdamW on P; ends early when a rule that sees public numbers only says so
    switch     first moment <- 0            (`steelyard.steps.switch.carry_over`)
    t >= s T   AdamW on (sum_i C_i g_i + sigma R z) / B, Poisson batches of the private set only
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from steelyard.plans.checks import real, whole
from steelyard.plans.privacy import PrivacyPlan, plan_privacy

# -- when the public phase ends ----------------------------------------------------------------


class SwitchRule(Protocol):
    """Ends the public phase; sees PUBLIC numbers only: the switch is released without noise.

    `update(step, value)` after `step` public steps -> whether the phase is over, from then on for
    good. Steps must grow: ValueError otherwise. To stop when any of several rules says so, update
    each (`a.update(...) | b.update(...)`, not `or`, which would leave b out).
    """

    def update(self, step: int, value: float) -> bool: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _Resumable:
    """Steps in order, a decision that stays, and all of it in plain values."""

    def __init__(self) -> None:
        self.step, self.over = -1, False

    def _advance(self, step: int) -> None:
        step = whole("step", step, least=0, fix="count public steps from 0")
        if step <= self.step:
            raise ValueError(f"step {step} comes after step {self.step}: update once per step")
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, list) else v for k, v in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if wrong := vars(self).keys() ^ state.keys():
            raise ValueError(f"not a state of {type(self).__name__}: {sorted(wrong)}")
        vars(self).update({k: list(v) if isinstance(v, list) else v for k, v in state.items()})


class EarlyStopping(_Resumable):
    """Over when the public validation loss has not improved `patience` updates in a row.

    An improvement is a fall of more than `least` below the best so far; nan is none.
    Raises ValueError for patience < 1 or a negative `least`.
    """

    def __init__(self, patience: int = 2, *, least: float = 0.0):
        super().__init__()
        self.patience = whole("patience", patience, least=1, fix="use 2")
        if real("least", least, fix="use 0") < 0:
            raise ValueError(f"least must not be negative, found {least}: use 0")
        self.least, self.best, self.waited = least, math.inf, 0

    def update(self, step: int, value: float) -> bool:
        self._advance(step)
        if value < self.best - self.least:
            self.best, self.waited = float(value), 0
        else:
            self.waited += 1
        self.over = self.over or self.waited >= self.patience
        return self.over


class Flattened(_Resumable):
    """Over when B*_DP, or the decelerator, has dropped and its fall has ended.

    Dropped: the mean of the last `window` values is at most `drop` times the largest value seen.
    Ended: the least-squares line through them falls by at most `tolerance` of their mean, from the
    first to the last. Values that are not finite and positive (no curvature to speak of) start the
    window again. Raises ValueError for drop outside (0, 1), window < 3, tolerance <= 0.
    """

    def __init__(self, *, drop: float = 0.2, window: int = 4, tolerance: float = 0.2):
        super().__init__()
        self.drop = real("drop", drop, above=0.0, fix="use 0.2")
        if drop >= 1:
            raise ValueError(f"drop must be below 1, found {drop:g}: use 0.2")
        self.window = whole("window", window, least=3, fix="use 4")
        self.tolerance = real("tolerance", tolerance, above=0.0, fix="use 0.2")
        self.largest = 0.0
        self.steps: list[int] = []
        self.values: list[float] = []

    def update(self, step: int, value: float) -> bool:
        self._advance(step)
        if not 0 < value < math.inf:
            self.steps, self.values = [], []
            return self.over
        self.largest = max(self.largest, float(value))
        self.steps = [*self.steps, step][-self.window :]
        self.values = [*self.values, float(value)][-self.window :]
        if len(self.values) == self.window:
            mean, centre = sum(self.values) / self.window, sum(self.steps) / self.window
            along = [t - centre for t in self.steps]
            slope = sum(t * v for t, v in zip(along, self.values, strict=True))
            slope /= sum(t * t for t in along)  # units of the value per step
            fall = -slope * (self.steps[-1] - self.steps[0])
            ended = mean <= self.drop * self.largest and fall <= self.tolerance * mean
            self.over = self.over or ended
        return self.over


class FixedShare(_Resumable):
    """Over after the public steps of `split_steps(total, share)`; the value is not looked at."""

    def __init__(self, total: int, share: float):
        super().__init__()
        self.last, _ = split_steps(total, share)

    def update(self, step: int, value: float = math.nan) -> bool:
        self._advance(step)
        self.over = self.over or step >= self.last
        return self.over


# -- what is charged ---------------------------------------------------------------------------


def split_steps(total: int, share: float) -> tuple[int, int]:
    """(public, private) steps: t = 0 .. T-1 is public while t < s T.

    Raises ValueError for total < 1 or a share outside [0, 1].
    """
    total = whole("total steps", total, least=1, fix="plan at least one step")
    if not 0 <= real("share", share, fix="use 0.1, say") <= 1:
        raise ValueError(f"the public share must be in [0, 1], found {share:g}: use 0.1, say")
    public = math.ceil(share * total - 1e-9 * total)  # 0.07 * 100 is a little more than 7
    return public, total - public


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """Public steps, and the plan of the private steps alone; None where there are none."""

    public_steps: int
    privacy: PrivacyPlan | None

    @property
    def private_steps(self) -> int:
        return 0 if self.privacy is None else self.privacy.steps

    @property
    def epsilon(self) -> float:
        """Of the whole training; 0 without a private phase."""
        return 0.0 if self.privacy is None else self.privacy.epsilon

    def charged(self) -> list[str]:
        """What is paid for and what is not, in sentences."""
        said = [f"{self.public_steps} public steps: not charged; the public set has no protection."]
        if self.privacy is None:
            return [*said, "No private step: epsilon is 0."]
        p = self.privacy
        return [
            *said,
            f"{p.steps} private steps at noise multiplier {p.noise_multiplier:.4g}, each sample "
            f"with probability {p.sampling_probability:.4g} = {p.expected_batch:g}/{p.n}: epsilon "
            f"{p.epsilon:.4g} at delta {p.delta:.3g}. {p.n} is the number of private samples.",
            "Not charged, so decide them by public data alone: the moment of the switch, learning "
            "rate, architecture, a new head.",
            "A private sample with a near-duplicate in the public set is not protected.",
        ]


def phase_plan(
    *,
    n_private: int,
    batch: float,
    steps: int,
    share: float | None = None,
    public_steps: int | None = None,
    **privacy: Any,
) -> PhasePlan:
    """T steps, the first `share` of them (or `public_steps`) public -> what the rest may do.

    The private phase is an ordinary plan: T - public steps at q = B / n_private. privacy: handed to
    `plan_privacy`: epsilon or noise_multiplier; delta, accountant, sampling. After an early switch,
    plan again with the `public_steps` taken: longer or shorter, the private phase stays in budget.
    Raises ValueError as `split_steps` and `plan_privacy`, and unless exactly one of `share` and
    `public_steps` is given.
    """
    if (share is None) == (public_steps is None):
        raise ValueError(f"give share or public_steps, one; found {share} and {public_steps}")
    if public_steps is None:
        assert share is not None
        public, private = split_steps(steps, share)
    else:
        public = whole("public_steps", public_steps, least=0, fix="use 0 for none")
        total = whole("steps", steps, least=max(1, public), fix="public steps are among them")
        private = total - public
    plan = plan_privacy(n=n_private, batch=batch, steps=max(1, private), **privacy)
    return PhasePlan(public_steps=public, privacy=plan if private else None)
