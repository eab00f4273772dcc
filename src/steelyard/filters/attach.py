"""Connect private rows to any torch optimizer: a step pre-hook, nothing else.

    optimizer.step()
      -> hook: take the clipped gradient, pay the ledger, add the noise, filter, write `.grad`
      -> the optimizer's own step, untouched

| situation | behaviour |
|---|---|
| step without a backward | RuntimeError, unless every learning rate is 0 (see below) |
| two steps for one backward | the second raises |
| step(closure) | RuntimeError: the closure's backward would run behind the noise |
| a gradient that is not from the rows | RuntimeError: it would be released without noise |
| budget used up | the ledger raises; parameters and ledger are unchanged, gradients are dropped |

torch.distributed.checkpoint initialises optimizer states by a step with every learning rate 0.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steelyard.filters.chain import charges
from steelyard.types import Accountant, Connected, Mechanism, Removable, Rows, Stateful

# private optimizers, each with the parts of its mechanism
_PRIVATE: weakref.WeakKeyDictionary[Optimizer, list[Any]] = weakref.WeakKeyDictionary()


def is_private(optimizer: Optimizer) -> bool:
    """Whether its steps are private releases: whatever looks at its losses must ask."""
    return optimizer in _PRIVATE


def step_watchers(optimizer: Optimizer) -> list[Any]:
    """Attached parts that measure where a step has moved (`watches_steps`): whoever changes the
    parameters behind the step must `reset()` them."""
    parts = _PRIVATE.get(optimizer, [])
    return [part for part in parts if getattr(part, "watches_steps", False)]


class Attached:
    """The connection made by `attach`; `detach()` undoes it."""

    def __init__(
        self,
        optimizer: Optimizer,
        rows: Rows,
        mechanism: Mechanism,
        ledger: Accountant | None,
        sampling_probability: float | None,
    ):
        self._rows, self._mechanism = rows, mechanism
        self._ledger, self._sampling_probability = ledger, sampling_probability
        self._written: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._optimizer = weakref.ref(optimizer)
        self._handles: list[Removable] = [optimizer.register_step_pre_hook(self._before_step)]
        try:
            for part in (parts := list(getattr(mechanism, "parts", [mechanism]))):
                if isinstance(part, Connected):
                    self._handles += part.connect(optimizer, rows)
        except BaseException:
            self.detach()
            raise
        _PRIVATE[optimizer] = parts

    def detach(self) -> None:
        """Remove the hooks; the optimizer is as it was."""
        optimizer = self._optimizer()
        if optimizer is not None:
            _PRIVATE.pop(optimizer, None)
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # the hook receives step's own arguments, with the optimizer first among them
        closure = kwargs.get("closure") or next((a for a in args if a is not optimizer), None)
        if closure is not None:
            raise RuntimeError(
                "optimizer.step(closure) would run a backward behind the noise: call "
                "rows.backward(losses), then optimizer.step()"
            )
        self._refuse_foreign(optimizer)
        still = all(float(group["lr"]) == 0 for group in optimizer.param_groups)
        if still and (not self._rows.armed or self._zeros_of_others(optimizer)):
            return
        if not self._rows.armed:
            raise RuntimeError(
                "optimizer.step() without rows.backward(losses) since the last step: call it "
                "first, with the empty losses of an empty batch too"
            )
        try:
            gradient = self._rows.take()
            if self._ledger is not None:
                self._pay(self._ledger)
            released = self._mechanism.privatise(gradient)
        except BaseException:
            for p in self._rows.parameters:
                p.grad = None
            for part in getattr(self._mechanism, "parts", []):
                if (discard := getattr(part, "discard", None)) is not None:
                    discard()
            raise
        self._written = {}
        for p, tensor in zip(self._rows.parameters, released.tensors, strict=True):
            p.grad = tensor.to(p.dtype).view_as(p)
            self._written[id(p)] = (weakref.ref(p.grad), p.grad._version)

    def _pay(self, ledger: Accountant) -> None:
        """All that one step releases, or nothing."""
        assert self._sampling_probability is not None
        parts = charges(self._mechanism, self._sampling_probability)
        before = ledger.state_dict() if len(parts) > 1 and isinstance(ledger, Stateful) else None
        try:
            for sigma, q in parts:
                ledger.charge(noise_multiplier=sigma, sampling_probability=q)
        except BaseException:
            if before is not None and isinstance(ledger, Stateful):
                ledger.load_state_dict(before)
            raise

    def _refuse_foreign(self, optimizer: Optimizer) -> None:
        """What lies in `.grad` and is not our last release (or zero) did not pass the noise."""
        for p in _with_gradient(optimizer):
            assert p.grad is not None
            if not (self._ours(p) and p.grad._version == self._written[id(p)][1]) and p.grad.any():
                raise RuntimeError(
                    f"a parameter of shape {list(p.shape)} has a gradient that did not come from "
                    "rows.backward (a second loss.backward()?): it would be released without "
                    "noise; call optimizer.zero_grad() and pass every private loss to the rows"
                )

    def _zeros_of_others(self, optimizer: Optimizer) -> bool:
        """Gradients that somebody else put there: torch.distributed.checkpoint's, all zero."""
        return any(not self._ours(p) for p in _with_gradient(optimizer))

    def _ours(self, p: Tensor) -> bool:
        return id(p) in self._written and self._written[id(p)][0]() is p.grad


def _with_gradient(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def attach(
    optimizer: Optimizer,
    rows: Rows,
    mechanism: Mechanism,
    *,
    ledger: Accountant | None = None,
    sampling_probability: float | None = None,
) -> Attached:
    """Let every `optimizer.step()` release the rows' gradient through the mechanism, once.

    mechanism: `Gaussian(sigma)` or `chain(Gaussian(sigma), filter, ...)`. ledger: charged before
    each release with (sigma, q); without one, nobody counts. sampling_probability: q; default: the
    plan's.

    Call it on the raw optimizer, before accelerate's `prepare`. Raises ValueError when the
    optimizer holds a parameter that the rows do not cover: it would be updated un-noised.
    """
    covered = {id(p) for p in rows.parameters}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad and id(p) not in covered:
                raise ValueError(
                    f"the optimizer holds a trainable parameter of shape {list(p.shape)} that "
                    "the rows "
                    "do not cover: it would be updated without noise; give rows and optimizer the "
                    "same model"
                )
    if ledger is None:
        return Attached(optimizer, rows, mechanism, None, None)
    plan, noise = getattr(ledger, "plan", None), getattr(mechanism, "mechanism", mechanism)
    if sampling_probability is None:
        if plan is None:
            raise ValueError("a ledger without a plan needs sampling_probability=q")
        sampling_probability = float(plan.sampling_probability)
        if plan.expected_batch != rows.expected_batch:
            raise ValueError(
                f"the rows divide by {rows.expected_batch:g}, the ledger's plan expects batches of "
                f"{plan.expected_batch:g}: give PerSample the plan's expected_batch"
            )
    wanted = getattr(noise, "sampling", None)  # of a mechanism with an accounting of its own
    if plan is not None and wanted is not None and plan.sampling != wanted:
        raise ValueError(
            f"{type(noise).__name__}'s accounting is for {wanted} sampling, the ledger's plan for "
            f"{plan.sampling}: plan with sampling={wanted!r}"
        )
    attached = Attached(optimizer, rows, mechanism, ledger, sampling_probability)
    if mechanism.seeded:
        ledger.noise_seeded_by_user = True
    assumed, note = getattr(noise, "assumption", None), getattr(ledger, "note_assumption", None)
    if assumed is not None and note is not None:
        note(assumed)
    return attached
