"""The gradients of one step: a logical batch drawn, cut into micro-batches and back-propagated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from steelyard.rows.sampling import PoissonSampler, microbatches
from steelyard.runs.config import TrainConfig
from steelyard.runs.private import PrivateSide
from steelyard.runs.problem import Problem
from steelyard.runs.public import PublicPhase


class Gradients:
    """`private`, `plain` or `public`, once before each step: the size of the batch, and its loss.

    Under privacy neither is told: the size is the expected one, the loss None.
    """

    def __init__(
        self,
        problem: Problem,
        model: nn.Module,
        config: TrainConfig,
        sampler: PoissonSampler,
        side: PrivateSide | None,
        phase: PublicPhase | None,
    ):
        self._problem, self._model, self._config = problem, model, config
        self._sampler, self._side, self._phase = sampler, side, phase

    def private(self) -> tuple[float, None]:
        """Poisson batch into the rows, and a public batch beside it where there is one."""
        assert self._side is not None
        if self._side.public is not None:
            assert self._phase is not None
            drawn = self._phase.batches.draw()  # in two pieces at least: their spread is looked at
            most = min(self._config.micro_batch, -(-len(drawn) // 2))
            for piece in microbatches(drawn, most):
                self._side.public.backward(partial(self._public_losses, piece))
        for piece in microbatches(self._sampler.draw(), self._config.micro_batch):
            self._side.rows.backward(partial(self._losses, piece))
        return float(self._config.batch), None

    def plain(self) -> tuple[float, float]:
        """The same Poisson batch without privacy, divided by the expected size as well."""
        indices = self._sampler.draw()
        pieces = [p for p in microbatches(indices, self._config.micro_batch) if len(p)]
        total = self._sum([partial(self._losses, piece) for piece in pieces], self._config.batch)
        return len(indices), total / max(len(indices), 1)

    def public(self) -> tuple[float, float]:
        """A batch of public samples and nothing else."""
        assert self._phase is not None
        indices = self._phase.batches.draw()
        pieces = microbatches(indices, self._config.micro_batch)
        computes = [partial(self._public_losses, piece) for piece in pieces]
        return len(indices), self._sum(computes, len(indices)) / len(indices)

    def _sum(self, computes: Sequence[partial[Tensor]], divisor: float) -> float:
        total = 0.0
        for compute in computes:
            losses = compute()
            (losses.sum() / divisor).backward()
            total += float(losses.detach().sum())
        return total

    def _losses(self, piece: Tensor) -> Tensor:
        if len(piece) == 0:  # an empty batch arms the step; no model needs to accept it
            return torch.zeros(0, device=self._problem.device)
        return self._problem.losses(self._model, *self._problem.batch(piece))

    def _public_losses(self, piece: Tensor) -> Tensor:
        return self._problem.losses(self._model, *self._problem.public_batch(piece))
