"""Is every sample alone with its loss, and does the model keep nothing of it: influence, buffers.

The proof on the first batches follows gradients. What carries none is invisible to it: a count over
the batch, a detached mean, a statistic of the inputs. Here the losses themselves are compared.

    for every binary digit of the sample's index, and both of its values
        give the samples with that digit other samples' content (same shapes, same seeds)
        the losses of all others must be the same

Any two samples differ in some digit, so 2 log2(B) runs cover every pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steelyard.checks.findings import Finding, listed
from steelyard.checks.restore import same
from steelyard.checks.trial import ULPS, Trial

SHIFTS = 8  # tries for an exchange that leaves no sample with its own content

MEANING = (
    "Adding or removing one sample then changes the rows of others too, the sum can move by more "
    "than R / B, and epsilon is not what the ledger says. Look for a count, a mean or another "
    "statistic over the batch (dividing by all its target tokens or by its size, x - x.mean(0), "
    "class weights counted in it, a detached average): take a constant, or compute it within each "
    "sample."
)


def influence(trial: Trial) -> Finding:
    """Whether some sample's loss moves with another sample's content, or with the batch's size."""
    donors = _donors(trial)
    varied = trial.differing(trial.everyone, donors)
    worst, victim, suspects = 0.0, 0, trial.everyone[:0]
    moved = torch.zeros(trial.size, dtype=torch.bool)
    for bit in range((trial.size - 1).bit_length()):
        for side in (0, 1):
            replaced = ((trial.everyone >> bit) & 1) == side
            excess = _excess(trial, donors, replaced)
            moved |= excess > 1
            if float(excess.max()) > worst:
                worst, victim = float(excess.max()), int(excess.argmax())
                suspects = trial.everyone[replaced]
    alike = int((~varied).sum())
    tested = (
        f"Samples exchanged their content, by each binary digit of their index so that all pairs "
        f"are covered, in {trial.mode} mode with the same shapes and seeds; then the losses of "
        f"those left alone must be the same. "
        + (
            f"The largest change is {worst:.2g} times what rounding ({ULPS} ulp) explains."
            if worst
            else "They were, to the last bit."
        )
    )
    if alike:
        tested += f" {alike} of {trial.size} samples have no other content to try in this batch."
    figures = {"excess": worst, "influenced": int(moved.sum()), "alike": alike}
    if worst > 1:
        cause, before, after = _culprit(trial, donors, victim, suspects)
        figures |= {"sample": victim, "by": cause, "before": before, "after": after}
        text = (
            f"A sample's loss depends on other samples: replacing sample {cause} by the content of "
            f"sample {int(donors[cause])} alone moves the loss of sample {victim} from "
            f"{before:.6g} to {after:.6g} ({_percent(before, after)}); {int(moved.sum())} of "
            f"{trial.size} losses moved in some exchange. {MEANING} {tested}"
        )
        return Finding(name="influence", passed=False, text=text, figures=figures)
    if alike == trial.size:
        text = (
            "Nothing could be exchanged: all samples of the batch are equal. Give a batch whose "
            "samples differ as much as your data do, short and long ones among them."
        )
        return Finding(name="influence", passed=False, text=text, figures=figures)
    return _size(trial, tested, figures)


def _donors(trial: Trial) -> Tensor:
    """Of whom each sample gets its content: a shift by which as many as possible change."""
    generator = torch.Generator().manual_seed(trial.seed)
    shifts = 1 + torch.randperm(trial.size - 1, generator=generator)[:SHIFTS]
    every = [(trial.everyone + int(shift)) % trial.size for shift in shifts]
    return max(every, key=lambda donors: int(trial.differing(trial.everyone, donors).sum()))


def _excess(trial: Trial, donors: Tensor, replaced: Tensor) -> Tensor:
    """|change of the loss| / what rounding explains, of the samples not replaced: [B]."""
    losses = trial.losses(torch.where(replaced, donors, trial.everyone)).detach()
    excess = ((losses - trial.base).abs() / trial.ulps.clamp(min=1e-30)).double().cpu()
    return excess.nan_to_num(nan=torch.inf).masked_fill(replaced, 0.0)


def _culprit(
    trial: Trial, donors: Tensor, victim: int, suspects: Tensor
) -> tuple[int, float, float]:
    """Halves the suspects, keeping the half that moves the victim more: one sample, and what its
    replacement alone does to the victim's loss."""
    while len(suspects) > 1:
        halves = suspects.chunk(2)
        moves = [_excess(trial, donors, torch.isin(trial.everyone, half)) for half in halves]
        suspects = halves[int(moves[1][victim] > moves[0][victim])]
    replaced = torch.isin(trial.everyone, suspects)
    after = trial.losses(torch.where(replaced, donors, trial.everyone)).detach()
    return int(suspects[0]), float(trial.base[victim]), float(after[victim])


def _size(trial: Trial, tested: str, figures: dict[str, object]) -> Finding:
    """The losses of half of the batch, run without the other half."""
    with trial.without_chance() as how:
        if how is None:
            tested += (
                " Whether the losses depend on the size of the batch was not tested: they are "
                "random in eval mode too. Never divide them by it."
            )
            return Finding(name="influence", passed=True, text=tested, figures=figures)
        whole = trial.losses().detach()
        worst, victim, before, after = -1.0, 0, 0.0, 0.0
        for side in (0, 1):
            kept = trial.everyone[trial.everyone % 2 == side]
            old, new = whole[kept.to(whole.device)], trial.losses(kept).detach()
            change = (new - old).abs() / whole.abs().mean().maximum(old.abs()).clamp(min=1e-30)
            change = change.nan_to_num(nan=torch.inf)
            i = int(change.argmax())
            if float(change[i]) > worst:
                worst, victim = float(change[i]), int(kept[i])
                before, after = float(old[i]), float(new[i])
    figures |= {"size_effect": worst}
    tested += (
        f" With half of the samples taken away, {how}, the losses of the others change by "
        f"{worst:.1e} at most; up to {trial.tolerance:.0e} is rounding."
    )
    if worst > trial.tolerance:
        figures |= {"sample": victim, "before": before, "after": after}
        tested = (
            f"A sample's loss depends on how many others there are: with half of them taken away, "
            f"the loss of sample {victim} goes from {before:.6g} to {after:.6g} "
            f"({_percent(before, after)}). {MEANING} {tested}"
        )
    return Finding(name="influence", passed=worst <= trial.tolerance, text=tested, figures=figures)


def buffers(trial: Trial) -> Finding:
    """Whether a forward in training mode leaves something of its inputs in the model."""
    model, donors = trial.model, _donors(trial)
    odd = trial.everyone % 2 == 1
    parts = [torch.where(half, donors, trial.everyone) for half in (odd, ~odd)]
    if not trial.random:  # else a buffer of random numbers would differ by its shape alone
        parts += [trial.everyone[odd], trial.everyone[~odd]]
    given = trial.mode
    if not model.training:
        model.train()
    try:
        trial.losses()
        written = trial.state.changed_buffers()
        kept: dict[str, object] = {}
        for part in parts:
            trial.losses(part)
            now = trial.state.changed_buffers()
            for name in written.keys() | now.keys():
                if name not in now or name not in written or not same(now[name], written[name]):
                    kept[name] = part
    finally:
        trial.state.restore()
    parameters = trial.state.changed_parameters()
    names = sorted(kept)
    harmless = sorted(written.keys() - kept.keys())
    tested = (
        f"The model's buffers were compared after forward passes in training mode"
        f"{'' if given == 'training' else ' (the model came in eval mode)'} on the batch and on "
        f"{len(parts)} batches made of it; all were restored."
    )
    tested += (
        f" {listed(harmless)} changed in the same way each time (a counter, say): nothing of the "
        "inputs is in there."
        if harmless
        else " None changed."
        if not names
        else ""
    )
    problems = []
    if names:
        problems.append(
            f"The forward pass writes something of its inputs into {listed(names)}. Buffers are "
            "saved and published with the model, without clipping and without noise: no epsilon "
            "covers them. Turn the statistics off, or fix them on public data."
        )
    if parameters:
        problems.append(
            f"The forward pass writes into the parameter {listed(parameters)} itself, past the "
            "mechanism; this change was not undone. Remove it."
        )
    return Finding(
        name="buffers",
        passed=not problems,
        text=" ".join([*problems, tested]),
        figures={"buffers": names, "harmless": harmless, "parameters": parameters},
    )


def _percent(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.3g} %" if before else "from zero"
