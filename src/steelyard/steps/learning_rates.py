"""The learning rates of an optimizer's parameter groups, owned by one method.

    lr_g(t) = values_g decay(t)

The values are stored without the decay factor, so that a method that averages them does not average
the schedule too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steelyard.filters.attach import is_private, step_watchers
from steelyard.steps.displacements import Displacements

NOT_LINEAR = (torch.optim.LBFGS, torch.optim.Rprop, torch.optim.ASGD, torch.optim.Adafactor)


class Rates:
    """Starts from the optimizer's own rates. decay: factor of step t = 0, 1, ...; None: 1.

    Rates that are tensors are written in place. Raises ValueError for an optimizer whose step is
    not proportional to its learning rate.
    """

    def __init__(self, optimizer: Optimizer, decay: Callable[[int], float] | None = None):
        if isinstance(optimizer, NOT_LINEAR):
            raise ValueError(
                f"a step of {type(optimizer).__name__} is not proportional to its learning rate: "
                "use SGD, the Adam family or Muon"
            )
        self._optimizer, self._decay = optimizer, decay
        self.values = [float(group["lr"]) for group in self._groups()]
        self.at(0)

    def at(self, t: int) -> None:
        """Step t comes next. Raises ValueError for a factor that is negative or not finite."""
        factor = 1.0 if self._decay is None else float(self._decay(t))
        if not 0 <= factor < math.inf:
            raise ValueError(f"decay({t}) must be 0 or positive, found {factor}")
        self.factor = factor
        self._write()

    def multiply(self, multiples: float | Sequence[float]) -> None:
        """By one multiple for all groups, or one for each."""
        each = multiples if isinstance(multiples, Sequence) else [multiples] * len(self.values)
        self.values = [rate * m for rate, m in zip(self.values, each, strict=True)]
        self._write()

    def restore(self, values: Sequence[float], t: int) -> None:
        self.values = [float(rate) for rate in values]
        self.at(t)

    def check(self) -> None:
        """Raises ValueError when something else has set a rate."""
        now = [float(group["lr"]) for group in self._groups()]
        if now != self._written:
            raise ValueError(
                f"the learning rates are {now}, left here were {self._written}: detach what sets "
                "them (a scheduler: give decay=), or make a new object for new groups"
            )

    def _groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups  # loading a state puts others there

    def _write(self) -> None:
        self._written: list[float] = []
        for group, rate in zip(self._groups(), self.values, strict=False):  # `check` sees new ones
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * self.factor)  # a captured graph reads this memory
            else:
                group["lr"] = rate * self.factor
            self._written.append(float(group["lr"]))


def refuse_private(optimizer: Optimizer) -> None:
    """Raises ValueError for a private optimizer, whose probes nobody has said anything about."""
    if is_private(optimizer):
        raise ValueError(
            "the optimizer is private, and losses of private data would set its learning rate "
            'without noise: probe public data and say probes_are="public", or give '
            "private=PrivateProbe(...)"
        )


def settle(
    optimizer: Optimizer, moved: Displacements, x: Sequence[float], *, rescale: bool = True
) -> None:
    """Leave the parameters at w(x) behind the step that `moved` them, which ended at x = 1.

    rescale False: a step is kept whole, or taken back where x_k < 1/2: there a parabola with its
    minimum at x_k is lower at 0 than at 1. So it is behind a filter that has measured the step
    (DiSK), too; where something is taken back, such a filter begins anew.
    """
    watchers = step_watchers(optimizer)
    if not rescale or watchers:
        x = [0.0 if one < 0.5 else 1.0 for one in x]
    if all(one == 1 for one in x):
        return  # the parameters are where the step left them
    moved.commit(x)
    for part in watchers:
        part.reset()
