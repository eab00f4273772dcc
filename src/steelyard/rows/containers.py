"""Tensors inside of tuples, lists, dicts and other containers, exchanged without a trace.

Whoever gets a list may append to it, and whoever handed it over will look for that. So a container
without an exchanged tensor stays the same object, and what happens to a copy happens to the list or
dict that it stands for too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


class Copy:
    """A list or dict, and the copy that somebody else works with."""

    def __init__(self, original: Any, copy: Any):
        self._original, self._copy = original, copy
        self._before = _parts(copy)

    def write_back(self, back: Mapping[int, Tensor]) -> None:
        """Repeat on the original what was done to the copy; `back`: id of an exchanged tensor ->
        the one that it came for."""
        now = _parts(self._copy)
        if len(now) == len(self._before) and all(
            a is b and x is y for (a, x), (b, y) in zip(now, self._before, strict=True)
        ):
            return
        now = [(key, back.get(id(value), value)) for key, value in now]
        self._original.clear()
        if isinstance(self._original, list):
            self._original.extend(value for _, value in now)
        else:
            self._original.update(now)


def _parts(container: Any) -> list[tuple[Any, Any]]:
    if isinstance(container, dict):
        return list(container.items())
    return [(None, value) for value in container]


def replaced(tree: Any, new: Mapping[int, Tensor], copies: list[Copy]) -> Any:
    """The tree with the tensors of `new` (by their ids) exchanged; `copies` notes the lists and
    dicts that had to be copied."""
    if id(tree) in new:
        return new[id(tree)]
    parts, spec = tree_flatten(tree, is_leaf=lambda node: node is not tree)
    if len(parts) == 1 and parts[0] is tree:
        return tree  # a leaf
    changed = [replaced(part, new, copies) for part in parts]
    if all(a is b for a, b in zip(changed, parts, strict=True)):
        return tree
    copy = tree_unflatten(changed, spec)
    if isinstance(tree, list | dict):
        copies.append(Copy(tree, copy))
    return copy
