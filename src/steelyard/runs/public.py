"""The public samples of a run in its steps: batches of them, and the phase before the private one.

Everything here reads public samples only, so nothing of it is charged.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.generators import fresh_root, generator
from steelyard.plans.pretraining import EarlyStopping, Flattened
from steelyard.plans.privacy import PrivacyPlan
from steelyard.runs.config import TrainConfig
from steelyard.runs.problem import Problem
from steelyard.steps.curvature import measure
from steelyard.weightings.clip import parse_clip

HELD_BACK = 0.1  # of the public samples, to see when the public phase should end
HELD_MOST = 512  # of them are looked at
CHECKS = 20  # of that question in a whole public phase


class PublicBatches:
    """Batches of `size` public samples, every sample once per pass, in a new order each time.

    A tenth may be held back (`held`), to judge the public phase by. The position is the state.
    """

    def __init__(self, n: int, size: int, *, seed: int, hold_back: bool = False):
        order = torch.randperm(n, generator=generator(fresh_root(seed), "public hold-out"))
        count = math.ceil(n * HELD_BACK) if hold_back and n > 1 else 0
        self.held, self._samples = order[:count], order[count:]
        self.size, self._seed, self.drawn = min(size, len(self._samples)), seed, 0

    def draw(self) -> Tensor:
        """The indices of the next batch, int64 [size]."""
        per_pass = len(self._samples) // self.size
        turn, position = divmod(self.drawn, per_pass)
        order = torch.randperm(
            len(self._samples), generator=generator(fresh_root(self._seed), f"public pass {turn}")
        )
        self.drawn += 1
        return self._samples[order[position * self.size : (position + 1) * self.size]]

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


class PublicPhase:
    """The steps before the private ones: how many, on which batches, and whether they end early.

    `stop` "validation" watches the loss of held-back public samples, "curvature" the decelerator
    that the noise would bring (arXiv 2402.18752, equation 8) measured on them; "share" nothing.
    """

    def __init__(self, problem: Problem, config: TrainConfig, plan: PrivacyPlan | None, steps: int):
        self.steps, self._problem, self._plan, self._config = steps, problem, plan, config
        self._rule = {"validation": EarlyStopping, "curvature": Flattened}.get(config.public_stop)
        self._rule = None if self._rule is None else self._rule()
        self._every = max(1, steps // CHECKS)
        self.batches = PublicBatches(
            problem.n_public,
            config.public_batch,
            seed=config.seed,
            hold_back=self._rule is not None and steps > 0,
        )

    def over(self, step: int, model: nn.Module) -> bool:
        """Whether the private phase begins before step `step`. Ends `steps` here when a rule says
        so."""
        due = 0 < step < self.steps and step % self._every == 0
        if self._rule is not None and due and self._rule.update(step, self._value(model)):
            self.steps = step
        return step >= self.steps

    def _value(self, model: nn.Module) -> float:
        x, y = self._problem.public_batch(self.batches.held[:HELD_MOST])
        if isinstance(self._rule, EarlyStopping):
            training = model.training
            model.eval()
            with torch.no_grad():
                loss = float(self._problem.losses(model, x, y).mean())
            model.train(training)
            return loss
        plan = self._plan
        sigma = 1.0 if plan is None else plan.noise_multiplier
        found = measure(
            model,
            lambda other, *batch: self._problem.losses(other, *batch),
            x,
            y,
            weighting=parse_clip(self._config.clip),
            seed=self._config.seed,
        )
        return found.decelerator(float(self._config.batch), sigma)

    def state_dict(self) -> dict[str, Any]:
        rule = None if self._rule is None else self._rule.state_dict()
        return {"steps": self.steps, "batches": self.batches.state_dict(), "rule": rule}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.batches.load_state_dict(state["batches"])
        if self._rule is not None:
            self._rule.load_state_dict(state["rule"])
