"""The first batches: a layout is tried, proved, and changed where it does not serve the model.

| the first batch shows | then |
|---|---|
| a sample's loss depends on another sample | ValueError |
| rows that do not sum to the gradient, or miss the sample dimension | from the next batch on the own code of the module above answers for the parameter (`layout`, `frames`) |
| the same again, all the way up | the slow reference engine takes over |
| everything agrees | proved; no more tests after the third batch at the latest |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from steelyard.rows.clipped_sum import add_weighted
from steelyard.rows.layout import find_layout, further_up, within
from steelyard.rows.proof import Difference, Proof
from steelyard.rows.reference import accumulator
from steelyard.rows.uses import Arrival, BatchMismatchError

MOVES = 8  # how often parameters may move up before the engine gives up


class Rehearsal(Protocol):
    """A backward pass of sum_j weights_j losses_j that keeps the graph and shows what arrives."""

    def __call__(self, weights: Tensor, see: Callable[[Arrival], None]) -> None: ...


class Adaptation:
    """`layout` is the one to record with; `judge` tries it on a batch, `adapt` changes it."""

    def __init__(self, model: nn.Module, names: Mapping[str, nn.Parameter]):
        self._model, self._names = model, names
        self._moved: dict[str, str] = {}  # parameter -> the module whose own code answers for it
        self._taken_in: set[nn.Module] = set()  # children that run as a part of own code
        self._moves = 0
        self._start()

    def _start(self) -> None:
        self.layout = find_layout(self._model, self._names, self._moved, self._taken_in)
        self._proof = Proof(self._names)

    @property
    def done(self) -> bool:
        return self._proof.done

    def judge(self, losses: Tensor, rehearse: Rehearsal, *, fast: bool) -> Difference | None:
        """What is wrong with the layout on this batch. Raises ValueError where samples mix.

        fast: whether rows are wanted from the layout at all (the reference engine needs none).
        """
        wrong: list[Difference] = []

        def gradients(weights: Tensor, see: Callable[[int, list[Tensor]], None]) -> None:
            rehearse(weights, partial(_show, len(losses), see, wrong))

        self._proof.independence(losses, gradients)
        if not fast:
            self._proof.count()
            return None
        return wrong[0] if wrong else self._difference(losses, rehearse)

    def adapt(self, found: Difference) -> bool:
        """Move these parameters to the module above the present one, or take the child in whose
        inputs have no sample dimension; False if there is nothing left to try."""
        self._moves += 1
        if found.child is not None and self._moves <= MOVES:
            self._taken_in.add(found.child)
            self._start()
            return True
        up = {name: further_up(self._model, self.layout.places[name]) for name in found.names}
        if self._moves > MOVES or not up or None in up.values():
            return False
        tops = {path for path in up.values() if path is not None}
        for owner in self.layout.owners:  # own code inside own code becomes a part of it
            for top in tops:
                if within(owner.path, top):
                    up |= dict.fromkeys(owner.parameters, top)
        self._moved |= {name: path for name, path in up.items() if path is not None}
        self._start()
        return True

    def _difference(self, losses: Tensor, rehearse: Rehearsal) -> Difference | None:
        """What differs between the plain sum of the rows and autograd's gradient, if anything."""
        sums: dict[str, Tensor] = {}
        ones = torch.ones(len(losses), device=losses.device, dtype=accumulator(losses))
        rough: list[bool] = []

        def see(arrival: Arrival) -> None:
            rough.append(arrival.rough)
            add_weighted(sums, arrival.factors(len(losses)), ones)

        try:
            rehearse(torch.ones_like(losses), see)
        except BatchMismatchError as error:
            return error.difference
        return self._proof.coverage(losses, sums, rough=any(rough))


def _show(
    batch: int,
    see: Callable[[int, list[Tensor]], None],
    wrong: list[Difference],
    arrival: Arrival,
) -> None:
    try:
        see(arrival.key, arrival.gradients(batch))
    except BatchMismatchError as error:
        wrong.append(error.difference)
