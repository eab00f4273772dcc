"""Does the engine do what the guarantee needs, on this model: coverage, exactness, sensitivity.

| finding | claim | held against |
|---|---|---|
| coverage | sum_i g_i is the gradient, for every trainable parameter | autograd |
| exactness | all norms ||g_i^(p)||, and sum_i w_i g_i for any w | autograd, sample by sample |
| sensitivity | ||sum(S) - sum(S without i)|| <= R / B | the model run on S without i |
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steelyard.checks.findings import Finding, listed
from steelyard.checks.probe import WARM_UP, Probing, norm
from steelyard.checks.trial import Refused, Trial


def coverage(trial: Trial, probing: Probing) -> Finding:
    """sum_i g_i == autograd's gradient of sum_i losses_i, parameter by parameter."""
    try:
        found = probing.measure(torch.ones(trial.size))
    except Refused as error:
        return Finding(name="coverage", passed=False, text=f"The rows refuse this step: {error}.")
    names, errors = trial.rows.names, found.errors
    reached = [g is not None for g in found.truth]
    error, worst = max(zip(errors, names, strict=True))
    differ = [n for n, e in zip(names, errors, strict=True) if not e <= trial.tolerance]
    unreached = [n for n, yes in zip(names, reached, strict=True) if not yes]
    zero = [n for n, g in zip(names, found.truth, strict=True) if g is not None and not norm([g])]
    problems, remarks = [], []
    if found.outside:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in found.outside[:3])
        problems.append(
            f"The losses reach {len(found.outside)} trainable tensor(s) that are no parameters of "
            f"the rows' model (shape {shapes}): whoever trains them releases a gradient without "
            "clipping and without noise. Put them into the model before the rows are made, or "
            "freeze them."
        )
    if differ:
        problems.append(
            f"The rows of {listed(differ)} do not add up to the gradient: what is clipped is not "
            'what is learned. Use engine="reference", or freeze these parameters.'
        )
    if found.notice:
        remarks.append(
            f"On this batch the rows changed their engine by themselves: {found.notice}. That is "
            'exact too; write engine="reference" if it is what you want.'
        )
    if unreached:
        remarks.append(
            f"No gradient reached {listed(unreached)} on this batch: where that is always so, they "
            "are trained by noise alone, and are better frozen."
        )
    if zero:
        remarks.append(
            f"The gradient of {listed(zero)} was exactly zero, which shows nothing about their "
            "rows (a LoRA factor whose partner is still zero, say): check again after some steps."
        )
    tested = (
        f"The sum of all rows, unclipped, was compared with autograd's gradient for each of the "
        f"{len(names)} trainable parameters (engine: {trial.rows.engine}, {trial.mode} mode). The "
        f"largest relative difference is {error:.1e}, in {worst!r}; up to {trial.tolerance:.0e} is "
        "rounding."
    )
    return Finding(
        name="coverage",
        passed=not problems,
        text=" ".join([*problems, tested, *remarks]),
        figures={
            "error": error,
            "differ": differ,
            "unreached": unreached,
            "zero": zero,
            "outside": [list(leaf.shape) for leaf in found.outside],
        },
    )


def exactness(trial: Trial, probing: Probing, chosen: Sequence[int]) -> Finding:
    """The engine's norms and its weighted sum against one backward pass per sample."""
    generator = torch.Generator().manual_seed(trial.seed)
    weights = 0.5 + torch.rand(trial.size, generator=generator)
    try:
        found = probing.measure(weights, chosen)
    except Refused as error:
        return Finding(name="exactness", passed=False, text=f"The rows refuse this step: {error}.")
    whole = found.alone.square().sum(0).sqrt()  # [samples]: of each sample's gradient as a whole
    # a norm that is zero but for rounding (a key's bias under softmax) needs a floor
    size = found.alone.maximum(1e-2 * whole).clamp(min=1e-30)
    errors = (found.norms[:, list(chosen)] - found.alone).abs() / size
    row, column = divmod(int(errors.argmax()), len(chosen))
    of_norms, of_sum = float(errors.max()), max(found.errors)
    passed = of_norms <= trial.tolerance and of_sum <= trial.tolerance
    problem = (
        ""
        if passed
        else "The engine's clipped sum is not that of the slow reference: a norm that is too small "
        'lets a sample past the bound. Use engine="reference", and report the layer. '
    )
    return Finding(
        name="exactness",
        passed=passed,
        text=problem
        + f"The norms of the rows, on which clipping rests, were compared with autograd's, one "
        f"backward pass per sample, for {len(chosen)} of {trial.size} samples. The largest "
        f"relative error is {of_norms:.1e} (sample {chosen[column]}, {trial.rows.names[row]!r}). "
        f"The sum of all rows with random weights differs from autograd's by {of_sum:.1e}. Up to "
        f"{trial.tolerance:.0e} is rounding.",
        figures={
            "norm_error": of_norms,
            "sum_error": of_sum,
            "sample": chosen[column],
            "parameter": trial.rows.names[row],
        },
    )


def largest(trial: Trial, probing: Probing, count: int) -> list[int]:
    """Samples to look at: all if there are no more, else half by norm and half at random."""
    if trial.size <= count:
        return trial.everyone.tolist()
    generator = torch.Generator().manual_seed(trial.seed)
    order = torch.randperm(trial.size, generator=generator)
    try:
        norms = probing.measure(torch.ones(trial.size)).norms.square().sum(0)
    except Refused:
        return order[:count].tolist()
    first = norms.argsort(descending=True)[: (count + 1) // 2]
    rest = order[~torch.isin(order, first)][: count // 2]
    return [*first.tolist(), *rest.tolist()]


def sensitivity(trial: Trial, chosen: Sequence[int], factor: float | None) -> Finding:
    """||sum(S) - sum(S without i)|| <= R / B for the chosen i, as it is and made extreme."""
    factor = factor if trial.floating else None
    with trial.without_chance() as how:
        try:
            ratio, sample, extreme, refused = _moves(trial, chosen, factor, removed=how is not None)
        except Refused as error:
            return Finding(name="sensitivity", passed=False, text=f"The rows refuse: {error}.")
    slack = max(trial.tolerance, 1e-3)
    problem = (
        ""
        if ratio <= 1 + slack
        else f"One sample moves the sum by {ratio:.4g} times the bound R, so the noise is too "
        "small for it and epsilon is not what the ledger says. If another finding failed, begin "
        "there; if none did, the weighting does not clip: some group's weight times norm exceeds "
        "its share of R. "
    )
    far = f", and with its inputs times {factor:g}" if factor else ""
    far += f" ({refused} of these were refused as not finite)" if refused else ""
    how = how or (
        f"in {trial.mode} mode, with the same random numbers and its loss counted zero times (the "
        "losses are random in eval mode too, so that no batch of another size can be compared)"
    )
    return Finding(
        name="sensitivity",
        passed=ratio <= 1 + slack,
        text=problem
        + f"A step was made with and without one sample, for {len(chosen)} of {trial.size} samples"
        f"{far}, {how}. The largest move of the clipped mean is {ratio:.4f} times R / B, by sample "
        f"{sample}{' made extreme' if extreme else ''}; 1 is allowed, and {slack:g} of rounding.",
        figures={"ratio": ratio, "sample": sample, "extreme": extreme, "refused": refused},
    )


def _moves(
    trial: Trial, chosen: Sequence[int], factor: float | None, *, removed: bool
) -> tuple[float, int, bool, int]:
    """The largest move in units of R / B, by which sample, whether made extreme; refusals."""
    worst, refused = (-1.0, chosen[0], False), 0
    for _ in range(WARM_UP):
        trial.taken()
    whole = trial.taken()
    if not math.isfinite(whole.sensitivity):
        raise Refused("the bound is infinite, so nothing limits a sample: give a finite bound")
    for i in chosen:
        others = trial.everyone[trial.everyone != i]
        rest = trial.taken(others) if removed else trial.taken(silent=i)
        moved = distance(whole.tensors, rest.tensors) / whole.sensitivity
        worst = max(worst, (moved, i, False))
        if factor is not None:
            try:
                far = trial.taken(extreme=(i, factor))
            except (Refused, ValueError):  # by the rows, or by losses_of: nothing is released
                refused += 1
                continue
            moved = distance(far.tensors, rest.tensors) / whole.sensitivity
            worst = max(worst, (moved, i, True))
    moved, sample, extreme = worst
    return moved, sample, extreme, refused


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return norm([a.double() - b.double() for a, b in zip(one, other, strict=True)])
