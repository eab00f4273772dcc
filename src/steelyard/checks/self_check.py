"""The self-check: does the guarantee hold for this model, this loss and this batch? In plain words.

Private training rests on three claims about a user's own code that no type can make: every
trainable number is covered by the rows, one sample moves the step by at most R / B, and no sample
enters the loss, or the saved model, of another. Here each is tested by running the model.

| finding | file |
|---|---|
| coverage, exactness, sensitivity: what the engine does | `check_rows.py`, `probe.py` |
| influence, buffers: what the model does | `check_samples.py` |
| repeatable runs on parts of a batch | `trial.py`, `restore.py` |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from steelyard.checks.check_rows import coverage, exactness, largest, sensitivity
from steelyard.checks.check_samples import buffers, influence
from steelyard.checks.findings import Finding, SelfCheck
from steelyard.checks.probe import Probing
from steelyard.checks.trial import Trial
from steelyard.rows.per_sample import PerSample

__all__ = ["Finding", "SelfCheck", "check"]

EXTREME = 1e3  # far outside of any data, and no overflow in float32


def check(
    rows: PerSample,
    model: nn.Module,
    losses_of: Callable[..., Tensor],
    batch: Sequence[Any],
    *,
    samples: int = 8,
    seed: int = 0,
    extreme: float | None = EXTREME,
) -> SelfCheck:
    """Tests what the privacy of a step rests on, on one batch, and says what was found.

    rows: made for `model`; steps are taken with them, so their proof of the first batches is over
    afterwards: give rows made for the check. losses_of(*batch) -> [B]: the loss of each sample,
    through `model`. batch: any structure of tensors (tuples, lists, mappings, dataclasses); those
    whose first dimension is B are cut by samples, all else is passed on. samples: how many are left
    out one by one, and have their norms checked. extreme: the factor by which floating-point inputs
    of a sample are scaled to make it extreme; None leaves that out.

    Cost: about 2 * samples + 10 steps, `samples` backward passes, 2 log2(B) + 15 forward passes.

    Guarantees: modes, buffers, `.grad`, parameters, Python's, NumPy's and torch's global random
    generators are afterwards as before; nothing is released. One batch is looked at: the check can
    show that something is wrong, never that nothing is.

    | case | behaviour |
    |---|---|
    | dropout | same seeds in runs of equal shape; parts of the batch in eval mode |
    | random in eval mode too | a sample's loss counts zero times instead of being removed |
    | the rows refuse the step | a failed finding with their words |
    | half precision, GPU | wider tolerances (5 %, 1 %), stated in the text |

    Raises ValueError for armed rows, rows of another model, losses that are not [B], not finite or
    not repeatable, and a batch without samples to compare.
    """
    if samples < 1:
        raise ValueError(f"the check needs at least one sample to leave out, found {samples}")
    if not isinstance(batch, list | tuple):
        raise ValueError(
            f"the batch must be a tuple of the arguments of losses_of, found a "
            f"{type(batch).__name__}: write (batch,)"
        )
    if rows.armed:
        raise ValueError(
            "the rows hold a gradient that no step has taken: call optimizer.step() or "
            "rows.discard() before the check"
        )
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if trainable != {id(p) for p in rows.parameters}:
        raise ValueError(
            "the rows were not made for this model, or its trainable parameters have changed: "
            "make new rows"
        )
    with Trial(rows, model, losses_of, batch, seed) as trial:
        with Probing(trial) as probing:
            chosen = largest(trial, probing, samples)
            findings = [coverage(trial, probing), exactness(trial, probing, chosen)]
        findings += [sensitivity(trial, chosen, extreme), influence(trial), buffers(trial)]
    return SelfCheck(findings=tuple(findings))
