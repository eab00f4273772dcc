"""One-pass book-keeping: the sum of clipped per-sample gradients at the cost of a plain step.

Bu, Wang, Zha, Karypis, "Differentially private optimization on large model at small cost", arXiv
2210.00038 (book-keeping, ghost differentiation); Bu et al., arXiv 2310.19215 (group-wise clipping).

| symbol | here |
|---|---|
| h_l, dy_l | `Use.x`, the output gradient that its tensor hook receives |
| g_i^(m) | the factors of group m's parameters, row i |
| C_{i,m} | `weighting.with_bound(R_m)(norms)` |
| B | `expected_batch`: a constant, so that the divisor says nothing about who took part |

    forward            hooks keep h_l
    backward, once     autograd.grad(losses, earliest outputs): output gradients only, no weight gradient
      per use          factors of its parameters from (h_l, dy_l)
      group complete   norm_i = sqrt(sum ||g_i||^2), C_i = C(norm_i), sum += sum_i C_i g_i; free
    take               sums / B with sensitivity R / B, R^2 = sum_m R_m^2
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from steelyard.rows import proof
from steelyard.rows.factors import Factor, squared_norms, weighted_sum
from steelyard.rows.groups import Groups, bounds, partition
from steelyard.rows.layers import Rule, rule_for
from steelyard.rows.reference import accumulator, per_row_gradients
from steelyard.rows.tape import BatchMismatchError, Tape, Use, earliest
from steelyard.types import Clipped, RowWeighting


class PerSample:
    """Rows = samples. Call `rows.backward(losses)` where a plain loop calls `losses.mean().backward()`.

    model: any module whose samples do not mix. weighting: a clipping rule. expected_batch: B, the
    expected logical batch size. groups, shares: see `steelyard.rows.groups`. engine: "auto" (the fast
    rules; the reference engine takes over with a warning where they do not reach), "reference".
    strict: raise instead of taking over.

    Guarantees: the tensors of `take` move by at most R / B (L2, all together) when one sample is added to
    or removed from the step; un-noised sums are never put into `.grad`. On the first batches the engine
    proves coverage and independence (`steelyard.rows.proof`).

    | case | behaviour |
    |---|---|
    | empty batch | arms the step; every sum is zero |
    | several `backward` before a step | micro-batches of one logical batch: sums add up |
    | tied weights, module called twice | cross terms exact |
    | non-finite row | `take` raises; nothing was released |

    Raises ValueError for BatchNorm and other layers that mix samples, no trainable parameter, bad groups.
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
        self._model = model
        self._strict = strict
        self._names = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._names:
            raise ValueError("the model has no trainable parameter: nothing to do in private")
        lists = partition(self._names, groups)
        self._bound = weighting.bound
        self._groups = [
            _Group(names, weighting.with_bound(share))
            for names, share in zip(lists, bounds(len(lists), weighting.bound, shares), strict=True)
        ]
        self._group_of = {name: group for group in self._groups for name in group.names}
        self._sums: dict[str, Tensor] = {}
        self._finite: Tensor | None = None
        self._armed = False
        self._batch = 0  # samples of the backward in progress
        self._clipping = True
        self._proof = proof.Proof(self._names)
        layers, uncovered = _layers(model, self._names)
        self._tape: Tape | None = None
        if engine == "auto":
            if uncovered:
                self._take_over(f"no rule for {_listed(uncovered)}")
            else:
                self._tape = Tape(model, layers, self._arrive)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._names.values())

    @property
    def names(self) -> list[str]:
        return list(self._names)

    @property
    def engine(self) -> str:
        """ "book-keeping", or "reference" where that took over."""
        return "reference" if self._tape is None else "book-keeping"

    @property
    def armed(self) -> bool:
        """Whether a `backward` came since the last `take`."""
        return self._armed

    def backward(self, losses: Tensor) -> None:
        """Add the clipped rows of these losses [B] to the step's sums.

        losses[i] must be a function of sample i alone (for sequences: a sum or mean over its own
        tokens), not divided by the batch size. Raises ValueError otherwise.
        """
        try:
            self._check(losses)
            if len(losses) > 0:
                self._batch = len(losses)
                self._prove_then_add(losses)
            self._armed = True
        except BaseException:
            self.discard()
            raise
        finally:
            if self._tape is not None:
                self._tape.clear()

    def take(self) -> Clipped:
        """The step's clipped mean, and disarm. Raises FloatingPointError if a row was not finite."""
        if not self._armed:
            raise RuntimeError("no rows.backward(losses) since the last step")
        finite = self._finite is None or bool(self._finite)
        tensors = [
            self._sums[name]
            if name in self._sums
            else torch.zeros_like(p, dtype=accumulator(p), memory_format=torch.contiguous_format)
            for name, p in self._names.items()
        ]
        self.discard()
        if not finite:
            raise FloatingPointError(
                "a sample's gradient is not finite (nan or inf): check the inputs, or lower the "
                "learning rate; nothing was released"
            )
        return Clipped(tensors, self._bound / self.expected_batch)

    def discard(self) -> None:
        """Forget the forwards and the sums since the last step."""
        self._sums, self._finite, self._armed = {}, None, False
        for group in self._groups:
            group.reset(0)
        if self._tape is not None:
            self._tape.clear()

    def close(self) -> None:
        """Remove every hook from the model."""
        self.discard()
        if self._tape is not None:
            self._tape.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one backward ---------------------------------------------------------------------------

    def _check(self, losses: Tensor) -> None:
        if losses.dim() != 1:
            raise ValueError(
                f"losses must have shape [B], one per sample; found {list(losses.shape)}: use "
                'reduction="none" and average over each sample\'s own positions only'
            )
        if len(losses) and losses.grad_fn is None:
            raise ValueError("losses do not depend on a trainable parameter (no grad_fn)")
        now = [n for n, p in self._model.named_parameters() if p.requires_grad]
        if now != list(self._names):
            changed = set(now) ^ set(self._names)
            raise ValueError(
                f"requires_grad changed since the rows were made: {_listed(sorted(changed))}; close "
                "them and make new ones"
            )

    def _prove_then_add(self, losses: Tensor) -> None:
        if not self._proof.done:
            self._proof.independence(losses, self._frontier(losses))
            if self._tape is not None:
                reason = self._coverage(losses)
                if reason:
                    self._take_over(reason)
        if self._tape is None:
            factors = per_row_gradients(losses, self.parameters)
            for group in self._groups:
                group.reset(0)
            for name, factor in zip(self._names, factors, strict=True):
                self._group_of[name].factors[name] = [factor]
            self._finish()
        else:
            self._run(losses, retain=False)

    def _run(self, losses: Tensor, *, retain: bool) -> None:
        assert self._tape is not None
        uses = self._tape.uses
        for group in self._groups:
            group.reset(sum(1 for use in uses if group in self._fed_by(use)))
        self._tape.replaying = True
        try:
            edges = self._frontier(losses)
            if edges:
                ones = torch.ones_like(losses)
                torch.autograd.grad(losses, edges, ones, retain_graph=retain)
        finally:
            self._tape.replaying = False
        self._finish()

    def _frontier(self, losses: Tensor) -> Sequence:
        return earliest(losses, self._tape.uses) if self._tape is not None else []

    def _arrive(self, use: Use, dy: Tensor) -> None:
        """A tensor hook: the output gradient of one use is complete."""
        if self._tape is None or not self._tape.replaying:
            return  # somebody else's backward
        with torch.no_grad():
            for name, factor in use.factors(dy, self._batch).items():
                self._group_of[name].factors.setdefault(name, []).append(factor)
            for group in self._fed_by(use):
                group.pending -= 1
                if group.pending == 0:
                    self._close_group(group)

    def _fed_by(self, use: Use) -> list[_Group]:
        return list(dict.fromkeys(self._group_of[name] for name in use.wanted.values()))

    @torch.no_grad()
    def _finish(self) -> None:
        for group in self._groups:  # uses that the losses do not depend on never arrive
            if group.factors:
                self._close_group(group)

    def _close_group(self, group: _Group) -> None:
        """Norm, clip, contract and free one group."""
        factors, group.factors = group.factors, {}
        if self._clipping:
            squares = [squared_norms(uses) for uses in factors.values()]
            norms = torch.stack(squares).sum(0).sqrt()  # [B]
            finite = torch.isfinite(norms).all()
            self._finite = finite if self._finite is None else self._finite & finite
            weights = group.weighting(norms) / self.expected_batch
        else:
            weights = torch.ones(self._batch, device=self.parameters[0].device)
        while factors:
            name, uses = factors.popitem()
            weights = weights.to(_dtype(uses[0]))
            total = weighted_sum(uses, weights)
            del uses
            if name in self._sums:
                self._sums[name] += total
            else:
                self._sums[name] = total

    # -- the first batches ----------------------------------------------------------------------

    def _coverage(self, losses: Tensor) -> str | None:
        """Compare the plain sum of the rows with autograd's gradient; None, or what is wrong."""
        sums, self._sums, self._clipping = self._sums, {}, False
        try:
            self._run(losses, retain=True)
            return self._proof.coverage(losses, self._sums)
        except BatchMismatchError as error:
            return str(error)
        finally:
            self._sums, self._clipping = sums, True

    def _take_over(self, reason: str) -> None:
        if self._strict:
            raise ValueError(f"{reason}: no fast per-sample rule (strict)")
        warnings.warn(
            f"{reason}: the reference engine takes over, one backward pass per sample (slow, exact)"
        )
        if self._tape is not None:
            self._tape.close()
        self._tape = None


class _Group:
    """Parameters clipped together, and the factors that have arrived so far."""

    def __init__(self, names: list[str], weighting: RowWeighting):
        self.names, self.weighting = names, weighting
        self.factors: dict[str, list[Factor]] = {}
        self.pending = 0

    def reset(self, pending: int) -> None:
        self.factors, self.pending = {}, pending


def _layers(
    model: nn.Module, names: dict[str, nn.Parameter]
) -> tuple[dict[str, tuple[nn.Module, Rule, dict[str, str]]], list[str]]:
    """Layers with a rule and a trainable parameter, and the trainable parameters of all others."""
    canonical = {id(p): n for n, p in names.items()}
    layers: dict[str, tuple[nn.Module, Rule, dict[str, str]]] = {}
    uncovered: list[str] = []
    for path, module in model.named_modules():
        try:
            rule = rule_for(module)
        except ValueError as error:
            raise ValueError(f"layer {path!r}: {error}") from None
        own = {
            local: canonical[id(p)]
            for local, p in module.named_parameters(recurse=False)
            if id(p) in canonical
        }
        if own and rule is None:
            uncovered += own.values()
        elif own and rule is not None:
            layers[path] = (module, rule, own)
    return layers, uncovered


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _dtype(factor: Factor) -> torch.dtype:
    return getattr(factor, "rows", getattr(factor, "left", getattr(factor, "dy", None))).dtype
