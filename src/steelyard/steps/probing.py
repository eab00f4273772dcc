"""Losses at points along displacements: forward passes that leave no trace.

| symbol | here |
|---|---|
| K, J | number of directions, of losses |
| x | coefficients of the directions; w(x) = w_0 + sum_k x_k D_k |

    star      x = c e_k, for every level c                          4K points (levels -2, -1, 1, 2)
    central   star of levels -1, 1                                  2K
    pairs     central, and e_k + e_k' for k < k'                    2K + K(K-1)/2, for full fits
    random    uniform in [-radius, radius]^K, each with its mirror image: unbiased for diag(A)

All losses of a fit are computed from the same batches with the same random masks, so that their
differences have no sampling noise to first order. The batches must be fresh: on those of the
gradient itself the slope is too large by tr(Cov) / B, and step sizes diverge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steelyard.checks.restore import State, generators_kept, seed_all
from steelyard.steps.displacements import Displacements
from steelyard.steps.quadratic import Points

TRAINING = ("eval", "frozen-stats", "train")
DESIGNS = ("star", "central", "pairs", "random")
Out: TypeAlias = "Tensor | tuple[Tensor, Any]"
MicroBatch: TypeAlias = "Callable[[Any], Out]"
Probe: TypeAlias = "Callable[[], Out] | Sequence[Callable[[], Out]]"
Array = NDArray[np.float64]


class Evaluator:
    """J losses at the parameters as they are: `evaluator()` -> float64 [J].

    losses: a function of the model, or a list of them, one for each micro-batch. Each returns means
    [J] (or one mean, []), which count alike, or (sums [J], count). The result is sum / count over
    all micro-batches, and over all ranks where torch.distributed is initialised. per_sample: a
    tensor [B] is not J means but one loss for each of B samples, and counts as (its sum, B).
    model: whose modes and buffers are kept; None: there are none.
    training: "eval"; "train" (modes as they are: dropout with the same masks at every point);
    "frozen-stats" (the same, but normalisation by running statistics as in eval).
    seed: of the random numbers drawn inside, the same in every call.

    Guarantees: no graph; modes, buffers and the global generators are restored bit for bit, also
    when a function raises. Parameters are not touched. `forwards` counts calls of the functions.
    Raises ValueError for an empty batch.
    """

    def __init__(
        self,
        model: nn.Module | None,
        losses: MicroBatch | Sequence[MicroBatch],
        *,
        training: str = "eval",
        seed: int = 0,
        per_sample: bool = False,
    ):
        if training not in TRAINING:
            raise ValueError(f"unknown training {training!r}: choose one of {', '.join(TRAINING)}")
        self._model = model
        self._losses = list(losses) if isinstance(losses, Sequence) else [losses]
        if not self._losses:
            raise ValueError("no losses to evaluate: give one function or more")
        self._training, self._seed, self._per_sample = training, seed, per_sample
        self._state: State | None = None  # inside `kept`
        self.forwards = 0
        self.eps = math.nan  # unit of rounding of the losses as they were returned

    def __call__(self) -> Array:
        parts = [self._part(out) for out in self.outputs()]
        both = torch.stack(parts).sum(0)  # [J + 1], sums and count
        if ranks() > 1:
            torch.distributed.all_reduce(both)
        if not float(both[-1]) > 0:
            raise ValueError("the probe batch is empty: there is no mean loss")
        return (both[:-1] / both[-1]).cpu().numpy()

    def outputs(self) -> list[Out]:
        """What the functions return here, one after the other."""
        found: list[Out] = []
        rank = torch.distributed.get_rank() if ranks() > 1 else 0
        with self.kept(), torch.no_grad():
            assert self._state is not None
            for i, losses in enumerate(self._losses):
                seed_all(self._seed + 1_000_003 * rank + 7_919 * i, self._gpus())
                self.forwards += 1
                found.append(losses(self._model))
            self._state.restore_buffers()
        return found

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around several calls: modes are set once, and everything is restored at the end."""
        if self._state is not None:
            yield
            return
        model = nn.Module() if self._model is None else self._model
        with generators_kept(self._gpus()):
            self._state = State(model)
            try:
                for module in model.modules():
                    running = getattr(module, "track_running_stats", False)
                    if self._training == "eval" or (self._training == "frozen-stats" and running):
                        module.training = False  # not .eval(): a module may override that
                yield
            finally:
                self._state.restore()
                self._state = None

    def _part(self, out: Out) -> Tensor:
        """One function's (sums [J], count) as one tensor."""
        total, count = out if isinstance(out, tuple) else (out, 1)
        self.eps = float(torch.finfo(total.dtype).eps)
        total = total.detach().double()
        if self._per_sample and not isinstance(out, tuple) and total.dim():
            total, count = total.sum(), total.numel()
        total = total.reshape(-1)
        return torch.cat([total, total.new_tensor([float(count)])])

    def _gpus(self) -> list[int]:
        if not torch.cuda.is_initialized():
            return []  # at once: this is asked at every evaluation
        if self._model is None:
            return list(range(torch.cuda.device_count()))
        return sorted({p.device.index for p in self._model.parameters() if p.is_cuda})


def micro_batches(losses: Probe) -> list[MicroBatch]:
    """Functions without arguments, one or one for each micro-batch, as `Evaluator` takes them."""
    functions = list(losses) if isinstance(losses, Sequence) else [losses]
    return [lambda _, f=f: f() for f in functions]


def design(
    kind: str,
    K: int,
    *,
    levels: Sequence[float] = (-2, -1, 1, 2),
    radius: float = 1.0,
    m: int | None = None,
    seed: int = 0,
) -> Array:
    """Probe points [m, K], without x = 0, times radius.

    levels: of the star. m: number of random points, even; default twice the unknowns of a full fit.
    """
    if kind not in DESIGNS or K < 1:
        raise ValueError(f"unknown design {kind!r} for K = {K}: choose one of {', '.join(DESIGNS)}")
    e = np.eye(K)
    if kind == "random":
        m = K * (K + 3) if m is None else m
        if m < 2 or m % 2:
            raise ValueError(f"a symmetric random design has an even number of points, found {m}")
        half = np.random.default_rng(seed).uniform(-1, 1, (m // 2, K))
        return radius * np.concatenate([half, -half])
    c = levels if kind == "star" else (-1, 1)
    if 0 in c or not len(c):
        raise ValueError(f"levels must be different from 0, found {tuple(c)}: x = 0 is added later")
    points = [level * e[k] for k in range(K) for level in c]
    if kind == "pairs":
        points += [e[k] + e[other] for k in range(K) for other in range(k + 1, K)]
    return radius * np.stack(points)


def probe(
    displacements: Displacements,
    evaluator: Evaluator,
    X: NDArray[Any],
    *,
    repeats: int = 0,
    start: float | Sequence[float] | None = None,
) -> Points:
    """The losses at x = 0, at the rows of X [m, K], and `repeats` times more at x = 0.

    start: losses at x = 0 [J] where they are already known, of the same batches in the same mode.
    sigma: 2 units of rounding of the losses, or the deviation of the repeats if that is more.

    Guarantees: parameters, buffers, modes and generators are as on entry, bit for bit, also when a
    loss raises. m + 1 + repeats evaluations, one less with start.
    """
    X = np.asarray(X, np.float64).reshape(-1, displacements.size)
    zero = np.zeros((1, displacements.size))
    points = np.concatenate([zero, X, np.repeat(zero, repeats, 0)])  # [m + 1 + repeats, K]
    values: list[Array] = [] if start is None else [np.atleast_1d(np.asarray(start, np.float64))]
    with evaluator.kept(), displacements.kept():
        for x in points[len(values) :]:
            displacements.commit(x)
            values.append(evaluator())
    y = np.stack(values)  # [m + 1 + repeats, J]
    sigma = 2 * evaluator.eps * np.abs(y[0])
    if repeats:
        again = y[[0, *range(len(X) + 1, len(y))]]
        sigma = np.maximum(sigma, again.std(0, ddof=1))
    return Points(points, y, sigma)


def ranks() -> int:
    """Processes of torch.distributed; 1 where it is not initialised."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1
