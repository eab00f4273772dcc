"""A layout is tried on the first batches, proved, and changed where it does not serve the model.

What was recorded has a *kind*: which module, in which mode, on inputs of which look (`kind` of the
uses); that a module was not called is a kind too. A batch is due for the proof if it has a kind that
no proof has settled yet: the first batch, and later the first of another size, with a mask, through
other layers. A kind is settled by a proof in which its gradients were neither zero nor not finite;
until then it is tried on the first batches that have it, and on ever fewer later.

| the proof shows | then |
|---|---|
| a sample's loss depends on another sample | ValueError |
| rows that do not sum to the gradient, or miss the sample dimension | from the next batch on the own code of the module above answers for the parameter (`layout`, `frames`) |
| the same again, all the way up | the slow reference engine takes over |
| everything agrees | the kinds of the batch are settled |
"""  # noqa: E501

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steelyard.rows.broadcast import only_broadcast
from steelyard.rows.clipped_sum import add_weighted
from steelyard.rows.layout import find_layout, further_up, within
from steelyard.rows.proof import Difference, MixedError, Proof
from steelyard.rows.reference import accumulator
from steelyard.rows.uses import Arrival, BatchMismatchError, Layer

BATCHES = 3  # on which a kind is tried at once; then at its 4th, 8th, 16th, ... meeting
LATE = 8  # how often a kind is tried because gradients have come to it after all
MOVES = 8  # how often parameters may move up before the engine gives up


class Rehearsal(Protocol):
    """A backward pass of sum_j weights_j losses_j that keeps the graph and shows what arrives."""

    def __call__(self, weights: Tensor, see: Callable[[Arrival], None]) -> None: ...


@dataclass
class _Open:
    """A kind that is not settled: of which recorded things on this batch, for which parameters."""

    keys: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)


class Adaptation:
    """`layout` is the one to record with; `judge` tries it on a batch, `adapt` changes it."""

    def __init__(self, model: nn.Module, names: Mapping[str, nn.Parameter]):
        self._model, self._names = model, names
        self._moved: dict[str, str] = {}  # parameter -> the module whose own code answers for it
        self._taken_in: set[nn.Module] = set()  # children that run as a part of own code
        self._moves = 0
        self._expanded: dict[str, int | str] = {}  # layers on positions: see `broadcast`
        self._start()

    def _start(self) -> None:
        self.layout = find_layout(self._model, self._names, self._moved, self._taken_in)
        for layer in self.layout.layers:
            layer.expand = self._expanded.get(layer.path)
        self._proof = Proof(self._names)
        self._settled: set[Hashable] = set()
        self._met: Counter[Hashable] = Counter()  # not settled: how often it was met
        self._late: Counter[Hashable] = Counter()
        self._open: dict[Hashable, _Open] = {}  # of the batch under way
        self._shown: set[str] = set()  # parameters of which some proof has seen a gradient
        self._names_at: dict[str, set[str]] = {}  # path -> the parameters it answers for
        for name, path in self.layout.places.items():
            self._names_at.setdefault(path, set()).add(name)

    def due(self, uses: Collection[Any], batch: int) -> bool:
        """Whether this batch, of which these uses were recorded, must be proved on."""
        self._open, absent = {}, set(self._names_at)
        for use in uses:
            kind = use.kind(batch)
            absent.discard(kind[0])
            if kind not in self._settled:
                found = self._open.setdefault(kind, _Open())
                found.keys.add(id(use))
                found.names.update(use.names)
        for path in absent:
            if (path, "not called") not in self._settled:
                self._open[path, "not called"] = _Open(names=self._names_at[path])
        self._met.update(self._open.keys())
        times = [self._met[kind] for kind in self._open]
        return any(n <= BATCHES or n & (n - 1) == 0 for n in times)

    def arrived(self, arrival: Arrival, batch: int) -> None:
        """In a pass without proof: a gradient of an open kind makes the next batch due."""
        for kind, one in self._open.items():
            if (
                arrival.key in one.keys
                and self._late[kind] < LATE
                and any(bool(g.any()) for g in arrival.gradients(batch))
            ):
                self._late[kind] += 1
                self._met[kind] = 0

    def judge(self, losses: Tensor, rehearse: Rehearsal, *, fast: bool) -> Difference | None:
        """What is wrong with the layout on this batch. Raises ValueError where samples mix.

        fast: whether rows are wanted from the layout at all (the reference engine needs none).
        """
        try:
            return self._judge(losses, rehearse, fast=fast)
        except Exception:
            for kind in self._open:
                self._met[kind] = 0  # that was no proof: the next batch is due again
            raise

    def _judge(self, losses: Tensor, rehearse: Rehearsal, *, fast: bool) -> Difference | None:
        wrong: list[Difference] = []
        turnable: dict[int, Layer] = {}

        def gradients(weights: Tensor, see: Callable[[int, list[Tensor]], None]) -> None:
            wrong.clear()
            rehearse(weights, partial(_show, len(losses), see, wrong, turnable))

        evidence: set[int] | None = None
        if len(losses) > 1:
            evidence = self._independence(losses, gradients, turnable)
        found, shown = None, None
        if fast:
            found = wrong[0] if wrong else self._difference(losses, rehearse)
            shown = self._proof.shown
        if found is None:
            self._settle(evidence, shown)
        return found

    def _independence(
        self, losses: Tensor, gradients: Any, turnable: Mapping[int, Layer]
    ) -> set[int]:
        """The proof's; layers that saw [T, B, d] with T = B may turn out to be such."""
        try:
            return self._proof.independence(losses, gradients)
        except MixedError as error:
            layers = [turnable[key] for key in error.keys if key in turnable]
            if len(layers) < len(error.keys):
                raise
            for layer in layers:
                layer.turned = not layer.turned
            try:
                return self._proof.independence(losses, gradients)
            except MixedError:
                for layer in layers:
                    layer.turned = not layer.turned
                raise

    def _settle(self, evidence: set[int] | None, shown: set[str] | None) -> None:
        """evidence: keys with a gradient that shows independence; shown: parameters covered. None:
        there was nothing to test."""
        self._shown |= shown or set()
        for kind, one in self._open.items():
            if one.keys:
                seen = evidence is None or bool(one.keys & evidence)
                done = seen and (shown is None or one.names <= shown)
            else:
                done = shown is None or (bool(shown) and one.names <= self._shown)
            if done:
                self._settled.add(kind)
                del self._met[kind]

    def adapt(self, found: Difference, losses: Tensor, sizes: Mapping[int | str, int]) -> bool:
        """Give every sample its own positions, move these parameters to the module above the
        present one, or take the child in whose inputs have no sample dimension; False if there is
        nothing left to try. sizes: first dimensions of the model's arguments."""
        self._moves += 1
        told = [name for name, size in sizes.items() if size == len(losses)]
        layer = None if found.single is None else found.single.layer
        if layer and told and layer.expand is None and only_broadcast(losses, found.single):
            self._expanded[layer.path] = told[0]
            self._start()
            return True
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
    turnable: dict[int, Layer],
    arrival: Arrival,
) -> None:
    layer = arrival.turnable(batch)
    if layer is not None:
        turnable[arrival.key] = layer
    try:
        see(arrival.key, arrival.gradients(batch))
    except BatchMismatchError as error:
        wrong.append(error.difference)
