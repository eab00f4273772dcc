"""The privacy ledger of a run: what was released, what it cost, and when to stop.

    charge(sigma, q) before every step:  epsilon(history + this step) <= target, else BudgetExceeded

The history is kept as runs of equal steps and evaluated by `steelyard.plans.accounting`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from steelyard.plans.accounting import Event, spent_epsilon, steps_per_pass
from steelyard.plans.privacy import PrivacyPlan

Key = tuple[float, float]  # (noise multiplier, sampling probability)
NOISES = {
    "gaussian": "The noise comes from a floating-point Gaussian generator; attacks on "
    "floating-point rounding are not protected against.",
    "grid": "The noise is an exact discrete Gaussian on a grid; that rounding inside the sums "
    "stays below the part of the sensitivity kept free for it is measured, not proven.",
}


class BudgetExceeded(RuntimeError):  # noqa: N818 - it is what happened, not a fault
    """The next step would spend more than the target epsilon."""


class Ledger:
    """History of private releases, charged one step at a time, before the step.

    Guarantees: `epsilon()` is an upper bound for everything charged; with a target, no charge
    takes it past the target; a refused charge changes nothing. Charging costs O(1): as many
    steps as fit are reserved by one evaluation (the whole plan at its own sigma and q; beyond
    it or at other values, blocks that double, and shrink to one step near the budget).
    Plans without a target have no limit. sigma = 0 spends inf, so a target refuses it.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self.plan = plan
        self.noise = "gaussian"  # or another of NOISES: what the report says of it
        self.noise_seeded_by_user = False
        self._history: list[tuple[Key, int]] = []  # run-length encoded, in order
        self._reserved: dict[Key, int] = {}  # further steps already known to fit
        self._granted: dict[Key, int] = {}  # size of the last block reserved
        self._public: list[str] = []
        self._unprotected: list[str] = []
        self._assumed: list[str] = []

    @property
    def steps(self) -> int:
        """Steps charged so far."""
        return sum(count for _, count in self._history)

    def epsilon(self) -> float:
        """Epsilon spent so far at the plan's delta; 0 before the first step. Cached."""
        return self._spent({})

    def charge(self, *, noise_multiplier: float, sampling_probability: float) -> None:
        """Record one step about to be taken; call it before the noise is drawn.

        Raises: BudgetExceeded if the step would pass the target epsilon; ValueError for a
        malformed sigma or q. The ledger is then unchanged.
        """
        key = (float(noise_multiplier), float(sampling_probability))
        last = self._history[-1][0] if self._history else None
        if key != last:
            self._event(key, 1)  # refuses malformed values
            if self.plan.sampling == "unamplified":
                self._reserved = {}  # there a change of key costs by itself
        if self.plan.target_epsilon is not None:
            if not self._reserved.get(key):
                self._reserve(key, self.plan.target_epsilon)
            self._reserved[key] -= 1
        if key == last:
            self._history[-1] = (key, self._history[-1][1] + 1)
        else:
            self._history.append((key, 1))

    def _reserve(self, key: Key, target: float) -> None:
        """Find a block of steps at `key` that fits the budget, or raise BudgetExceeded."""
        planned = key == (self.plan.noise_multiplier, self.plan.sampling_probability)
        first = max(1, self.plan.steps - self.steps) if planned else 1
        further = {**self._reserved, key: 2 * self._granted[key] if key in self._granted else first}
        while (spent := self._spent(further)) > target and further != {key: 1}:
            half = {k: count // 2 for k, count in further.items() if count > 1}
            further = {**half, key: half.get(key, 1)}
        if spent <= target:
            self._reserved, self._granted[key] = further, further[key]
            return
        raise BudgetExceeded(
            f"step {self.steps + 1} would spend epsilon {spent:.4f}, past the budget of "
            f"{target:g} at delta {self.plan.delta:g}: stop here, or plan more epsilon or noise"
        )

    def _spent(self, further: Mapping[Key, int]) -> float:
        history = list(self._history)
        for key, count in further.items():
            if not count:
                continue
            if history and history[-1][0] == key:
                history[-1] = (key, history[-1][1] + count)
            else:
                history.append((key, count))
        events = [self._event(key, count) for key, count in history]
        return spent_epsilon(events, self.plan.delta, self.plan.accountant)

    def _event(self, key: Key, steps: int) -> Event:
        return Event(
            noise_multiplier=key[0],
            sampling_probability=key[1],
            steps=steps,
            sampling=self.plan.sampling,
        )

    def note_public(self, what: str) -> None:
        """Say in the report that `what` was computed from public data."""
        if what not in self._public:
            self._public.append(what)

    def note_unprotected(self, what: str) -> None:
        """Say in the report that `what` of the private data was shown without noise."""
        if what not in self._unprotected:
            self._unprotected.append(what)

    def note_assumption(self, what: str) -> None:
        """Say in the report that the guarantee rests on `what` too; not part of the state."""
        if what not in self._assumed:
            self._assumed.append(what)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, JSON-able; the round trip is exact."""
        return {
            "n": self.plan.n,
            "delta": self.plan.delta,
            "sampling": self.plan.sampling,
            "history": [[*key, count] for key, count in self._history],
            "public": list(self._public),
            "unprotected": list(self._unprotected),
            "noise": self.noise,
            "noise_seeded_by_user": self.noise_seeded_by_user,
        }

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Replace this ledger's history by a saved one.

        Raises: ValueError if `d` is malformed, or belongs to another n, delta or sampling (its
        history would mean something else); the ledger is then unchanged. Other plans for the
        same data may continue it, with another sigma, batch, length or target.
        """
        if not isinstance(d, Mapping):
            raise ValueError(f"a saved privacy ledger is a JSON object, found {type(d).__name__}")
        if wrong := self.state_dict().keys() ^ d.keys():
            raise ValueError(f"not a saved privacy ledger: missing or unknown {sorted(wrong)}")
        for name in ("n", "delta", "sampling"):
            if d[name] != (own := getattr(self.plan, name)):
                raise ValueError(
                    f"the saved privacy ledger has {name} {d[name]}, this run {own}: "
                    f"resume with the same {name}, or start a new run"
                )
        history = [_entry(entry) for entry in _as_list("history", d["history"])]
        for key, count in history:
            self._event(key, count)
        notes = {name: _as_list(name, d[name]) for name in ("public", "unprotected")}
        if any(not isinstance(what, str) for words in notes.values() for what in words):
            raise ValueError("not a saved privacy ledger: its notes must be strings")
        if (noise := d["noise"]) not in NOISES:
            raise ValueError(f"not a saved privacy ledger: unknown noise {noise!r}")
        if not isinstance(seeded := d["noise_seeded_by_user"], bool):
            raise ValueError(f"not a saved privacy ledger: noise_seeded_by_user is {seeded!r}")
        self._history, self._reserved, self._granted = history, {}, {}
        self._public, self._unprotected = notes["public"], notes["unprotected"]
        self.noise, self.noise_seeded_by_user = noise, seeded

    def report(self) -> dict[str, Any]:
        """The guarantee as one JSON-able record, with its assumptions in plain sentences.

        `q` and `sigma` are the run's least private values (the plan's before the first step);
        an infinite epsilon is None.
        """
        plan, keys = self.plan, [key for key, _ in self._history]
        spent = self.epsilon()
        return {
            "neighbouring_relation": "add or remove one sample",
            "sampling": plan.sampling,
            "q": max((q for _, q in keys), default=plan.sampling_probability),
            "sigma": min((sigma for sigma, _ in keys), default=plan.noise_multiplier),
            "steps": self.steps,
            "epsilon": spent if math.isfinite(spent) else None,
            "delta": plan.delta,
            "accountant": plan.accountant,
            "target": plan.target_epsilon,
            "n": plan.n,
            "expected_batch": plan.expected_batch,
            "history": [
                {"noise_multiplier": key[0], "sampling_probability": key[1], "steps": count}
                for key, count in self._history
            ],
            "public": list(self._public),
            "unprotected": list(self._unprotected),
            "noise": self.noise,
            "noise_seeded_by_user": self.noise_seeded_by_user,
            "assumptions": self._assumptions(spent),
        }

    def _assumptions(self, spent: float) -> list[str]:
        plan, q = self.plan, self.plan.sampling_probability
        drawn = {
            "poisson": f"Every sample joins every step independently with probability {q:.6g} "
            "(Poisson sampling).",
            "unamplified": "A fixed order visits every sample at most once in "
            f"{steps_per_pass(q)} steps, the last smaller batch included; no privacy is "
            "credited to sampling.",
        }
        said = [
            "Two data sets are neighbours if one has exactly one sample more than the other.",
            drawn[plan.sampling],
            f"Sums are divided by the expected batch of {plan.expected_batch:g} samples, a "
            "constant, whatever the size of the batch drawn.",
            f"The number of samples ({plan.n}), of steps, and all hyper-parameters are public, and "
            "noise, batch and budget were not chosen by looking at this run's results.",
            "Only this run is counted: runs made to choose hyper-parameters on the same data "
            "are not charged.",
            NOISES[self.noise],
            *self._assumed,
        ]
        if spent == math.inf:
            said.append("At least one step had no noise: there is no privacy guarantee.")
        if len({key for key, _ in self._history}) > 1:
            said.append("Noise or sampling changed during the run; the history lists each part.")
        if self._unprotected:
            said.append("What is listed as unprotected was shown without noise: not covered.")
        if self.noise_seeded_by_user:
            said.append(
                "The user chose the seed of the noise: the guarantee holds only against those "
                "who do not know it."
            )
        return said


def _as_list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"not a saved privacy ledger: its {name} must be a list, found {value!r}")
    return list(value)


def _entry(entry: object) -> tuple[Key, int]:
    if not isinstance(entry, list) or len(entry) != 3:
        raise ValueError(f"not a saved privacy ledger: malformed history entry {entry!r}")
    sigma, q, count = entry
    return (sigma, q), count
