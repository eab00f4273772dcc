"""Derivatives of the mean loss of fixed public samples: gradient, Hessian products, clip factors.

    F = (1/N) sum_i f(x; i),   G = dF/dx with a graph of its own,   H v = d(G'v)/dx

Double backward (Pearlmutter 1994), in pieces of samples where one graph would be too large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from steelyard.checks.restore import generators_kept, seed_all
from steelyard.checks.trial import mapped, tensors
from steelyard.rows.per_sample import PerSample
from steelyard.rows.reference import accumulator
from steelyard.types import RowWeighting

NO_SECOND = "the loss has no second derivative; use layers without kernels of their own"
TWICE = ("double backward", "is not implemented")  # what torch says


class PublicLoss:
    """F and its derivatives at the trainable parameters of `model`. Use it inside `undisturbed`.

    losses_of(model, *batch) -> [N]. Memory: with micro_batch None, the second-order graph of all
    samples, built once; else that of one piece, built for each product. Dropout masks are those of
    `seed` in every pass. Raises ValueError as `steelyard.steps.curvature.measure`.
    """

    def __init__(
        self,
        model: nn.Module,
        losses_of: Callable[..., Tensor],
        batch: tuple[Any, ...],
        micro_batch: int | None,
        seed: int,
    ):
        self._model, self._losses_of, self._seed = model, losses_of, seed
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no trainable parameter: there is nothing to measure")
        self._pieces = _pieces(batch, micro_batch)
        self._one: tuple[Tensor, list[Tensor]] | None = None  # the graph of a single piece
        with torch.no_grad():
            losses = [self._losses(i) for i in range(len(self._pieces))]
        self._sizes, self.size = [len(part) for part in losses], sum(map(len, losses))
        self.like = torch.cat(losses)  # [N]

    def gradient(self, weights: Tensor) -> list[Tensor]:
        """sum_i weights_i g_i, for weights [N]."""
        total = _zeros(self.parameters)
        for i, w in enumerate(weights.split(self._sizes)):
            losses = self._losses(i) if self._one is None else self._one[0]
            _add(total, self._derive([losses], [w.to(losses.dtype)]))
        return total

    def product(self, v: Sequence[Tensor]) -> list[Tensor]:
        """H v."""
        total = _zeros(self.parameters)
        for i in range(len(self._pieces)):
            pairs = zip(self._graph(i), v, strict=True)
            bent = [(g, a.to(g.dtype)) for g, a in pairs if g.requires_grad]  # else H has zeros
            if bent:
                _add(total, self._derive(*zip(*bent, strict=True)))
        return total

    def clip_factor(self, weighting: RowWeighting) -> float:
        """Mean of C(||g_i||), by private rows on the copy."""
        seen = _Seen(weighting)
        with PerSample(self._model, seen, expected_batch=1) as rows:
            for i in range(len(self._pieces)):
                rows.backward(self._losses(i))
                rows.discard()
        factors = torch.cat(seen.factors)
        assert len(factors) == self.size
        return float(factors.double().mean())

    def _graph(self, i: int) -> list[Tensor]:
        """The part of G of piece i, with a graph of its own."""
        if self._one is not None:
            return self._one[1]
        losses = self._losses(i)
        weights = torch.full_like(losses, 1 / self.size)
        gradient = self._derive([losses], [weights], create_graph=True)
        if any(node.name() == "torch::autograd::Error" for node in _nodes(gradient)):
            # torch stops only where that node is reached, and skips it: the product would lack it
            raise ValueError(f"{NO_SECOND}: a function is marked @once_differentiable")
        if len(self._pieces) == 1:
            self._one = losses, gradient
        return gradient

    def _losses(self, i: int) -> Tensor:
        seed_all(self._seed + i, _gpus(self._model))  # the same dropout masks in every pass
        losses = self._losses_of(self._model, *self._pieces[i])
        if losses.dim() != 1 or not len(losses):
            raise ValueError(
                f"losses_of must return one loss per sample, found shape {list(losses.shape)}: use "
                'reduction="none"'
            )
        if torch.is_grad_enabled() and not losses.requires_grad:
            raise ValueError("losses_of(model, ...) does not depend on a trainable parameter")
        return losses

    def _derive(
        self, values: Sequence[Tensor], weights: Sequence[Tensor], *, create_graph: bool = False
    ) -> list[Tensor]:
        try:
            return list(
                torch.autograd.grad(
                    values, self.parameters, weights, retain_graph=self._one is not None or None,
                    create_graph=create_graph, materialize_grads=True,
                )
            )  # fmt: skip
        except RuntimeError as error:
            if not any(word in str(error) for word in TWICE):
                raise
            raise ValueError(f"{NO_SECOND}: {str(error).splitlines()[0]}") from error


class _Seen:
    """A weighting that remembers the factors it gave."""

    def __init__(self, weighting: RowWeighting):
        self._weighting, self.bound = weighting, weighting.bound
        self.factors: list[Tensor] = []

    def __call__(self, norms: Tensor) -> Tensor:
        self.factors.append(self._weighting(norms))
        return self.factors[-1]

    def with_bound(self, bound: float) -> _Seen:
        self._weighting = self._weighting.with_bound(bound)
        return self


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Global generators are kept; only kernels run that can be derived twice."""
    with ExitStack() as stack:
        stack.enter_context(generators_kept(_gpus(model)))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(_is_compiled(module) for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # loads the compiler
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _pieces(batch: tuple[Any, ...], size: int | None) -> list[tuple[Any, ...]]:
    """The batch in pieces of `size` samples: tensors with the first one's length are cut."""
    if size is None:
        return [batch]
    N = next((len(t) for t in tensors(batch) if t.dim()), 0)
    if size < 1 or N == 0:
        raise ValueError(
            f"cannot cut {N} samples into micro-batches of {size}: give tensors with one row per "
            "sample, and 1 or more"
        )
    return [mapped(batch, partial(_cut, at, at + size, N)) for at in range(0, N, size)]


def _cut(start: int, end: int, N: int, t: Tensor) -> Tensor:
    return t[start:end] if t.dim() and len(t) == N else t


def _nodes(tensors: Sequence[Tensor]) -> Iterator[Any]:
    """Every node of the tensors' graphs."""
    waiting, seen = [t.grad_fn for t in tensors], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def _zeros(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p, dtype=accumulator(p), requires_grad=False) for p in parameters]


def _add(total: list[Tensor], more: Sequence[Tensor]) -> None:
    for t, m in zip(total, more, strict=True):
        t += m.detach()


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"


def _gpus(model: nn.Module) -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.is_cuda})
