"""One-pass book-keeping: the sum of clipped per-sample gradients at the cost of a plain step.

Bu, Wang, Zha, Karypis, "Differentially private optimization on large model at small cost", arXiv
2210.00038 (book-keeping, ghost differentiation); Bu et al., arXiv 2310.19215 (group-wise clipping).

| symbol | here |
|---|---|
| h_l, dy_l | `Use.x`, and the output gradient that its tensor hook receives |
| g_i^(m) | row i of the factors of group m's parameters |
| C_{i,m} | the weighting with bound R_m, in `ClippedSum` |
| B | `expected_batch`: a constant, so that the divisor says nothing about who took part |

    forward         hooks keep h_l
    backward, once  autograd.grad(losses, earliest outputs): output gradients, no weight gradients
      per use       factors of its parameters from (h_l, dy_l); a complete group is clipped and
      freed
    take            sums / B with sensitivity R / B, R^2 = sum_m R_m^2
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.parallel import DistributedDataParallel

from steelyard.rows.clipped_sum import ClippedSum, add_weighted
from steelyard.rows.groups import Groups
from steelyard.rows.proof import Proof
from steelyard.rows.reference import accumulator, per_row_gradients
from steelyard.rows.tape import BatchMismatchError, Tape, Use, earliest, find_layers
from steelyard.types import Clipped, RowWeighting


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
        self.expected_batch = float(expected_batch)
        self._model, self._strict = model, strict
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            raise ValueError(
                f"{type(model).__name__} averages gradients over devices before they are clipped: "
                "give the rows the module inside it"
            )
        self._names = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._names:
            raise ValueError("the model has no trainable parameter: nothing to do in private")
        self._sensitivity = weighting.bound / self.expected_batch
        self._sum = ClippedSum(self._names, weighting, groups, shares, self.expected_batch)
        self._armed = False
        self._batch = 0  # samples of the backward in progress
        self._see = self._feed  # what becomes of the output gradients as they arrive
        self._proof = Proof(self._names)
        layers, uncovered = find_layers(model, self._names)
        self._tape = Tape(model, layers, self._arrive)
        self._fast = engine == "auto"
        if self._fast and uncovered:
            self._take_over(f"no rule for {listed(uncovered)}")

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._names.values())

    @property
    def names(self) -> list[str]:
        return list(self._names)

    @property
    def engine(self) -> str:
        """`book-keeping`, or `reference` where that took over."""
        return "book-keeping" if self._fast else "reference"

    @property
    def armed(self) -> bool:
        """Whether a `backward` came since the last `take`."""
        return self._armed

    def backward(self, losses: Tensor) -> None:
        """Add the clipped rows of these losses [B] to the step's sums.

        losses[i] must be a function of sample i alone (for sequences: a sum or mean over its own
        tokens), not divided by the batch size. Raises ValueError otherwise; the step's sums are
        then dropped.
        """
        try:
            self._check(losses)
            if len(losses) > 0:
                self._batch = len(losses)
                # norms and sums in float32 also where the caller computes in half precision
                with torch.autocast(losses.device.type, enabled=False):
                    if not self._proof.done:
                        self._prove(losses)
                    self._add(losses)
            self._armed = True
        except BaseException:
            self.discard()
            raise
        finally:
            self._tape.clear()

    def take(self) -> Clipped:
        """The step's clipped mean; disarms. Raises FloatingPointError if a row was not finite."""
        if not self._armed:
            raise RuntimeError("no rows.backward(losses) since the last step")
        finite, sums = self._sum.finite, self._sum.sums
        self.discard()
        if not finite:
            raise FloatingPointError(
                "a sample's gradient is not finite (nan or inf): check the inputs, or lower the "
                "learning rate; nothing was released"
            )
        tensors = [
            sums[name]
            if name in sums
            else torch.zeros(p.shape, dtype=accumulator(p), device=p.device)
            for name, p in self._names.items()
        ]
        return Clipped(tensors, self._sensitivity)

    def discard(self) -> None:
        """Forget the forwards and the sums since the last step."""
        self._armed = False
        self._sum.clear()
        self._tape.clear()

    def close(self) -> None:
        """Remove every hook from the model."""
        self.discard()
        self._tape.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one backward ------------------------------------------------------------------------

    def _check(self, losses: Tensor) -> None:
        if losses.dim() != 1:
            raise ValueError(
                f"losses must have shape [B], one per sample; found {list(losses.shape)}: use "
                'reduction="none" and average over each sample\'s own positions only'
            )
        if len(losses):
            self._tape.check(len(losses))
        if len(losses) and losses.grad_fn is None:
            raise ValueError("losses do not depend on a trainable parameter (no grad_fn)")
        now = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        names = now.keys() | self._names.keys()
        changed = sorted(n for n in names if now.get(n) is not self._names.get(n))
        if changed:
            raise ValueError(
                f"trainable parameters changed since the rows were made: {listed(changed)}; close "
                "the rows and make new ones"
            )

    def _add(self, losses: Tensor) -> None:
        if self._fast:
            edges = earliest(losses, self._tape.uses)
            if not edges:
                raise ValueError(
                    "the losses reach no layer that was called since the last rows.backward: call "
                    "it once for each forward pass, before the next one's"
                )
            self._sum.start(use.wanted.values() for use in self._tape.uses)
            self._pass(losses, edges, torch.ones_like(losses), retain=False)
        else:
            rows = per_row_gradients(losses, self.parameters)
            self._sum.start([self._names])
            self._sum.arrive(dict(zip(self._names, rows, strict=True)))
        self._sum.finish()

    def _pass(
        self, losses: Tensor, edges: Sequence[GradientEdge], weights: Tensor, *, retain: bool
    ) -> None:
        """One backward through the graph that only brings output gradients to `_arrive`."""
        with self._tape.replay():
            torch.autograd.grad(losses, edges, weights, retain_graph=retain)

    @torch.no_grad()
    def _arrive(self, use: Use, dy: Tensor) -> None:
        """A tensor hook: the output gradient of one use is complete."""
        if self._tape.replaying:  # otherwise it is somebody else's backward
            self._see(use, dy)

    def _feed(self, use: Use, dy: Tensor) -> None:
        factors = use.factors(dy, self._batch)
        use.release()
        self._sum.arrive(factors)

    # -- the first batches -------------------------------------------------------------------

    def _prove(self, losses: Tensor) -> None:
        self._proof.independence(losses, partial(self._rehearse, losses))
        if self._fast:
            reason = self._difference(losses)
            if reason:
                self._take_over(reason)
        else:
            self._proof.count()

    def _difference(self, losses: Tensor) -> str | None:
        """What differs between the plain sum of the rows and autograd's gradient, if anything."""
        sums: dict[str, Tensor] = {}
        ones = torch.ones(len(losses), device=losses.device, dtype=accumulator(losses))

        def see(use: Use, dy: Tensor) -> None:
            factors = use.factors(dy, self._batch)
            add_weighted(sums, {name: [factor] for name, factor in factors.items()}, ones)

        try:
            self._rehearse(losses, torch.ones_like(losses), see)
        except BatchMismatchError as error:
            return str(error)
        rough = any(use.rough for use in self._tape.uses)
        return self._proof.coverage(losses, sums, rough=rough)

    def _rehearse(
        self, losses: Tensor, weights: Tensor, see: Callable[[Use, Tensor], None]
    ) -> None:
        """A backward pass that keeps the graph, and shows every output gradient to `see`."""
        edges = earliest(losses, self._tape.uses)
        if not edges:
            return
        self._see = see
        try:
            self._pass(losses, edges, weights, retain=True)
        finally:
            self._see = self._feed

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


def listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
