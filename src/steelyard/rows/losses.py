"""What a user hands to `rows.backward`: losses, or a function that computes them at given points.

    rows of the step = sum_k weight_k grad f(point_k; i)        mixed per sample, then clipped

Without `Points` there is one evaluation, at the parameters, and the losses may be a tensor. With them
the losses are computed anew at every point, by the user's function, with the same random masks.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from steelyard.types import Points

Losses: TypeAlias = "Tensor | Callable[[], Tensor]"


def evaluations(
    losses: Losses, points: Points | None
) -> Generator[tuple[float, Tensor, bool], None, None]:
    """(weight, losses [B], whether it is the last) of each evaluation; the parameters are at its
    point until the next one is asked for. Raises ValueError for a tensor where a function is
    needed, and where the number of samples changes from point to point."""
    if points is None:
        yield 1.0, losses() if callable(losses) else losses, True
        return
    if not callable(losses):
        raise ValueError(
            f"{type(points).__name__} evaluates gradients away from the parameters: give "
            "rows.backward a function, as in rows.backward(lambda: losses_of(model(x), y))"
        )
    found = points.evaluations()
    masks, count = _random_states() if len(found) > 1 else None, None
    for k, (weight, place) in enumerate(found):
        if masks is not None and k:
            _restore(masks)
        with place:
            here = losses()
            if count is not None and len(here) != count:
                raise ValueError(
                    f"the losses function gave {count} losses at one point and {len(here)} at "
                    "another: it must compute those of one batch"
                )
            count = len(here)
            yield weight, here, k + 1 == len(found)


def check(losses: Tensor, model: nn.Module, names: Mapping[str, nn.Parameter]) -> None:
    """Raises ValueError, one line, for losses that no row can come from."""
    if losses.dim() != 1:
        raise ValueError(
            f"losses must have shape [B], one per sample; found {list(losses.shape)}: use "
            'reduction="none" and average over each sample\'s own positions only'
        )
    if len(losses) and losses.grad_fn is None:
        raise ValueError("losses do not depend on a trainable parameter (no grad_fn)")
    now = {n: p for n, p in model.named_parameters() if p.requires_grad}
    both = now.keys() | names.keys()
    changed = sorted(n for n in both if now.get(n) is not names.get(n))
    if changed:
        shown = ", ".join(repr(name) for name in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"trainable parameters changed since the rows were made: {shown}{more}; close the rows "
            "and make new ones"
        )


def _random_states() -> tuple[Tensor, list[Tensor]]:
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), on_gpus


def _restore(states: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
