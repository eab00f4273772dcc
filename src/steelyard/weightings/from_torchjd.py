"""torchjd's weightings are used as they are: `Tasks(parameters, MGDAWeighting())`.

A torchjd weighting that takes a Gramian is a callable [k, k] -> [k], as ours are, so no adapter is
needed. Three things of torchjd look alike on a [k, k] matrix and are not; they are refused here:

| what | example | why |
|---|---|---|
| an aggregator | `UPGrad()` | combines the rows it is given: pass its weighting |
| a weighting of gradients | `MoDoWeighting()` | would take the Gram matrix for them |
| an aggregator's `.weighting` | `UPGrad().weighting` | makes a Gram matrix of what it gets |

torchjd is not imported. Quinton, Rey, "Jacobian descent for multi-objective optimization", arXiv
2406.16232.
"""

from __future__ import annotations

NOT_OF_GRAMIANS = (
    "ExcessMTLWeighting", "MoDoWeighting", "SDMGradWeighting", "_Composition", "_NashMTLWeighting",
)  # fmt: skip


def refuse_misread(weighting: object) -> None:
    """Raises ValueError for an object of torchjd that would misread a Gram matrix, or wraps one."""
    kinds = [c for c in type(weighting).__mro__ if c.__module__.split(".")[0] == "torchjd"]
    name = type(weighting).__name__
    if any(c.__name__ == "Aggregator" for c in kinds):
        raise ValueError(
            f"{name} is torchjd's aggregator, which combines gradients itself: give Tasks its "
            f"weighting, {name}Weighting"
        )
    if any(c.__name__ in NOT_OF_GRAMIANS for c in kinds):
        raise ValueError(
            f"{name} weighs by whole gradients or losses, not by their Gram matrix: use a "
            "weighting of torchjd that takes a Gramian (MGDAWeighting, UPGradWeighting, ...)"
        )
    if kinds:  # one that smooths another one's weights
        refuse_misread(getattr(weighting, "weighting", None))
