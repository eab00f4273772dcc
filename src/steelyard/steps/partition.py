"""Groups of parameters with learning rates of their own: an optimizer's groups, split in place.

A learning rate lives in an optimizer's parameter group, so each of ours must own whole ones. Where
one of ours has several (with and without weight decay), their ratios are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

# name -> parameters, or the (name, parameter) pairs of `by_role` and `by_pattern`
Members: TypeAlias = "Mapping[str, Sequence[Any]]"


def partition(optimizer: Optimizer, groups: Members | None) -> dict[str, list[Tensor]]:
    """name -> trainable parameters. None: the optimizer's own groups, by their "name" or number.

    Groups without a trainable parameter are left out. Raises ValueError for groups that are no
    partition of what the optimizer trains.
    """
    own = optimizer.param_groups
    if groups is None:
        groups = {str(group.get("name", i)): group["params"] for i, group in enumerate(own)}
        if len(groups) < len(own):
            raise ValueError("two of the optimizer's groups have the same name: give groups=")
    found: dict[str, list[Tensor]] = {}
    owner: dict[int, str] = {}
    for name, members in groups.items():
        for p in (m[1] if isinstance(m, tuple) else m for m in members):
            if id(p) in owner:
                raise ValueError(
                    f"a parameter of shape {list(p.shape)} is in {owner[id(p)]!r} and in {name!r}: "
                    "put it, and all weights tied to it, into one group"
                )
            owner[id(p)] = name
            if p.requires_grad:
                found.setdefault(name, []).append(p)
    trained = [p for group in own for p in group["params"] if p.requires_grad]
    known = {id(p) for p in trained}
    missing = [p for p in trained if id(p) not in owner]
    foreign = [p for members in found.values() for p in members if id(p) not in known]
    for which, where in (
        (missing, "of the optimizer in no group"),
        (foreign, "not in the optimizer"),
    ):
        if which:
            raise ValueError(
                f"{len(which)} trainable parameters are {where}, the first of shape "
                f"{list(which[0].shape)}: groups must hold exactly what the optimizer trains"
            )
    if not found:
        raise ValueError("the optimizer has no trainable parameter: there is nothing to measure")
    return found


def split(optimizer: Optimizer, groups: Mapping[str, Sequence[Tensor]]) -> None:
    """Every parameter group of the optimizer within one of `groups`: in place, options kept.

    Call it before the optimizer's state is loaded or a scheduler made: both count groups. Raises
    ValueError for an optimizer that has had a scheduler.
    """
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError(
            "a learning-rate scheduler has this optimizer and would overwrite what is found: make "
            "the optimizer without one, and give its factor as decay="
        )
    owner = {id(p): name for name, members in groups.items() for p in members}
    result: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[str | None, list[int]] = {}
        for i, p in enumerate(group["params"]):
            parts.setdefault(owner.get(id(p)), []).append(i)
        if len(parts) <= 1:
            result.append(group)
            continue
        for members in parts.values():
            part = {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items()}
            for key in {"params", "param_names"} & part.keys():
                part[key] = [group[key][i] for i in members]
            result.append(part)
    optimizer.param_groups[:] = result


def owners(optimizer: Optimizer, groups: Mapping[str, Sequence[Tensor]]) -> list[str | None]:
    """The name of each of the optimizer's groups, once split; None for one all frozen."""
    owner = {id(p): name for name, members in groups.items() for p in members}
    return [
        next((owner[id(p)] for p in group["params"] if id(p) in owner), None)
        for group in optimizer.param_groups
    ]
