"""One-pass book-keeping: the sum of clipped per-sample gradients at the cost of a plain step.

Bu, Wang, Zha, Karypis, "Differentially private optimization on large model at small cost", arXiv
2210.00038 (book-keeping, ghost differentiation); Bu et al., arXiv 2310.19215 (group-wise clipping).

| symbol | here |
|---|---|
| h_l, dy_l | input and output gradient of a layer, delivered by its cut (`tape`, `cuts`) |
| g_i^(m) | row i of the factors of group m's parameters |
| C_{i,m} | the weighting with bound R_m, in `ClippedSum` |
| B | `expected_batch`: a constant, so that the divisor says nothing about who took part |

    forward         hooks put a cut behind every layer, which saves h_l
    backward, once  autograd.grad(losses, anchor of the cuts): output gradients, no weight gradients
      per cut       factors of its parameters from (h_l, dy_l); a complete group is clipped, freed
    take            sums / B with sensitivity R / B, R^2 = sum_m R_m^2
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from steelyard.rows.adaptation import Adaptation
from steelyard.rows.clipped_sum import ClippedSum
from steelyard.rows.groups import Groups
from steelyard.rows.losses import Losses, check, evaluations
from steelyard.rows.recording import Recording
from steelyard.rows.reference import per_row_gradients
from steelyard.rows.uses import Arrival
from steelyard.types import Clipped, Points, RowWeighting

if TYPE_CHECKING:
    from steelyard.checks.findings import SelfCheck


class PerSample:
    """Rows = samples. `rows.backward(losses)` takes the place of `losses.mean().backward()`.

    model: any module whose samples do not mix. weighting: a clipping rule. expected_batch: B, the
    expected logical batch size. groups, shares: see `steelyard.rows.groups`. engine: "auto" (fast
    rules; where they do not reach, the reference engine takes over with a warning) or "reference".
    strict: raise instead of taking over.

    Guarantees: the tensors of `take` move by at most R / B (L2, all together) when one sample is
    added to or removed from the step; un-noised sums are never put into `.grad`. The first batches
    prove coverage and independence (`steelyard.rows.proof`).

    | case | behaviour |
    |---|---|
    | empty batch | arms the step; every sum is zero |
    | several `backward` before a step | micro-batches of one logical batch: sums add up |
    | tied weights, module called twice | cross terms exact |
    | a parameter outside any layer | the module's own code is run again (`frames`) |
    | non-finite row | `take` raises; nothing was released |

    Raises ValueError for BatchNorm and other layers that mix samples, for a model without
    trainable parameters, and for groups that do not fit it.
    """

    def __init__(
        self,
        model: nn.Module,
        weighting: RowWeighting,
        *,
        expected_batch: float,
        groups: Groups = "all",
        shares: Sequence[float] | None = None,
        engine: str = "auto",
        strict: bool = False,
    ):
        if not expected_batch > 0:
            raise ValueError(f"the expected batch size must be positive, found {expected_batch}")
        if engine not in ("auto", "reference"):
            raise ValueError(f"unknown engine {engine!r}: choose auto or reference")
        self._expected_batch = float(expected_batch)
        self._model, self._strict = model, strict
        self._again = partial(
            PerSample, model, weighting, expected_batch=expected_batch, groups=groups,
            shares=shares, engine=engine, strict=strict,
        )  # fmt: skip
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            raise ValueError(
                f"{type(model).__name__} averages gradients over devices before they are clipped: "
                "give the rows the module inside it"
            )
        self._names = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._names:
            raise ValueError("the model has no trainable parameter: nothing to do in private")
        self._weighting, self._partition = weighting, (groups, shares)
        self.points: Points | None = None  # where a filter wants the gradients evaluated
        self.raw_bound: float | None = None  # `take` then brings `Clipped.raw`, bounded by this
        self._sum = ClippedSum(self._names, weighting, groups, shares, self.expected_batch)
        self._into: ClippedSum | None = None  # where the rows of the backward in progress go
        self._armed = False
        self._batch = 0  # samples of the backward in progress
        self._see: Callable[[Arrival], None] = self._feed  # what becomes of arriving gradients
        self._seen = False  # whether anything has arrived in this pass
        self._fast = engine == "auto"
        self._adaptation = Adaptation(model, self._names)
        self._recording = Recording(model, self._adaptation.layout, self._arrive)
        self._before: Recording | None = None  # of the layout before this one

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._names.values())

    @property
    def names(self) -> list[str]:
        return list(self._names)

    # what the sums were made with; read-only, or the sensitivity would not be theirs
    @property
    def expected_batch(self) -> float:
        return self._expected_batch

    weighting = property(lambda self: self._weighting)
    sensitivity = property(lambda self: self._weighting.bound / self._expected_batch)  # of `take`

    @property
    def engine(self) -> str:
        return "book-keeping" if self._fast else "reference"  # where that took over

    @property
    def armed(self) -> bool:
        """Whether a `backward` came since the last `take`."""
        return self._armed

    def backward(self, losses: Losses, *, into: ClippedSum | None = None) -> None:
        """Add the clipped rows of these losses [B] to the step's sums.

        losses[i] must be a function of sample i alone (for sequences: a sum or mean over its own
        tokens), not divided by the batch size. A function that computes them may be given instead,
        and must be where a filter looks ahead (`points`). into: a `new_sum` for the rows of public
        samples; the step stays as it was. Raises ValueError otherwise; the step's sums are then
        dropped.
        """
        if self._into is not None:
            raise RuntimeError("rows.backward inside rows.backward: call them one after the other")
        self._into = self._sum if into is None else into
        self._sum.raw_bound = self.raw_bound
        try:
            with closing(evaluations(losses, self.points)) as found:
                for k, (weight, here, last) in enumerate(found):
                    check(here, self._model, self._names)
                    if len(here):
                        self._recording.check(len(here))
                        self._evaluate(weight, here, more=k > 0, last=last)
            self._armed = self._armed or into is None
        except BaseException:
            self.discard()
            if into is not None:
                into.clear()
            raise
        finally:
            self._recording.clear()
            self._into = None

    def new_sum(
        self, *, expected_batch: float, weighting: RowWeighting | None = None
    ) -> ClippedSum:
        """An empty sum over the same parameters and groups, for `backward(..., into=sum)`: public
        rows. weighting: the rows' own unless given."""
        own = self.weighting if weighting is None else weighting
        return ClippedSum(self._names, own, *self._partition, expected_batch)

    def take(self) -> Clipped:
        """The step's clipped mean; disarms. Raises FloatingPointError if a row was not finite."""
        if not self._armed:
            raise RuntimeError("no rows.backward(losses) since the last step")
        taken = Clipped(self._sum.tensors(), self.sensitivity, self._sum.raw_tensors())
        finite = self._sum.finite
        self.discard()
        if not finite:
            ahead = "; if it goes on, reset() the filter that looks ahead" if self.points else ""
            raise FloatingPointError(
                "a sample's gradient is not finite (nan or inf): check the inputs, or lower the "
                f"learning rate; nothing was released{ahead}"
            )
        return taken

    def discard(self) -> None:
        """Forget the sums since the last step."""
        self._armed = False
        self._sum.clear()
        self._recording.clear()

    def self_check(
        self, losses_of: Callable[..., Tensor], *batch: Any, **options: Any
    ) -> SelfCheck:
        """Tests on one batch what the guarantee rests on, and says in words what was found.

        losses_of(*batch) -> losses [B], through the model. options: `steelyard.checks.self_check`.
        Model and generators are left as they were. Raises RuntimeError between backward and step.
        """
        from steelyard.checks import self_check

        if self._armed:
            raise RuntimeError("self_check between rows.backward and the step: call it before")
        try:
            with self._again() as twin:  # the check takes steps, and would use up the proof
                return self_check.check(twin, self._model, losses_of, batch, **options)
        finally:
            self.discard()

    def close(self) -> None:
        """Remove every hook from the model."""
        self.discard()
        self._recording.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _evaluate(self, weight: float, losses: Tensor, *, more: bool, last: bool) -> None:
        """The rows of one evaluation, times its weight. more: they join those of another one."""
        self._batch = len(losses)
        # norms and sums in float32 also where the caller computes in half precision
        with torch.autocast(losses.device.type, enabled=False):
            due = self._adaptation.due(self._recording.uses, len(losses))
            fast = self._try(losses) if due else self._fast
            self._add(weight, losses, fast=fast, more=more, last=last)
        self._recording.clear()

    def _add(self, weight: float, losses: Tensor, *, fast: bool, more: bool, last: bool) -> None:
        into = self._into
        assert into is not None
        if fast:
            into.start((use.names for use in self._recording.uses), more=more, last=last)
            self._pass(losses, torch.full_like(losses, weight), self._feed, retain=False)
            if not self._seen:
                raise ValueError(
                    "the losses reach no layer of the model that was recorded: compute them from a "
                    "forward pass made after the rows, with gradients enabled (and checkpoint "
                    "with use_reentrant=False)"
                )
        else:
            rows = per_row_gradients(losses * weight, self.parameters)
            into.start([self._names], more=more, last=last)
            into.arrive({name: [row] for name, row in zip(self._names, rows, strict=True)})
        if last:
            into.finish()

    def _pass(
        self, losses: Tensor, weights: Tensor, see: Callable[[Arrival], None], *, retain: bool
    ) -> None:
        """One backward through the graph that only brings output gradients to `see`."""
        self._see, self._seen = see, False
        try:
            self._recording.backward(losses, weights, retain=retain)
        finally:
            self._see = self._feed

    @torch.no_grad()
    def _arrive(self, arrival: Arrival) -> None:
        """Inside the backward pass: the gradients of something recorded are complete."""
        self._seen = True
        self._see(arrival)

    def _feed(self, arrival: Arrival) -> None:
        self._adaptation.arrived(arrival, self._batch)
        assert self._into is not None
        self._into.arrive(arrival.factors(self._batch))

    def _try(self, losses: Tensor) -> bool:
        """A batch with something new: whether it may go through the fast rules."""
        found = self._adaptation.judge(
            losses, partial(self._pass, losses, retain=True), fast=self._fast
        )
        if found is None:
            return self._fast
        if not self._seen and self._before is not None and self._before.uses:
            return False  # recorded before the layout changed
        if self._adaptation.adapt(found, losses, self._recording.sizes):
            self._recording.close()
            self._before = self._recording
            self._recording = Recording(self._model, self._adaptation.layout, self._arrive)
        else:
            self._take_over(found.reason)
        return False

    def _take_over(self, reason: str) -> None:
        if self._strict:
            raise ValueError(
                f"{reason}: strict refuses the slow reference engine; freeze those parameters, or "
                "drop strict"
            )
        warnings.warn(
            f"{reason}: the reference engine takes over, one backward pass per sample (slow, exact)"
        )
        self._fast = False
