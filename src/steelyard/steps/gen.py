"""GeN: the learning rate of any optimizer, from a parabola along its own step.

Bu, Xu, "Gradient descent with generalized Newton's method", ICLR 2025, arXiv 2407.02772. Not taken
from the authors' code: its second optimizer step and the restoring by arithmetic.

| symbol | here |
|---|---|
| eta | `rates`, one for each parameter group; their ratios are kept |
| Phi | `every`: a fit every Phi steps |
| gamma | `smoothing` |
| f_t | `decay(t)`: the rate applied is eta f_t; outside of the smoothing |
| delta | displacement of ONE real optimizer step, at eta f_t |
| c, h | `probes`, and the radius by which they are stretched |
| a, b | L(w + c delta / f_t) - L(w) = a c^2 / 2 - b c, on a fresh batch |
| s | the best multiple of eta, clipped |

    delta      copy w, optimizer.step()
    a, b       losses at w + (c h / f_t) delta, least squares                      no backward pass
    accept     a > 0, b > 0, finite, above the noise, R^2
    s          clip(b / a),   multiple = gamma + (1 - gamma) s,   bootstrap: multiple = s
    eta, w     eta <- multiple eta,   w <- w + multiple delta
    reject     see `reach`: eta stays; halved after `shrink_after` in a row with b <= 0

Exact for updates that are linear in the learning rate: SGD, momentum, the Adam family, Muon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from steelyard.steps.displacements import Displacements
from steelyard.steps.learning_rates import Rates, refuse_private, settle
from steelyard.steps.private_probe import PrivateProbe
from steelyard.steps.probing import TRAINING, Evaluator, Probe, micro_batches, probe
from steelyard.steps.quadratic import Points, Policy, Quadratic, fit
from steelyard.steps.reach import WIDE, Reach

KIND = "gen"
LEAST_FACTOR = 0.01  # below it the step is too short to be stretched to the size of eta


@dataclass(frozen=True)
class Decision:
    """One fit, or why there was none. slope, curvature: b and a in units of eta (nan without a
    fit); multiple: by which the rates were multiplied; lr: the first group's after it; fitted: the
    parabola with its points."""

    step: int
    lr: float
    slope: float
    curvature: float
    r2: float
    multiple: float
    accepted: bool
    reason: str
    fitted: Quadratic | None = field(default=None, repr=False, compare=False)


class GeN:
    """`rate.step(losses)` takes the place of `optimizer.step()`.

    optimizer: its learning rates are the start, and GeN's from then on (no schedulers: use decay).
    model: whose modes and buffers are kept while probing; None where there are none. clip: of one
    multiple; None: the policy's. bootstrap: so many first fits, one at every step, with clip
    1/10..10 and without smoothing: for a first rate that is off by orders of magnitude. rescale:
    let the step taken have the new rate too (behind DiSK: never, see `settle`). training, seed: as
    of `Evaluator`. Under `attach`: probes_are="public", or private=PrivateProbe(...).

    | case | behaviour |
    |---|---|
    | no fit due | the optimizer's step |
    | all learning rates 0, f_t < 1/100, a step that moves nothing | no fit; logged |
    | rejected | rate and step stay; logged with the reason |
    | curvature below the noise | the next probes reach farther, up to 10^4 steps |
    | bootstrap, rejected, the loss rises on both sides | step taken back, rates / 10 |
    | a loss raises | parameters are where the optimizer's step left them, rates unchanged |

    Guarantees: one optimizer step per step; probing leaves no trace (`probe`). Raises ValueError
    for an optimizer whose step is not proportional to its learning rate, for a private one without
    a word on its probes, and when something else has set a learning rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module | None = None,
        every: int = 8,
        smoothing: float = 0.9,
        clip: tuple[float, float] | None = None,
        probes: tuple[float, ...] = (-2, -1, 1, 2),
        bootstrap: int = 20,
        decay: Callable[[int], float] | None = None,
        policy: Policy | None = None,
        shrink_after: int = 3,
        rescale: bool = True,
        training: str = "eval",
        probes_are: str | None = None,
        private: PrivateProbe | None = None,
        seed: int = 0,
    ):
        policy = Policy() if policy is None else policy
        self.clip = policy.clip if clip is None else Policy(clip=clip).clip
        if every < 1 or shrink_after < 1 or bootstrap < 0 or not 0 <= smoothing < 1:
            raise ValueError(
                "every and shrink_after are at least 1, bootstrap at least 0, smoothing in [0, 1); "
                f"found {every}, {shrink_after}, {bootstrap}, {smoothing}"
            )
        if training not in TRAINING:
            raise ValueError(f"unknown training {training!r}: choose one of {', '.join(TRAINING)}")
        if 0 in probes or len(set(probes)) < 2:
            raise ValueError(f"probes are two different numbers or more, none 0; found {probes}")
        if probes_are not in (None, "public") or (probes_are and private):
            raise ValueError(
                f'probes_are is "public" or left out, found {probes_are!r}; not beside private='
            )
        self._optimizer, self._model, self._policy = optimizer, model, policy
        self._every, self._smoothing, self._bootstrap = every, smoothing, bootstrap
        self._probes = np.array(probes, np.float64)[:, None]
        self._rescale = rescale
        self._training, self._seed = training, seed
        self._public, self._private = probes_are == "public", private
        self._rates = Rates(optimizer, decay)
        self.log: list[Decision] = []
        self.forwards = 0
        self._steps = self._fits = 0
        self._reach = Reach(shrink_after, policy.least_snr)
        self._refuse_unpaid()

    @property
    def rates(self) -> list[float]:
        """eta of each parameter group, without the decay factor."""
        return self._rates.values

    @property
    def due(self) -> bool:
        """Whether the next step makes a fit, and so needs a probe batch."""
        return self._fits < self._bootstrap or (self._steps + 1) % self._every == 0

    def step(
        self,
        losses: Probe | None = None,
        *,
        step: Callable[[], Any] | None = None,
        start: float | None = None,
    ) -> Decision | None:
        """One optimizer step and, if one is due, one fit; returns what was decided.

        losses: a function without arguments that computes the losses of a FRESH batch, [B] one per
        sample, a mean [], or (sum, count); or a list of them, one for each micro-batch. Draw the
        batch outside of it; it may be left out while nothing is `due`. step: called in place of
        optimizer.step. start: their mean at the parameters before the step, where already known.
        """
        self._refuse_unpaid()
        self._rates.check()
        factor, due = self._rates.factor, self.due
        if due and losses is None:
            raise ValueError("a fit is due: give step() the losses of a fresh batch (see `due`)")
        unfit = due and self._unfit(factor)
        if not due or unfit:
            (self._optimizer.step if step is None else step)()
            self._count()
            return self._note(None, 1.0, False, unfit) if unfit else None
        assert losses is not None
        if self._private is not None:
            self._private.charge()  # first: a budget without room for it stops before the step
        moved = Displacements.from_step(self._optimizer, step=step)
        self._count()
        if not moved.moving[0]:
            return self._note(
                None, 1.0, False, "the step moves nothing: gradient or rate too small"
            )
        found = self._look(moved, losses, self._probes * self._reach.radius / factor, start)
        self._fits += 1
        return self._decide(moved, replace(found, x=found.x * factor))  # in units of eta

    def _count(self) -> None:
        self._steps += 1
        self._rates.at(self._steps)

    def _refuse_unpaid(self) -> None:
        if not self._public and self._private is None:
            refuse_private(self._optimizer)

    def _look(
        self, moved: Displacements, losses: Probe, X: np.ndarray, start: float | None
    ) -> Points:
        evaluator = Evaluator(
            self._model, micro_batches(losses), training=self._training,
            seed=self._seed + self._fits, per_sample=True,
        )  # fmt: skip
        try:
            if self._private is not None:
                return self._private.probe(moved, evaluator, X)
            first = self._fits == 0
            found = probe(moved, evaluator, X, repeats=int(first), start=start)
        finally:
            self.forwards += evaluator.forwards
        one, again = float(found.y[0, 0]), float(found.y[-1, 0])
        if first and abs(one - again) > 1e-4 * abs(one):
            raise ValueError(
                f"two probes at the same parameters gave {one:.6g} and {again:.6g}: draw the batch "
                "outside of the losses function, so that all probes see the same one"
            )
        return found

    def _decide(self, moved: Displacements, found: Points) -> Decision:
        q, booting = fit(found, "scalar"), self._fits <= self._bootstrap
        verdict = self._policy.judge(q)[0]
        if verdict.accepted:
            lower, upper = WIDE if booting else self.clip
            s = min(max(float(q.multiplier()[0, 0]), lower), upper)
            multiple = s if booting else self._smoothing + (1 - self._smoothing) * s
            self._reach.accepted(multiple)
            move, reason = multiple, ""
        else:
            multiple, move, words = self._reach.rejected(found, q, booting=booting)
            reason = "; ".join(filter(None, (verdict.reason, words)))
        if move is not None:
            settle(self._optimizer, moved, [move], rescale=self._rescale)
        return self._note(q, multiple, verdict.accepted, reason)

    def _unfit(self, factor: float) -> str:
        """Why no fit can be made at this step; "" if one can."""
        if not any(self.rates) or factor == 0:
            return "the learning rate is 0"
        return f"the decay factor {factor:.3g} is too small" if factor < LEAST_FACTOR else ""

    def _note(self, q: Quadratic | None, multiple: float, accepted: bool, reason: str) -> Decision:
        self._rates.multiply(multiple)
        b, a, r2 = (math.nan,) * 3 if q is None else (q.b[0, 0], q.a[0, 0], q.r2[0])
        self.log.append(
            Decision(
                self._steps,
                self.rates[0],
                float(b),
                float(a),
                float(r2),
                multiple,
                accepted,
                reason,
                q,
            )
        )
        return self.log[-1]

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """For a bit-exact resume; without the log. Private where the probes are private."""
        return {
            "kind": KIND,
            "rates": list(self.rates),
            "steps": self._steps,
            "fits": self._fits,
            "uphill": self._reach.uphill,
            "radius": self._reach.radius,
            "private": None if self._private is None else self._private.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved, after the optimizer's own. Raises ValueError for a state
        that is not of such a GeN."""
        own = self.state_dict()
        if state.keys() != own.keys() or state["kind"] != KIND:
            raise ValueError(f"not a saved GeN: found {sorted(state)}, expected {sorted(own)}")
        if len(state["rates"]) != len(self.rates) or (state["private"] is None) != (
            self._private is None
        ):
            raise ValueError(
                f"the saved GeN has {len(state['rates'])} parameter groups and "
                f"{'no ' if state['private'] is None else ''}private probes: make this one alike"
            )
        if self._private is not None:
            self._private.load_state_dict(state["private"])
        self._steps, self._fits = int(state["steps"]), int(state["fits"])
        self._reach.uphill, self._reach.radius = int(state["uphill"]), float(state["radius"])
        self._rates.restore(state["rates"], self._steps)
