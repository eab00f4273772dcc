"""Rows = losses: several losses in one step, weighed by the Gram matrix of their gradients.

    Tasks(parameters, weighting).backward(retain=..., forget=...)       in place of loss.backward()

| symbol | here |
|---|---|
| g_i | gradient of task i: sum over micro-batches and ranks, divided by the sum of their counts |
| G_ij | <g_i, g_j> over all parameters, float64 |
| w_i | the weighting's decision |

    each task    backward of every micro-batch into .grad; moved aside, but for the last task
    ranks        all-reduce of every g_i, so that all ranks weigh the same rows
    G, w         one decision per step, after accumulation; rank 0's counts
    .grad        sum_i w_i g_i, written into the last task's tensors

Every row is a loss to MINIMISE: a forget row is a forget objective (gradient ascent: -CE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from steelyard.rows.adam_step import AdamStep, refuse_others
from steelyard.rows.gram import Row, combine, gram, totals
from steelyard.rows.task_record import TaskRecord, record
from steelyard.types import Weighting
from steelyard.weightings.from_torchjd import refuse_misread

Loss: TypeAlias = "Tensor | tuple[Tensor, Any]"
MicroBatch: TypeAlias = "Loss | Callable[[], Loss]"
TaskLosses: TypeAlias = "MicroBatch | list[MicroBatch]"
Sums: TypeAlias = "tuple[list[Tensor], float, float]"  # sums of losses; their count; reached


@runtime_checkable
class Informed(Protocol):
    """A weighting that wants to know more than the Gram matrix: names and losses of the rows."""

    def given(self, names: Sequence[str], losses: Tensor) -> Callable[[Tensor], Tensor]: ...


class Tasks:
    """`backward(retain=..., forget=...)` writes the weighted gradient of all tasks into `.grad`.

    parameters: those without requires_grad are left out (a frozen base under LoRA). weighting: a
    callable on the Gram matrix [k, k] -> [k], also one of torchjd's. names: of the rows, in the
    order in which the weighting sees them; default: the first call's. optimizer: for a weighting in
    its metric (`Blur(metric="optimizer")`). retain_graph: the losses come from one forward pass.

    Guarantees: micro-batches, ranks and one batch give the same step. One gradient-sized copy for
    each task beyond the first. `record` holds what was weighed, in numbers only.

    | case | behaviour |
    |---|---|
    | what `.grad` held before | dropped: a step is one `backward`, with all its micro-batches |
    | a parameter that one task does not reach | zero in its row |
    | a parameter that no task reaches | `.grad` is None (on several ranks: 0) |
    | a zero gradient, or rows that are antiparallel | `vanished`, `antiparallel` in the record |
    | a loss, gradient or weight that is not finite | an error; `.grad` is None |
    | losses scaled by a GradScaler | NGDiff and all that ignores scales takes the factor out, and \
    `scaler.step` would divide by it again: use bfloat16, without a scaler |

    Give the module inside DistributedDataParallel: gradients are reduced here. With DDP around it
    they are reduced twice, to the same numbers, and ranks with other numbers of micro-batches wait
    for ever. Activation checkpointing needs use_reentrant=False.

    Raises FloatingPointError for losses and gradients that are not finite; ValueError for weights
    that are not, parameters that are sharded or not floating point, names that do not fit, and
    losses that are no losses.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        weighting: Weighting,
        *,
        names: Sequence[str] | None = None,
        optimizer: Optimizer | None = None,
        retain_graph: bool = False,
    ):
        self._parameters = list({id(p): p for p in parameters if p.requires_grad}.values())
        if not self._parameters:
            raise ValueError("no trainable parameter: nothing to weigh gradients for")
        for p in self._parameters:
            if not p.is_floating_point() or _sharded(p):
                raise ValueError(
                    f"a parameter of shape {list(p.shape)} is sharded or not floating point: Tasks "
                    "needs whole real parameters on every rank"
                )
        refuse_misread(weighting)
        self._in_metric = getattr(weighting, "metric", None) == "optimizer"
        if self._in_metric:
            refuse_others(optimizer)
        self._names = None if names is None else list(names)
        if self._names is not None and (not names or len(set(self._names)) < len(self._names)):
            raise ValueError(f"names are one for each task, all different; found {self._names}")
        self._weighting, self._optimizer, self._keep = weighting, optimizer, retain_graph
        self.record: TaskRecord | None = None

    @property
    def parameters(self) -> list[Tensor]:
        return list(self._parameters)

    def backward(self, /, **tasks: TaskLosses) -> TaskRecord:
        """One loss for each task: a mean []; one per sample [B], which counts as (its sum, B); or
        (sum, count). Or a function that computes it, or a list of these, one for each micro-batch:
        with functions, one graph is alive at a time. Means count alike.

        On several ranks each gives its own part; an empty list is a part without samples.
        """
        names = self._checked(tasks)
        try:
            rows: list[Row] = []
            sums: list[Sums] = []
            for place, name in enumerate(names):
                self._drop()
                sums.append(self._accumulate(name, tasks[name], last=place + 1 == len(names)))
                rows.append([_own(p.grad) for p in self._parameters])
            return self._weigh(names, rows, sums)
        except BaseException:
            self._drop()
            raise

    def _checked(self, tasks: dict[str, TaskLosses]) -> list[str]:
        names = list(tasks) if self._names is None else self._names
        if not names or set(tasks) != set(names):
            raise ValueError(
                f"the tasks are {', '.join(names) or 'none'}, found losses for "
                f"{', '.join(tasks) or 'none'}: give backward(name=losses, ...) one for each"
            )
        self._names = names
        return names

    def _drop(self) -> None:
        for p in self._parameters:
            p.grad = None

    def _accumulate(self, name: str, losses: TaskLosses, *, last: bool) -> Sums:
        parts: list[Any] = losses if isinstance(losses, list) else [losses]
        values: list[Tensor] = []
        counts = 0.0
        for place, part in enumerate(parts):
            loss: Any = part() if callable(part) else part
            value, count = _sum_and_count(name, loss)
            if value.requires_grad:
                keep = self._keep and not (last and place + 1 == len(parts))
                value.backward(inputs=self._parameters, retain_graph=keep)
            values.append(value.detach())
            counts += count
        grads = [p.grad for p in self._parameters if p.grad is not None]
        if any(g.is_sparse for g in grads):
            raise ValueError(
                f"task {name!r} has a sparse gradient: make its Embedding with sparse=False"
            )
        return values, counts, float(bool(grads))  # tensors: a number waits for the device

    @torch.no_grad()
    def _weigh(self, names: list[str], rows: list[Row], sums: list[Sums]) -> TaskRecord:
        if _ranks() > 1:
            sums = self._reduce(rows, sums)
        for name, (_, count, reached) in zip(names, sums, strict=True):
            if not count > 0:
                raise ValueError(f"task {name!r} has no sample in this step: give it a batch")
            if not reached:
                raise ValueError(
                    f"the loss of task {name!r} reaches none of the parameters: compute it with "
                    "gradients enabled, through the model that they belong to"
                )
        scales = [1 / count for _, count, _ in sums]
        matrix = gram(rows, scales)
        numbers = totals([values for values, *_ in sums])
        losses = [total / count for total, (_, count, _) in zip(numbers, sums, strict=True)]
        _refuse_nonfinite("gradient", names, matrix.diagonal().tolist())
        _refuse_nonfinite("loss", names, losses)
        weights = self._decide(names, losses, matrix, rows, scales)
        combined = combine(rows, [w * s for w, s in zip(weights, scales, strict=True)])
        for p, tensor in zip(self._parameters, combined, strict=True):
            p.grad = tensor
        self.record = record(names, losses, matrix, weights)
        return self.record

    def _decide(
        self,
        names: list[str],
        losses: list[float],
        matrix: Tensor,
        rows: list[Row],
        scales: list[float],
    ) -> list[float]:
        rule: Any = self._weighting
        if self._in_metric:
            assert self._optimizer is not None
            step = AdamStep(self._optimizer, self._parameters, rows, scales)
            found = rule.on_step(matrix, names, step)
        elif isinstance(rule, Informed):
            found = rule.given(names, torch.tensor(losses, dtype=torch.float64))(matrix)
        else:
            found = rule(matrix.clone())  # somebody else's
        weights = torch.as_tensor(found).detach().to("cpu", torch.float64)
        if _ranks() > 1:  # a weighting may draw random numbers
            shared = weights.to(self._parameters[0].device)
            torch.distributed.broadcast(shared, 0)
            weights = shared.cpu()
        numbers = weights.tolist()
        if weights.shape != (len(names),) or not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"{type(self._weighting).__name__} gave weights {numbers} for "
                f"{len(names)} rows: it must give one finite number for each"
            )
        return numbers

    def _reduce(self, rows: list[Row], sums: list[Sums]) -> list[Sums]:
        """Sum rows, losses and counts over the ranks; a missing gradient is zero."""
        handles = []
        for row in rows:
            for i, p in enumerate(self._parameters):
                here = row[i]
                here = torch.zeros_like(p) if here is None else here.contiguous()
                handles.append(torch.distributed.all_reduce(here, async_op=True))
                row[i] = here
        told = [
            [total, *s[1:]] for total, s in zip(totals([s[0] for s in sums]), sums, strict=True)
        ]
        numbers = torch.tensor(told, dtype=torch.float64, device=self._parameters[0].device)
        torch.distributed.all_reduce(numbers)
        for handle in handles:
            handle.wait()
        return [([row[0]], *row[1:].tolist()) for row in numbers.cpu()]


def _own(grad: Tensor | None) -> Tensor | None:
    """A tensor that the next backward leaves alone: DDP's buckets (gradient_as_bucket_view) are
    written again."""
    return grad.clone() if grad is not None and grad._is_view() else grad


def _sharded(p: Tensor) -> bool:
    """DTensor (FSDP2); FSDP's flat parameters and their views; DeepSpeed's stage 3."""
    return (
        getattr(p, "placements", None) is not None
        or getattr(p, "_is_flat_param", False)
        or getattr(p, "_fsdp_flattened", False)
        or hasattr(p, "ds_id")
    )


def _sum_and_count(name: str, loss: Loss) -> tuple[Tensor, float]:
    if isinstance(loss, tuple):
        total, count = loss if len(loss) == 2 else (loss, 0)
        if isinstance(count, Tensor) and count.requires_grad:
            raise ValueError(
                f"the count of task {name!r} has a graph, so it looks like a second loss: give "
                "micro-batches as a list"
            )
        count = float(count)
    else:
        total, count = loss, 1.0
        if isinstance(loss, Tensor) and loss.dim() == 1:
            total, count = loss.sum(), float(len(loss))
    whole = isinstance(total, Tensor) and not total.dim() and total.is_floating_point()
    if not whole or not 0 <= count < math.inf:
        found = f"shape {list(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
        found = f"count {count:g}" if whole else found
        raise ValueError(
            f"the loss of task {name!r} must be a mean [], one per sample [B], or (sum [], count); "
            f"found {found}"
        )
    return total, count


def _refuse_nonfinite(what: str, names: Sequence[str], numbers: Sequence[float]) -> None:
    wrong = [n for n, number in zip(names, numbers, strict=True) if not math.isfinite(number)]
    if wrong:
        raise FloatingPointError(
            f"the {what} of {', '.join(wrong)} is not finite (nan or inf): check the inputs, "
            "lower the learning rate, or stop before a forget loss without bound explodes"
        )


def _ranks() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1
