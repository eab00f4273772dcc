"""Measure groups of parameters of a model on data, and choose some: what `steelyard select` does.

    model, data    as `steelyard train` loads them
    influence      the gain of every group along the optimizer's step (AdaPEFT)
    choose, front  under the budget, and under all budgets

Batches are drawn from the training data by a generator of their own, a new one for each gradient
and for each fit. Nothing of it is private: probes see losses without noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steelyard import models
from steelyard.generators import fresh_root, generator
from steelyard.plans.knapsack import in_parameters
from steelyard.runs.config import TrainConfig
from steelyard.runs.folder import new_folder, write_json
from steelyard.runs.optimizers import make_optimizer
from steelyard.runs.problem import Problem, make_problem
from steelyard.runs.settings import settle
from steelyard.steps.partition import Members
from steelyard.steps.roles import by_text
from steelyard.surgery.select import Influence, Selection, choose, front, influence, transfer

PRIVACY = (
    "the probes saw losses without noise, so the choice is not private: for private training, "
    "select on public data"
)
FINE_TUNING = 1e-4  # of the Adam family on all of a pretrained model, where it trains meanwhile


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """found: the measurement; selection: the choice; front: the choices under all budgets. model:
    whose sizes they are, and whether its choice can be had from peft: a configuration, or why not.
    """

    model: str
    found: Influence
    selection: Selection
    front: list[Selection]
    peft: Any
    peft_reason: str


def select(
    settings: Mapping[str, Any],
    *,
    budget: str,
    groups: str | None = None,
    fits: int = 10,
    every: int | None = None,
    full: bool = False,
    transfer_to: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[TrainConfig, list[Chosen]]:
    """The complete settings; the choice for the model and, if asked for, for the larger one.

    settings: `TrainConfig` fields that the user gave. Raises ValueError, one line.
    """
    in_parameters(budget, 1)
    given = {"adapter": "full", "batch": 64, **settings}
    settled = settle({**given, "steps": 1}, private=False)
    config = settled.config
    own = config.model in models.MODELS
    whole = not own and config.adapter == "full" and config.optimizer != "sgd"
    if every is not None and whole and "lr" not in given:
        config = config.replace(lr=FINE_TUNING)
    text = groups or ("coarse" if config.adapter == "lora" and not own else "roles")
    problem = make_problem(config, settled.table)
    if config.batch > problem.n:
        raise ValueError(f"batch {config.batch} is larger than the {problem.n} training samples")
    members = _members(problem, text)
    larger = None
    if transfer_to is not None:  # what is wrong with it is said before minutes of probing
        larger = make_problem(config.replace(model=transfer_to), settled.table)
        known = _members(larger, text)
        if unknown := sorted(known.keys() - members.keys()):
            raise ValueError(
                f"--transfer-to {transfer_to} has the group {unknown[0]!r}, which {config.model} "
                f"lacks: give --groups that both have (here: {', '.join(members)})"
            )
    total = sum(p.numel() for p in problem.model.parameters())
    if in_parameters(budget, total) < 1:
        raise ValueError(f"--budget {budget} is less than one of {total:,} parameters: give more")
    K = len(members)
    forwards = fits * (4 * K + 1 + (K * (K - 1) // 2 if full else 0))
    note(f"{K} groups, {fits} fits: about {forwards:,} forward passes of {config.batch} samples")
    optimizer = make_optimizer(config, problem.model.train())
    found = influence(
        problem.model, _batches(problem, config), optimizer, members,
        fits=fits, every=every, full=full, seed=config.seed,
    )  # fmt: skip
    if not front(found):
        reasons = Counter(reason for several in found.reasons.values() for reason in several)
        ((often, _),) = reasons.most_common(1)
        raise ValueError(
            f"no group had three fits that were believed (most often: {often}): give more --fits, "
            "a larger --batch or another --lr"
        )
    measured = [(config.model, found)]
    if transfer_to is not None and larger is not None:
        total = sum(p.numel() for p in larger.model.parameters())
        measured.append((transfer_to, transfer(found, _members(larger, text), total)))
    return config, [_chosen(name, one, budget, full, own) for name, one in measured]


def _chosen(model: str, found: Influence, budget: str, full: bool, own: bool) -> Chosen:
    selection, peft, reason = choose(found, budget, full=full), None, "not a Hugging Face model"
    if not own:
        try:
            peft, reason = selection.peft_config(), ""
        except ValueError as error:
            reason = str(error)
    return Chosen(
        model=model,
        found=found,
        selection=selection,
        front=front(found, full=full),
        peft=peft,
        peft_reason=reason,
    )


def _members(problem: Problem, text: str) -> Members:
    try:
        return by_text(problem.model, text)
    except ValueError as error:
        raise ValueError(f"--groups {text}: {error}") from None


def _batches(problem: Problem, config: TrainConfig) -> Iterator[Callable[[], Tensor]]:
    draws = generator(fresh_root(config.seed), "batches to select by")
    while True:
        x, y = problem.batch(torch.randperm(problem.n, generator=draws)[: config.batch])
        yield lambda x=x, y=y: problem.losses(problem.model, x, y)


def densest_first(found: Influence) -> list[str]:
    """The groups in the order in which they are worth their parameters; not believed ones last."""
    density = found.density
    return sorted(density, key=lambda n: (math.isnan(density[n]), -density[n], n))


def as_record(config: TrainConfig, results: list[Chosen]) -> dict[str, Any]:
    """All of it as JSON has it; numbers that are not finite are None."""
    names = ("model", "data", "adapter", "optimizer", "lr", "batch", "seed")
    first = _record(results[0])
    more = {"transfer": _record(results[1])} if len(results) > 1 else {}
    return {**{name: getattr(config, name) for name in names}, **first, **more, "note": PRIVACY}


def _record(one: Chosen) -> dict[str, Any]:
    found, selection = one.found, one.selection
    gains, density, sizes = found.gains, found.density, found.sizes
    groups = [
        {
            "group": name,
            "parameters": sizes[name],
            "share": sizes[name] / found.total,
            "gain": _plain(gains[name]),
            "gain_per_parameter": _plain(density[name]),
            "believed": len(found.values[name]),
            "fits": found.fits,
            "why_not": dict(Counter(found.reasons[name])),
        }
        for name in densest_first(found)
    ]
    return {
        "model": one.model,
        "parameters": found.total,
        "groups": groups,
        "budget": selection.budget,
        "chosen": _selection(selection),
        "parameter_names": selection.parameter_names,
        "alternatives": {name: _plain(gain) for name, gain in selection.alternatives.items()},
        "front": [_selection(prefix) for prefix in one.front],
        "peft": None if one.peft is None else type(one.peft).__name__,
        "peft_reason": one.peft_reason,
    }


def _selection(one: Selection) -> dict[str, Any]:
    return {
        "groups": list(one.names),
        "parameters": one.parameters,
        "share": one.share,
        "gain": _plain(one.gain),
    }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write(folder: Path, config: TrainConfig, results: list[Chosen]) -> None:
    """front.png, front.csv, selection.json and, where peft can express the choice,
    adapter_config.json; of the larger model, where there is one."""
    from steelyard.report.front import write_front

    one = results[-1]
    with new_folder(folder, lambda: False):
        write_front(
            folder / "front.png", one.front, chosen=one.selection, title=f"Groups of {one.model}"
        )
        write_json(folder / "selection.json", as_record(config, results))
        if one.peft is not None:
            one.peft.save_pretrained(str(folder))
