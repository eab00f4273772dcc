"""Embeddings of positions [1, T]: whether every sample may be given its own.

The output [1, T, d] is usually added to something [B, T, d], and its gradient has no sample
dimension left. If the layer is called on ids [B, T] instead, it has; but the output has another
shape then, and only code that would have broadcast it anyway computes the same. So autograd's graph
of a batch is asked what became of the output.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

# backward nodes of operations that treat every element alone
ELEMENTWISE = {
    *("AddBackward0", "SubBackward0", "MulBackward0", "DivBackward0"),
    *("ExpandBackward0", "ToCopyBackward0"),
}


def only_broadcast(losses: Tensor, watcher: Any) -> bool:
    """Whether all that `losses` [B] took from the output [1, ...] of a cut was broadcast to B."""
    batch = len(losses)
    consumers: dict[Any, list[Any]] = {}
    start, todo = None, [losses.grad_fn]
    while todo:
        node: Any = todo.pop()
        for child, _ in node.next_functions:
            if child is None:
                continue
            if child not in consumers:
                consumers[child] = []
                todo.append(child)
            consumers[child].append(node)
            if getattr(child, "watcher", None) is watcher:
                start = child
    todo = [] if start is None else list(consumers[start])
    while todo:
        node = todo.pop()
        shape = node._input_metadata[0].shape
        if node.name() not in ELEMENTWISE or len(shape) < 2 or shape[0] not in (1, batch):
            return False
        if shape[0] == 1:
            todo += consumers.get(node, [])
    return start is not None
