"""Sums of clipped rows, group by group: norm, clip, contract and free as soon as a group is
complete.

    norm_{i,m} = sqrt(sum of group m's parameters ||g_i||^2),   C_{i,m} = C_{R_m}(norm_{i,m})
    sum_m     += sum_i C_{i,m} g_i^(m) / B
    raw_m     += sum_i min(1, G_m / norm_{i,m}) g_i^(m) / B      where a second bound G is asked for

Book-keeping, arXiv 2210.00038, section 3; groups, arXiv 2310.19215. With one group all factors are
held until the backward pass is over; with many, each is freed inside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from steelyard.rows.groups import Groups, bounds, partition
from steelyard.rows.reference import accumulator
from steelyard.rules.factors import Factor, squared_norms, weighted_sum
from steelyard.types import RowWeighting


class ClippedSum:
    """Accumulates the clipped sums of one optimizer step over any number of backward passes.

    `start` says which parameters every coming use feeds, `arrive` brings one use's factors,
    `finish` ends the pass. After it, `sums` holds one tensor per parameter reached so far (divided
    by B), `raw` the same under `raw_bound` where that is set, `squares` the sum of the clipped
    rows' squared norms where `measured`, and `finite` whether every row's norm was.
    """

    def __init__(
        self,
        names: Mapping[str, nn.Parameter],
        weighting: RowWeighting,
        groups: Groups,
        shares: Sequence[float] | None,
        expected_batch: float,
    ):
        lists = partition(names, groups)
        limits = bounds(len(lists), weighting.bound, shares)
        self._groups = [
            _Group(weighting.with_bound(limit), share)
            for limit, share in zip(limits, bounds(len(lists), 1.0, shares), strict=True)
        ]
        self._group_of = {
            name: group for group, of in zip(self._groups, lists, strict=True) for name in of
        }
        self._names, self._scale = names, 1.0 / expected_batch
        self.sums: dict[str, Tensor] = {}
        self.raw: dict[str, Tensor] = {}
        self.raw_bound: float | None = None
        self.measured = False
        self.squares: Tensor | None = None
        self._finite: Tensor | None = None

    @property
    def finite(self) -> bool:
        return self._finite is None or bool(self._finite)

    def tensors(self) -> list[Tensor]:
        """One per parameter, zero where no row reached it."""
        return [self._of(self.sums, name) for name in self._names]

    def raw_tensors(self) -> list[Tensor] | None:
        if self.raw_bound is None:
            return None
        return [self._of(self.raw, name) for name in self._names]

    def _of(self, sums: Mapping[str, Tensor], name: str) -> Tensor:
        p = self._names[name]
        if name in sums:
            return sums[name]
        return torch.zeros(p.shape, dtype=accumulator(p), device=p.device)

    def clear(self) -> None:
        self.sums, self.raw, self.squares, self._finite = {}, {}, None, None
        self.start([])

    def start(
        self, feeds: Iterable[Iterable[str]], *, more: bool = False, last: bool = True
    ) -> None:
        """more: this pass adds to the rows of the one before; last: no other pass will."""
        for group in self._groups:
            group.factors = group.factors if more else {}
            group.pending, group.open = 0, not last
        for names in feeds:
            for group in self._fed(names):
                group.pending += 1

    def arrive(self, factors: Mapping[str, Sequence[Factor]]) -> None:
        for name, uses in factors.items():
            self._group_of[name].factors.setdefault(name, []).extend(uses)
        for group in self._fed(factors):
            group.pending -= 1
            if group.pending == 0 and not group.open:
                self._close(group)

    def finish(self) -> None:
        """Close the groups of which some use was not reached by the losses."""
        for group in self._groups:
            if group.factors:
                self._close(group)

    def _fed(self, names: Iterable[str]) -> list[_Group]:
        return list(dict.fromkeys(self._group_of[name] for name in names))

    @torch.no_grad()
    def _close(self, group: _Group) -> None:
        factors, group.factors = group.factors, {}
        norms = squared_norms(list(factors.values())).sqrt()  # [B]
        weights = group.weighting(norms)
        finite = torch.isfinite(norms + weights).all()
        self._finite = finite if self._finite is None else self._finite & finite
        if self.measured:
            squares = (weights * norms).square().sum()
            self.squares = squares if self.squares is None else self.squares + squares
        if self.raw_bound is not None:
            bound = self.raw_bound * group.share
            bounded = (bound / norms).clamp(max=1.0)
            add_weighted(self.raw, dict(factors), bounded * self._scale)
        add_weighted(self.sums, factors, weights * self._scale)


class _Group:
    """Parameters clipped together, and the factors that have arrived so far."""

    def __init__(self, weighting: RowWeighting, share: float):
        self.weighting, self.share = weighting, share  # share = R_m / R
        self.factors: dict[str, list[Factor]] = {}
        self.pending, self.open = 0, False  # open: the rows go on in another pass


def add_weighted(
    sums: dict[str, Tensor], factors: dict[str, list[Factor]], weights: Tensor
) -> None:
    """sums[name] += sum_i w_i g_i for each parameter. The factors are consumed in the order of
    their arrival: the first holds most of the memory that can be given back."""
    while factors:
        name = next(iter(factors))
        uses = factors.pop(name)
        total = weighted_sum(uses, weights)
        if name in sums:
            sums[name] += total
        else:
            sums[name] = total
