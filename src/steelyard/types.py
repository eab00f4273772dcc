"""The protocols, and the record that says how far a gradient has come: raw -> clipped -> noised.

| object | decides over | may see private rows |
|---|---|---|
| `RowWeighting` | one row at a time (clipping) | yes: it has a sensitivity |
| `Weighting` | all rows at once, by their Gram matrix | only if public or already noised |
| `Mechanism` | clipped -> noised | it is the one place where noise enters |
| `Filter` | noised -> noised, over time | it never sees anything un-noised |
| `Step` | how far to move, per parameter group | through public data, or paid for |

A filter accepts `Noised` and nothing else, so a chain that would remember or log an un-noised
gradient is a type error for pyright and a `ValueError` at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class Clipped:
    """Sum of clipped rows divided by the expected batch size, one tensor per parameter.

    float32, or float64 where the parameter is.

    `sensitivity` is the L2 distance by which adding or removing one sample moves the tensors
    together (R / B). Private: nothing but a `Mechanism` may read the tensors.

    `raw`: the same sum with every row bounded by the rows' `raw_bound` instead, where that is set.
    It has another sensitivity: only a mechanism that accounts for it (error feedback) may read it.
    """

    tensors: Sequence[Tensor]
    sensitivity: float
    raw: Sequence[Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Noised:
    """A released gradient: everything computed from it is post-processing.

    `noise_multiplier` is sigma, the standard deviation of the noise per unit of `sensitivity`.
    """

    tensors: Sequence[Tensor]
    sensitivity: float
    noise_multiplier: float


@runtime_checkable
class RowWeighting(Protocol):
    """Weights w_i = C(||g_i||), each from its own row: sum_i w_i g_i has L2 sensitivity `bound`."""

    @property
    def bound(self) -> float: ...

    def __call__(self, norms: Tensor) -> Tensor:
        """norms [B] float -> weights [B], with weights * norms <= bound."""
        ...

    def with_bound(self, bound: float) -> RowWeighting:
        """The same rule with another bound (a group's share R_m of R)."""
        ...


@runtime_checkable
class Weighting(Protocol):
    """Weights of k public or noised rows from their Gram matrix [k, k] -> [k]."""

    def __call__(self, gram: Tensor) -> Tensor: ...


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint saves: states of numbers, strings, tensors, lists and dicts only."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Mechanism(Stateful, Protocol):
    """Turns a clipped gradient into a released one: the only way from `Clipped` to `Noised`."""

    @property
    def noise_multiplier(self) -> float: ...

    @property
    def seeded(self) -> bool:
        """Whether a user chose the seed of the noise, so that whoever knows it can subtract it."""
        ...

    def privatise(self, gradient: Clipped) -> Noised: ...


class Filter(Stateful, Protocol):
    """Post-processing over time: sum_s h_s (released gradient of step s)."""

    def filter(self, gradient: Noised) -> Noised: ...


class Points(Protocol):
    """Where gradients are evaluated, if elsewhere than at the parameters (a filter that looks
    ahead)."""

    def evaluations(self) -> Sequence[tuple[float, AbstractContextManager[None]]]:
        """(weight, place) of each: rows are sum_k weight_k grad f(point_k; i), mixed before they
        are clipped; the parameters are at point_k inside place_k and nowhere else."""
        ...


class Removable(Protocol):
    """What `torch` returns for a registered hook."""

    def remove(self) -> None: ...


@runtime_checkable
class Connected(Protocol):
    """A part of a chain that needs to know whom it works with; `attach` calls `connect` once."""

    def connect(self, optimizer: Optimizer, rows: Any) -> Sequence[Removable]:
        """Returns the hooks it registered: `detach()` removes them."""
        ...


class Step(Stateful, Protocol):
    """Sets the step sizes eta_k of an optimizer's parameter groups before its step."""

    def step(self) -> None: ...


class Rows(Protocol):
    """What `attach` asks of private rows: whether a backward came, and the clipped gradient."""

    @property
    def parameters(self) -> Sequence[Tensor]: ...

    @property
    def armed(self) -> bool: ...

    @property
    def expected_batch(self) -> float: ...

    def take(self) -> Clipped: ...


class Accountant(Protocol):
    """What `attach` asks of a ledger: pay for one step before it happens, or raise."""

    noise_seeded_by_user: bool

    def charge(self, *, noise_multiplier: float, sampling_probability: float) -> None: ...
