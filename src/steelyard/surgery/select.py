"""Which groups of parameters to train under a budget: AdaPEFT, part II.

Xu and Bu, "Adaptive parameter-efficient fine-tuning via Hessian-informed subset selection",
arXiv 2505.12579, section 2.

| symbol | here |
|---|---|
| v_k, n_k, eps | gain and size of group k (`Influence`), budget |
| S | the chosen groups |
| b_S, A_SS | slopes and curvatures of a full fit, restricted to S |

    choose    max sum_S v_k  subject to  sum_S n_k <= eps         exact 0-1 knapsack
    front     the prefixes in order of v_k / n_k                  for all budgets at once
    full      v(S) = b_S' A_SS^-1 b_S / 2, forward selection: redundant groups count once
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn
from torch.utils.hooks import RemovableHandle

from steelyard.plans.knapsack import best_single, by_density, exact, greedy, in_parameters
from steelyard.surgery.adapters import peft_config
from steelyard.surgery.influence import Coupling, Influence, influence, transfer

__all__ = ["Applied", "Influence", "Selection", "choose", "front", "influence", "transfer"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Chosen groups, in order of decreasing density (full: in the order in which they were taken).

    gain: predicted fall of the loss per step. share: of the whole model's parameters. alternatives:
    gain of the greedy prefix, the best single group, the exact optimum, as far as computed.
    """

    names: tuple[str, ...]
    parameters: int
    share: float
    gain: float
    budget: int
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]] = field(repr=False)
    left: Mapping[str, Mapping[str, tuple[int, ...]]] = field(repr=False)
    alternatives: Mapping[str, float] = field(default_factory=dict)

    @property
    def parameter_names(self) -> list[str]:
        return [name for group in self.names for name in self.shapes[group]]

    def apply(self, model: nn.Module) -> Applied:
        """Set requires_grad: True for the chosen parameters, False for all others.

        Normalisation layers with running statistics whose parameters are not chosen keep their
        statistics: a forward hook puts them into eval mode, whatever `model.train()` says.

        Make a new optimizer from `Applied.parameters` afterwards: an old one would go on moving
        frozen parameters by momentum and weight decay. Distributed wrappers must be made anew too.

        Raises ValueError for a model that lacks a chosen parameter or has it in another shape.
        """
        wanted = {n: shape for group in self.names for n, shape in self.shapes[group].items()}
        known = dict(model.named_parameters())
        for name, shape in wanted.items():
            if name not in known or tuple(known[name].shape) != shape:
                found = list(known[name].shape) if name in known else "none"
                raise ValueError(
                    f"the model has {found} for the chosen {name!r} of shape {list(shape)}: "
                    "measure on it, or transfer() to it"
                )
        before = {name: p.requires_grad for name, p in known.items()}
        for name, p in known.items():
            p.requires_grad_(name in wanted)
        hooks, held = [], []
        for path, module in model.named_modules():
            if getattr(module, "running_mean", None) is None:
                continue
            if not any(p.requires_grad for p in module.parameters(recurse=False)):
                hooks.append(module.register_forward_pre_hook(_evaluate))
                held.append(path)
        return Applied(
            trained=tuple(n for n in known if n in wanted),
            turned_on=tuple(n for n in known if n in wanted and not before[n]),
            turned_off=tuple(n for n in known if n not in wanted and before[n]),
            held=tuple(held),
            parameters=[p for n, p in known.items() if n in wanted],
            _before=[(p, before[n]) for n, p in known.items()],
            _hooks=hooks,
        )

    def peft_config(self, *, any_layer: bool = False, **options: Any) -> Any:
        """The choice as a configuration of the package peft: see `steelyard.surgery.adapters`."""
        return peft_config(
            {name: self.shapes[name] for name in self.names}, self.left, any_layer, options
        )


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What `Selection.apply` did. trained: all that is trained now; turned_on, turned_off: what
    changed; held: normalisation layers whose running statistics are kept; parameters: for a new
    optimizer."""

    trained: tuple[str, ...]
    turned_on: tuple[str, ...]
    turned_off: tuple[str, ...]
    held: tuple[str, ...]
    parameters: list[nn.Parameter] = field(repr=False)
    _before: list[tuple[nn.Parameter, bool]] = field(repr=False)
    _hooks: list[RemovableHandle] = field(repr=False)

    def undo(self) -> None:
        for p, required in self._before:
            p.requires_grad_(required)
        for hook in self._hooks:
            hook.remove()


def choose(influence: Influence, budget: int | float | str, *, full: bool = False) -> Selection:
    """The groups of the highest predicted gain within the budget.

    budget: a number of parameters, or a share of the model's such as "1%". full: forward selection
    with the coupling (measure with full=True): each group at what it adds to those taken, the
    densest first, none that no longer fits.

    Guarantees: the budget is never exceeded; groups with fewer than three believed fits are never
    chosen; the order of the groups means nothing. Without full the gain is the knapsack's optimum.
    Raises ValueError for a budget that is none, and full without couplings.
    """
    eps = in_parameters(budget, influence.total)
    if full:
        taken = _forward(influence, eps)
        return _selection(influence, taken, eps, {"forward": _coupled(influence, taken)})
    names, gains, sizes = _sorted(influence)
    found = {
        "exact": exact(gains, sizes, eps),
        "greedy": greedy(gains, sizes, eps),
        "single": best_single(gains, sizes, eps),
    }
    best = set(max(found.values(), key=lambda one: one.value).chosen)
    order = [names[k] for k in by_density(gains, sizes) if k in best]
    return _selection(influence, order, eps, {how: one.value for how, one in found.items()})


def front(influence: Influence, *, full: bool = False) -> list[Selection]:
    """Nested selections of rising size, one more group in each: the front over all budgets.

    Without full each is the best of all selections of its size or less.
    """
    if full:
        order = _forward(influence, sum(influence.sizes.values()))
    else:
        names, gains, sizes = _sorted(influence)
        order = [names[k] for k in by_density(gains, sizes)]
    sizes = influence.sizes
    found: list[Selection] = []
    for m in range(1, len(order) + 1):
        taken = order[:m]
        gains = {"forward": _coupled(influence, taken)} if full else {}
        found.append(_selection(influence, taken, sum(sizes[n] for n in taken), gains))
    return found


def _selection(
    influence: Influence, taken: Sequence[str], budget: int, gains: Mapping[str, float]
) -> Selection:
    parameters = sum(influence.sizes[name] for name in taken)
    alone = math.fsum(influence.gains[name] for name in taken)
    return Selection(
        names=tuple(taken),
        parameters=parameters,
        share=parameters / influence.total,
        gain=gains.get("forward", alone),
        budget=budget,
        shapes={name: influence.shapes[name] for name in taken},
        left={name: s for name, s in influence.shapes.items() if name not in taken},
        alternatives=dict(gains),
    )


def _sorted(influence: Influence) -> tuple[list[str], list[float], list[int]]:
    """Names, gains and sizes by name, so that equal groups are told apart by their names."""
    names = sorted(influence.names)
    return names, [influence.gains[n] for n in names], [influence.sizes[n] for n in names]


def _forward(influence: Influence, budget: int) -> list[str]:
    """Greedy by what a group adds per parameter, by Schur complements; ties by name."""
    if not influence.couplings:
        raise ValueError("no coupling was measured: call influence(..., full=True)")
    names, gains, size_list = _sorted(influence)
    sizes = dict(zip(names, size_list, strict=True))
    rest = [name for name, gain in zip(names, gains, strict=True) if gain > 0]  # nan is not
    taken: list[str] = []
    left = budget
    while True:
        adds = {n: _median(_added(c, taken, n) for c in influence.couplings) for n in rest}
        fitting = [n for n in rest if sizes[n] <= left and adds[n] > 0]
        if not fitting:
            return taken
        best = max(fitting, key=lambda n: adds[n] / sizes[n])
        taken.append(best)
        rest.remove(best)
        left -= sizes[best]


def _added(coupling: Coupling, taken: Sequence[str], name: str) -> float:
    """v(S + k) - v(S) = r^2 / 2d: r, d are slope and curvature of k with S at its optimum."""
    if not {*taken, name} <= set(coupling.names):
        return math.nan
    S, k = [coupling.names.index(n) for n in taken], coupling.names.index(name)
    A, b = coupling.A, coupling.b
    if S and np.linalg.eigvalsh(A[np.ix_(S, S)])[0] <= 0:
        return math.nan
    solved = np.linalg.solve(A[np.ix_(S, S)], np.column_stack([b[S], A[S, k]]))  # [S, 2]
    r = b[k] - A[k, S] @ solved[:, 0]
    d = A[k, k] - A[k, S] @ solved[:, 1]
    # d = 0: a copy of what is taken; d < 0: no minimum with this group, so nothing to gain from it
    return float(r**2 / (2 * d)) if d > 1e-9 * abs(A[k, k]) else 0.0


def _coupled(influence: Influence, taken: Sequence[str]) -> float:
    """Median over the fits of v(S)."""
    return _median(
        math.fsum(_added(c, taken[:m], taken[m]) for m in range(len(taken)))
        for c in influence.couplings
    )


def _median(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else math.nan


def _evaluate(module: nn.Module, _: Any) -> None:
    module.training = False
