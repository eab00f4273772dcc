"""K named displacements D_k of parameters, and the parameters at w(x) = w_0 + sum_k x_k D_k.

One optimizer step (GeN, Hi-DLR, AdaPEFT), negative gradients, or task vectors. Sums are formed in
float32 or better and copied into the parameters; what was there comes back by copy, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from steelyard.rows.reference import accumulator

Groups = Mapping[str, Sequence[Tensor]]


class Displacements:
    """Displacements of `parameters`: directions = {name: one tensor or None for each of them}.

    base: w_0, one tensor per parameter; None: copies of what they hold now. The class keeps what it
    is given.

    | case | behaviour |
    |---|---|
    | a direction that is zero | visible in `norms` and `moving`; nothing else |
    | float16, bfloat16 parameters | w(x) is rounded to them: small x D vanish; use fp32 masters |
    | gradients, optimizer state | never touched |

    Memory: w_0 and D, and while `kept` a copy of the parameters.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        directions: Mapping[str, Sequence[Tensor | None]],
        base: Sequence[Tensor] | None = None,
    ):
        self.parameters = list(parameters)
        self._base = _copies(self.parameters) if base is None else list(base)
        self._directions = {name: list(tensors) for name, tensors in directions.items()}
        for name, tensors in self._directions.items():
            if len(tensors) != len(self.parameters):
                raise ValueError(
                    f"direction {name!r} has {len(tensors)} tensors for {len(self.parameters)} "
                    "parameters: give one for each, or None"
                )
        if not self._directions:
            raise ValueError("no direction: give one displacement or more")

    @classmethod
    @torch.no_grad()
    def from_step(
        cls,
        optimizer: Optimizer,
        groups: Groups | None = None,
        *,
        step: Callable[[], Any] | None = None,
    ) -> Displacements:
        """Takes ONE real step, D_k = new - old of each group; the parameters are then at x = 1.

        groups: name -> parameters, each parameter of the optimizer in exactly one; None: all as
        one, "step". step: called in place of optimizer.step, e.g. lambda: scaler.step(optimizer).

        Guarantees: the optimizer's state advances once, and whatever its hooks do (private
        gradients) happens once. Raises ValueError for groups that do not fit, before the step.
        """
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.requires_grad
        ]
        if not parameters:
            raise ValueError("the optimizer has no trainable parameter: nothing can move")
        owner = _owners(parameters, groups)
        base = _copies(parameters)
        with torch.enable_grad():
            (optimizer.step if step is None else step)()
        delta = [_wide(p) - _wide(w) for p, w in zip(parameters, base, strict=True)]
        names = ["step"] if groups is None else list(groups)
        return cls(
            parameters,
            {n: [d if o == n else None for d, o in zip(delta, owner, strict=True)] for n in names},
            base,
        )

    @classmethod
    def from_gradient(
        cls,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor | None] | Mapping[str, Sequence[Tensor | None]],
        *,
        scale: float = 1.0,
    ) -> Displacements:
        """D = -scale * gradient: one list of tensors, "gradient", or {name: list}."""
        named = grads if isinstance(grads, Mapping) else {"gradient": grads}
        directions = {
            name: [None if g is None else _wide(g) * -scale for g in tensors]
            for name, tensors in named.items()
        }
        return cls(parameters, directions)

    @classmethod
    def from_task_vectors(
        cls, base: Mapping[str, Tensor], others: Mapping[str, Mapping[str, Tensor]]
    ) -> Displacements:
        """D_k = others[k] - base, for every floating-point entry. base: `model.state_dict()` of the
        model that is to move (its tensors are the model's own).

        Raises ValueError for a state that lacks an entry or has it in another shape.
        """
        names, seen = [], set[Any]()
        for name, tensor in base.items():
            key = (tensor.data_ptr(), tensor.shape)
            if tensor.is_floating_point() and (key not in seen or not tensor.numel()):
                names.append(name)  # tied weights once
                seen.add(key)
        for task, state in others.items():
            for name in names:
                if name not in state or state[name].shape != base[name].shape:
                    found = list(state[name].shape) if name in state else "nothing"
                    raise ValueError(
                        f"task {task!r} has {found} for {name!r}, the base has "
                        f"{list(base[name].shape)}: give states of one architecture"
                    )
        directions = {
            task: [_wide(state[n]).to(base[n].device) - _wide(base[n]) for n in names]
            for task, state in others.items()
        }
        return cls([base[name] for name in names], directions)

    @property
    def names(self) -> list[str]:
        return list(self._directions)

    @property
    def size(self) -> int:
        """K."""
        return len(self._directions)

    @property
    def norms(self) -> NDArray[np.float64]:
        """L2 norms of the displacements [K]."""
        squares = [
            sum(float(d.double().square().sum()) for d in tensors if d is not None)
            for tensors in self._directions.values()
        ]
        return np.sqrt(np.array(squares, np.float64))

    @property
    def moving(self) -> list[bool]:
        """Whether a direction leads anywhere [K]; one with nan does."""
        return [bool(norm != 0) for norm in self.norms]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """On exit the parameters are what they were on entry, bit for bit, errors included."""
        entry = _copies(self.parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in self.parameters], entry)

    @contextmanager
    def at(self, x: Sequence[float]) -> Iterator[None]:
        """Inside, the parameters are at w(x); on exit what they were on entry."""
        with self.kept():
            self.commit(x)
            yield

    @torch.no_grad()
    def commit(self, x: Sequence[float]) -> None:
        """Leave the parameters at w(x). Raises ValueError unless x is K finite numbers."""
        if len(x) != self.size or not np.isfinite(x).all():
            raise ValueError(f"x must be {self.size} finite numbers, found {list(x)}")
        for i, (p, w) in enumerate(zip(self.parameters, self._base, strict=True)):
            place = p.detach()
            wide = place if accumulator(p) == p.dtype else _wide(w).clone()
            if wide is place:
                place.copy_(w)
            for x_k, tensors in zip(x, self._directions.values(), strict=True):
                d = tensors[i]
                if d is not None and x_k != 0:
                    wide.add_(d, alpha=float(x_k))
            if wide is not place:
                place.copy_(wide)


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _wide(t: Tensor) -> Tensor:
    return t.detach().to(accumulator(t))


def _owners(parameters: Sequence[Tensor], groups: Groups | None) -> list[str]:
    """The name of each parameter's group."""
    if groups is None:
        return ["step"] * len(parameters)
    owner: dict[int, str] = {}
    known = {id(p) for p in parameters}
    for name, members in groups.items():
        for p in members:
            if id(p) not in known or id(p) in owner:
                where = f"in {owner[id(p)]!r} too" if id(p) in owner else "not in the optimizer"
                raise ValueError(
                    f"group {name!r} has a parameter of shape {list(p.shape)} that is {where}: "
                    "give every trainable parameter of the optimizer to one group"
                )
            owner[id(p)] = name
    if missing := [p for p in parameters if id(p) not in owner]:
        raise ValueError(
            f"{len(missing)} parameters of the optimizer are in no group, the first of shape "
            f"{list(missing[0].shape)}: give every trainable parameter to one group"
        )
    return [owner[id(p)] for p in parameters]
