"""An audit: train with planted canaries, guess which were in, bound epsilon from below.

    coins -> plan for all n samples -> the private training loop -> scores -> guesses -> bound

The training is made of the public pieces, as in anybody's loop: `PerSample`, a clipping rule,
`Gaussian`, `attach`, `PoissonSampler`, `Ledger`. What is planted: `canaries`. Method and symbols:
`lower_bound`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from steelyard import (
    Clipped,
    Gaussian,
    Ledger,
    Noised,
    PerSample,
    PoissonSampler,
    PrivacyPlan,
    attach,
    microbatches,
    plan_privacy,
)
from steelyard.bench.canaries import Canaries, InputCanaries
from steelyard.bench.gradient import GradientCanaries, evidence
from steelyard.bench.lower_bound import ceiling, guess, lower_bound
from steelyard.bench.records import AuditConfig, AuditResult, together
from steelyard.data import Table
from steelyard.runs.config import parse_groups
from steelyard.runs.problem import make_problem
from steelyard.types import Mechanism, RowWeighting
from steelyard.weightings.clip import parse_clip

__all__ = ["AuditConfig", "AuditResult", "Understated", "audit", "together"]

MICRO_BATCH = 512
MOMENTUM = 0.9
SIMULATIONS = 9


class Understated:
    """For testing audits only: claims `noise_multiplier`, adds `factor` times that noise."""

    def __init__(self, noise_multiplier: float, factor: float, *, seed: int | None = None):
        self.noise_multiplier = noise_multiplier
        self._true = Gaussian(noise_multiplier * factor, seed=seed)
        self.seeded = self._true.seeded

    def privatise(self, gradient: Clipped) -> Noised:
        released = self._true.privatise(gradient)
        return Noised(released.tensors, released.sensitivity, self.noise_multiplier)

    def state_dict(self) -> dict[str, Any]:
        return self._true.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._true.load_state_dict(state)


def audit(
    config: AuditConfig,
    *,
    table: Table | None = None,
    weighting: RowWeighting | None = None,
    mechanism: Callable[[float], Mechanism] | None = None,
    on_step: Callable[[int], None] = lambda done: None,
) -> AuditResult:
    """Train once with canaries and bound epsilon from below.

    table: data in the place of `config.data`. weighting: a clipping rule in the place of
    `config.clip`. mechanism: from the planned sigma to what is attached, in the place of Gaussian
    noise. on_step: called after every step with the number of steps done.

    Guarantees: if the training is (epsilon, delta)-private at the configuration's delta, then
    P[bound > epsilon] <= 1 - confidence, whatever the model, the data and the canaries. The
    converse does not hold: a small bound proves nothing.
    Raises ValueError with one line for settings that do not fit the data or the model.
    """
    began = time.perf_counter()
    problem = make_problem(config.training(), table)
    rule = parse_clip(config.clip) if weighting is None else weighting
    if math.isinf(rule.bound):
        raise ValueError(f"clipping {config.clip!r} bounds nothing: give a bound, as in flat:1")
    planted = (problem, config.m, config.ordinary, config.seed)
    canaries = (
        GradientCanaries(*planted, weighting=rule, groups=parse_groups(config.groups))
        if config.mode == "gradient"
        else InputCanaries(*planted)
    )
    plan = plan_privacy(
        n=canaries.ordinary + config.m,
        batch=config.batch,
        steps=config.steps,
        epsilon=config.epsilon,
        delta=config.delta,
        accountant=config.accountant,
    )
    if mechanism is not None:
        noise = mechanism(plan.noise_multiplier)
    elif config.break_noise != 1.0:
        noise = Understated(plan.noise_multiplier, config.break_noise, seed=config.seed)
    else:
        noise = Gaussian(plan.noise_multiplier, seed=config.seed)
    ledger = Ledger(plan)
    _train(config, canaries, rule, noise, ledger, on_step)

    unit = rule.bound / plan.expected_batch
    scores = canaries.scores(unit=unit, q=plan.sampling_probability)
    counts = guess(scores, canaries.included.numpy())
    expected = None
    if isinstance(canaries, GradientCanaries):
        expected = expected_bound(config, plan, canaries.signal)
    return AuditResult(
        config=config,
        n=plan.n,
        noise_multiplier=plan.noise_multiplier,
        claimed_epsilon=ledger.epsilon(),
        counts=counts,
        bound=lower_bound(counts, **config.looked()),
        ceiling=ceiling(**config.looked()),
        expected=expected,
        test=problem.evaluate(problem.model, batch=MICRO_BATCH),
        seconds=time.perf_counter() - began,
    )


def _train(
    config: AuditConfig,
    canaries: Canaries,
    rule: RowWeighting,
    noise: Mechanism,
    ledger: Ledger,
    on_step: Callable[[int], None],
) -> None:
    """The private loop; the only addition is that excluded canaries leave the drawn batch."""
    plan, model = ledger.plan, canaries.model
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=config.lr, momentum=MOMENTUM
    )
    present = torch.cat([torch.ones(canaries.ordinary, dtype=torch.bool), canaries.included])
    sampler = PoissonSampler(plan.n, plan.sampling_probability, plan.steps, seed=config.seed)
    model.train()
    groups = parse_groups(config.groups)
    with PerSample(model, rule, expected_batch=plan.expected_batch, groups=groups) as rows:
        attach(optimizer, rows, noise, ledger=ledger)
        for done, batch in enumerate(sampler, start=1):
            drawn = torch.tensor(batch, dtype=torch.int64)
            for part in microbatches(drawn[present[drawn]], MICRO_BATCH):
                rows.backward(canaries.losses(part))
            optimizer.step()
            canaries.observe()
            optimizer.zero_grad()
            on_step(done)


def expected_bound(config: AuditConfig, plan: PrivacyPlan, signal: float) -> float:
    """The median bound when each move is signal * Bernoulli(q) + sigma z: the claim, simulated."""
    random = np.random.default_rng(0)
    shape, q, sigma = (plan.steps, config.m), plan.sampling_probability, plan.noise_multiplier
    bounds = []
    for _ in range(SIMULATIONS):
        included = random.random(config.m) < 0.5
        joins = (random.random(shape) < q) & included
        moves = signal * joins + sigma * random.standard_normal(shape)
        counts = guess(evidence(moves, signal=signal, q=q), included)
        bounds.append(lower_bound(counts, **config.looked()).epsilon)
    return float(np.median(bounds))
