"""What `influence` says of a pretrained model's groups, and the choices that it and cheaper rules
lead to, for the tasks of `steelyard.trials.subsets`.

| rule | gain of a group |
|---|---|
| additive | v_k = b_k^2 / 2a_k, AdaPEFT |
| coupled | the same with the coupling between groups, forward selection |
| slope | abs(b_k): what the step promises to first order |
| fisher | mean over batches of the squared gradient |
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steelyard.runs.problem import Problem
from steelyard.steps.roles import Groups, by_role
from steelyard.surgery.select import Influence, choose, influence, transfer
from steelyard.trials import subsets as trial

RESULTS = 1
STREAM = 3  # no batch order of a training


def probe(
    *, task: str, width: int, seed: int, fits: int, rate: float, pretraining: int,
    budgets: Sequence[float], every: int | None = None, to: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`influence` on the pretrained model with the Adam that trains, and what each rule chooses.

    budgets: shares of the parameters. every: as of `influence`. to: width of the model that is
    chosen for; None: the measured one. Returns sizes and gains of the groups; rule -> budget ->
    chosen subset ("" for none); rule -> subset -> predicted gain, None where no fit says; seconds
    of `influence`.
    """
    torch.manual_seed(seed)
    problem = trial.new_task(task, "test")
    model = trial.pretrained(task, width, seed, pretraining)
    groups = by_role(model, fine=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    batches = trial.batches_of(problem, trial.SIZES[task].probe, seed, stream=STREAM)
    began = time.perf_counter()
    found = influence(
        model,
        (lambda indices=indices: trial.losses_of(problem, model, indices) for indices in batches),
        optimizer, groups, fits=fits, every=every, full=True, seed=seed,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    fisher = _fisher(problem, model, groups, batches, fits)
    if to is not None:
        larger = trial.build(task, to, seed)
        total = sum(p.numel() for p in larger.parameters())
        found = transfer(found, by_role(larger, fine=False), total=total)
    gains = {
        "additive": {name: _or_zero(gain) for name, gain in found.gains.items()},
        "slope": _slopes(found),
        "fisher": fisher,
    }
    choices = {
        rule: {str(b): _chosen(_with(found, said), b) for b in budgets}
        for rule, said in gains.items()
    }
    choices["coupled"] = {
        str(b): _chosen(found, b, full=True) if found.couplings else "" for b in budgets
    }
    predictions: dict[str, dict[str, float | None]] = {
        rule: {s: math.fsum(said[name] for name in s.split("+")) for s in trial.subsets()}
        for rule, said in gains.items()
    }
    predictions["coupled"] = {s: _coupled(found, s.split("+")) for s in trial.subsets()}
    return {
        "seconds": round(seconds, 3),
        "total": found.total,
        "sizes": found.sizes,
        "gains": gains["additive"],
        "acceptance": found.acceptance,
        "choices": choices,
        "predictions": predictions,
    }


def _chosen(found: Influence, budget: float, *, full: bool = False) -> str:
    return trial.key(choose(found, round(budget * found.total), full=full).names)


def _or_zero(gain: float) -> float:
    return gain if math.isfinite(gain) else 0.0


def _with(found: Influence, gains: Mapping[str, float]) -> Influence:
    """These gains in place of the measured ones, as if three fits had said so."""
    return dataclasses.replace(found, values={name: (gains[name],) * 3 for name in found.names})


def _slopes(found: Influence) -> dict[str, float]:
    """Median over the full fits of |b_k|."""
    slopes: dict[str, list[float]] = {name: [] for name in found.names}
    for coupling in found.couplings:
        for name, b in zip(coupling.names, coupling.b, strict=True):
            slopes[name].append(abs(float(b)))
    return {name: statistics.median(said) if said else 0.0 for name, said in slopes.items()}


def _coupled(found: Influence, names: Sequence[str]) -> float | None:
    """Median over the full fits of v(S) = b_S' A_SS^-1 b_S / 2, where A_SS is positive definite."""
    values = []
    for coupling in found.couplings:
        if set(names) <= set(coupling.names):
            at = [coupling.names.index(name) for name in names]
            A, b = coupling.A[np.ix_(at, at)], coupling.b[at]
            if np.linalg.eigvalsh(A)[0] > 0:
                values.append(float(b @ np.linalg.solve(A, b) / 2))
    return statistics.median(values) if values else None


def _fisher(
    problem: Problem, model: nn.Module, groups: Groups, batches: Iterator[Tensor], count: int
) -> dict[str, float]:
    """Mean over batches of |gradient of the batch|^2, by group."""
    said = dict.fromkeys(groups, 0.0)
    for _ in range(count):
        model.zero_grad()
        trial.losses_of(problem, model, next(batches)).mean().backward()
        for name, members in groups.items():
            squares = [float(p.grad.square().sum()) for _, p in members if p.grad is not None]
            said[name] += math.fsum(squares) / count
    model.zero_grad()
    return said
