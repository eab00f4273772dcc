"""Hi-DLR: every group of parameters has a learning rate of its own, found from forward passes.

Xu, Bu, Zhang, Barnett, "A Hessian-informed hyperparameter optimization for differential learning
rate", arXiv 2501.06954, sections 2 and 3.

| symbol | here |
|---|---|
| K, eta_k | number of groups, learning rate of group k |
| delta_k | displacement of one real optimizer step in group k |
| b_k, a_k, A_kj | slope, curvature along delta_k, coupling (`steelyard.steps.parabolas`) |
| s_k, s_global | multiplier of group k, of the combined step |
| gamma, Phi | `smoothing`, `every` |

    one optimizer.step(), whose displacement in group k is delta_k, k = 1..K
    every Phi steps, on a fresh batch:
        L(w + c delta_k) for c in (-2, -1, 1, 2) and every k, and L0                  4K + 1
        s_k = clip(b_k / a_k), or 1 where the parabola is not to be believed
        full:     s = argmin of -b.s + s'As / 2 within the clip                       + K(K-1)/2
        rescale:  s_global = b / a along sum_k s_k delta_k                            + 2
        eta_k <- gamma eta_k + (1 - gamma) s_k s_global eta_k
    w <- w + sum_k (new eta_k / old eta_k) delta_k
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from steelyard.steps.displacements import Displacements
from steelyard.steps.gen import LEAST_FACTOR
from steelyard.steps.learning_rates import Rates, refuse_private, settle
from steelyard.steps.parabolas import Parabola, Parabolas, along, multipliers, refuse_drawing
from steelyard.steps.partition import Members, owners, partition, split
from steelyard.steps.private_probe import PrivateProbe
from steelyard.steps.probing import Evaluator, Probe, micro_batches, probe
from steelyard.steps.quadratic import Policy
from steelyard.steps.reach import WIDE

KIND = "hi-dlr"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One fit: what was measured of each group that moved, and what became of it.

    multipliers: of every group's learning rate by this fit, 1 where nothing changed. reactions:
    what was done where a parabola was not believed (`Reach`), in words. rescale:
    s_global, and 1 without. diagonal: sum_k s_k^2 a_k / (curvature along the combined step): 1
    where the groups are not coupled, down to 1/K where they are one; nan where not measured.
    """

    step: int
    parabolas: Mapping[str, Parabola]
    multipliers: Mapping[str, float]
    reactions: Mapping[str, str]
    rescale: float
    diagonal: float
    rates: Mapping[str, float]


class HiDLR:
    """Call `rate.step(losses)` in place of `optimizer.step()`.

    groups: name -> parameters, or (name, parameter) pairs as `by_role` and `by_pattern` return
    them; None: the optimizer's own. The optimizer's groups are split accordingly, in place, so make
    this before loading its state and before wrapping it. Learning rates start at the user's.

    every: Phi; None: max(8, 4 x groups in one fit). smoothing: gamma. full: fit the coupling too.
    rescale: None: where K > 2 and not full. at_once: more groups than that take turns. bootstrap:
    so many first fits, at every step, clipped to x0.1 .. x10 and not smoothed. decay: factor of all
    rates at step t, outside the smoothing, in place of a scheduler. shrink_after: see `Reach`.
    ridge: added to A's diagonal, in units of its mean. model, training, seed: as of `GeN`. Under
    `attach`: probes_are="public", or private=PrivateProbe(...), charged per fit, twice if rescale.

    Guarantees: the optimizer's state advances once a step; a fit leaves the parameters as the step
    would have with the rates it decided. With K = 1 the fit is GeN's of five points. Exact for
    steps that are proportional to the learning rate given the optimizer's state: SGD, the Adam
    family, Muon. `log` has the decisions.

    | case | behaviour |
    |---|---|
    | a <= 0, b <= 0, no parabola, nan | the group keeps its rate, but for `Reach`: |
    | bootstrap, the loss rises on both sides of a group | its step is taken back, its rate / 10 |
    | b <= 0, `shrink_after` times in a row | its rate / 2 |
    | a group that did not move: frozen, no gradient, rate 0 | left out, nothing evaluated |
    | full, A not positive definite | as without full |
    | decay(t) < 1/100 | no fit |
    | behind DiSK | the step taken keeps its length, only the rates change (see `settle`) |

    Raises ValueError for groups that do not fit the optimizer, a learning-rate scheduler, somebody
    else's change of a learning rate, a private optimizer without a word on the probes.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        groups: Members | None = None,
        *,
        model: nn.Module | None = None,
        every: int | None = None,
        smoothing: float = 0.9,
        full: bool = False,
        rescale: bool | None = None,
        at_once: int = 8,
        bootstrap: int = 20,
        decay: Callable[[int], float] | None = None,
        policy: Policy | None = None,
        shrink_after: int = 3,
        ridge: float = 0.0,
        training: str = "eval",
        probes_are: str | None = None,
        private: PrivateProbe | None = None,
        seed: int = 0,
    ):
        if at_once < 1 or (every is not None and every < 1) or bootstrap < 0:
            raise ValueError(
                "every and at_once are at least 1, bootstrap at least 0; found "
                f"{every}, {at_once}, {bootstrap}"
            )
        if not 0 <= smoothing < 1 or ridge < 0:
            raise ValueError(f"smoothing is in [0, 1), ridge >= 0; found {smoothing}, {ridge}")
        if probes_are not in (None, "public") or (probes_are and private):
            raise ValueError(
                f'probes_are is "public" or left out, found {probes_are!r}; not beside private='
            )
        self._public, self._private = probes_are == "public", private
        self._optimizer, self._model = optimizer, model
        self._refuse_unpaid()
        self._groups = partition(optimizer, groups)
        split(optimizer, self._groups)
        self._rates = Rates(optimizer, decay)
        self._owners = owners(optimizer, self._groups)
        self._names = list(self._groups)
        self._at_once = min(at_once, len(self._names))
        self._every = max(8, 4 * self._at_once) if every is None else every
        self._smoothing, self._full, self._ridge = smoothing, full, ridge
        self._rescale = len(self._names) > 2 and not full if rescale is None else rescale
        self._decay, self._bootstrap = decay, bootstrap
        self._training, self._seed = training, seed
        self._parabolas = Parabolas(
            self._names, Policy() if policy is None else policy, shrink_after=shrink_after
        )
        self._steps = self._fits = self._next = 0
        self.log: list[Decision] = []
        self.forwards = 0

    @property
    def rates(self) -> dict[str, float]:
        """eta_k of every group, without the decay factor; its first, if it has several."""
        found = dict(zip(reversed(self._owners), reversed(self._rates.values), strict=True))
        return {name: found[name] for name in self._names}

    @property
    def due(self) -> bool:
        """Whether the next step makes a fit, and so needs a probe batch."""
        return self._fits < self._bootstrap or (self._steps + 1) % self._every == 0

    def step(
        self, losses: Probe | None = None, *, step: Callable[[], Any] | None = None
    ) -> Decision | None:
        """One optimizer step and, if one is due, one fit; returns what was decided.

        losses: a function without arguments that computes the losses of a FRESH batch, [B] one per
        sample, a mean [], or (sum, count); or a list of them, one for each micro-batch. Draw the
        batch outside of it; it may be left out while nothing is `due`. step: called in place of
        optimizer.step.
        """
        self._refuse_unpaid()
        self._rates.check()
        factor, due = self._rates.factor, self.due
        if due and losses is None:
            raise ValueError("a fit is due: give step() the losses of a fresh batch (see `due`)")
        if not due or factor < LEAST_FACTOR or losses is None:
            (self._optimizer.step if step is None else step)()
            self._count()
            return None
        if self._private is not None:
            for _ in range(1 + self._rescale):
                self._private.charge()  # first: a budget without room for it stops before the step
        moved = Displacements.from_step(self._optimizer, self._groups, step=step)
        self._count()
        self._fits += 1
        evaluator = Evaluator(
            self._model, micro_batches(losses), training=self._training,
            seed=self._seed + self._fits, per_sample=True,
        )  # fmt: skip
        try:
            return self._fit(moved, evaluator, factor)
        finally:
            self.forwards += evaluator.forwards

    def _fit(self, moved: Displacements, evaluator: Evaluator, factor: float) -> Decision:
        """The algorithm, in units of eta; the step that was taken is factor x eta."""
        booting = self._fits <= self._bootstrap
        clip, gamma = (WIDE, 0.0) if booting else (self._parabolas.policy.clip, self._smoothing)
        look = probe if self._private is None else self._private.probe
        if self._fits == 1 and self._private is None:
            refuse_drawing(evaluator)
        measured = self._parabolas.measure(
            moved, evaluator, self._turn(), pairs=self._full, unit=1 / factor, look=look
        )
        s, found = multipliers(measured, self._names, clip, self._ridge), measured.parabolas
        grown, reactions = np.ones(len(s)), dict[str, str]()  # grown: in place of s if not believed
        believed = np.array([name in found and found[name].accepted for name in self._names])
        for k in np.flatnonzero([name in found for name in self._names] & ~believed):
            one, reach = found[self._names[k]], self._parabolas.reaches[self._names[k]]
            reaction = reach.rejected(one.fitted.points, one.fitted, booting=booting)
            grown[k], reactions[self._names[k]] = reaction.multiple, reaction.words
            s[k] = 1.0 if reaction.move is None else reaction.move
        s_global, diagonal = 1.0, math.nan
        if self._rescale and believed.any():
            policy, start = self._parabolas.policy, measured.start
            one = along(moved, evaluator, s / factor, policy, start=start, look=look)
            if len(found) == sum(moved.moving) and one.curvature > 0:
                alone = [s[self._names.index(n)] ** 2 * p.curvature for n, p in found.items()]
                diagonal = sum(alone) / one.curvature
            if one.accepted:  # K groups that are one and the same need 1/K
                s_global = float(np.clip(one.multiplier, clip[0] / len(s), clip[1]))
        common = np.where(moved.moving, gamma + (1 - gamma) * s_global, 1.0)  # [K]
        change = np.where(believed, gamma + (1 - gamma) * s * s_global, grown * common)
        x = np.where(believed, change, s * common)
        for k in np.flatnonzero(believed):
            self._parabolas.reaches[self._names[k]].accepted(float(change[k]))
        settle(self._optimizer, moved, x.tolist())
        changes = dict(zip(self._names, change.tolist(), strict=True))
        each = [changes.get(name or "", 1.0) for name in self._owners]  # None: all frozen
        self._rates.restore(np.multiply(self._rates.values, each).tolist(), self._steps)
        self.log.append(
            Decision(
                step=self._steps, parabolas=found, multipliers=changes,
                reactions=reactions, rescale=s_global, diagonal=diagonal, rates=self.rates,
            )
        )  # fmt: skip
        return self.log[-1]

    def _count(self) -> None:
        self._steps += 1
        self._rates.at(self._steps)

    def _turn(self) -> list[str]:
        """The next `at_once` groups, round robin."""
        K = len(self._names)
        names = [self._names[(self._next + i) % K] for i in range(self._at_once)]
        self._next = (self._next + self._at_once) % K
        return names

    def _refuse_unpaid(self) -> None:
        if not self._public and self._private is None:
            refuse_private(self._optimizer)

    def state_dict(self) -> dict[str, Any]:
        """For a bit-exact resume; without the log. Private where the probes are private."""
        return {
            "kind": KIND,
            "groups": list(self._names),
            "rates": list(self._rates.values),
            "reaches": {n: [r.radius, r.uphill] for n, r in self._parabolas.reaches.items()},
            "counts": [self._steps, self._fits, self._next],
            "private": None if self._private is None else self._private.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved, after the optimizer's own. Raises ValueError for a state
        that is not of such a Hi-DLR."""
        own = self.state_dict()
        if state.keys() != own.keys() or state["kind"] != KIND:
            raise ValueError(f"not a saved Hi-DLR: found {sorted(state)}, expected {sorted(own)}")
        if state["groups"] != self._names or len(state["rates"]) != len(self._rates.values):
            raise ValueError(
                f"the saved Hi-DLR has the groups {', '.join(state['groups'])}; this one has "
                f"{', '.join(self._names)}: make them alike"
            )
        if (state["private"] is None) != (self._private is None):
            raise ValueError("the saved Hi-DLR and this one differ in private=: make them alike")
        if self._private is not None:
            self._private.load_state_dict(state["private"])
        self._steps, self._fits, self._next = (int(count) for count in state["counts"])
        for name, (radius, uphill) in state["reaches"].items():
            reach = self._parabolas.reaches[name]
            reach.radius, reach.uphill = float(radius), int(uphill)
        self._rates = Rates(self._optimizer, self._decay)  # loading made new groups
        self._rates.restore(state["rates"], self._steps)
