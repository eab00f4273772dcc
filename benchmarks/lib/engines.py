"""Workloads and engines of the step benchmarks: each engine makes a function that does one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import models
from steelyard.filters.attach import attach
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

SIGMA, BOUND, RATE = 1.0, 1, 0.01


@dataclass(frozen=True)
class Workload:
    """A model, one batch, and the per-sample losses [B] of the model on it."""

    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    tokens: bool = False
    hooks: bool = True  # Opacus' per-sample gradients fit into memory and time


def image(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(*shape), torch.randint(0, 10, (shape[0],)))


def text(B: int, T: int, vocabulary: int = 8192) -> Callable[[], tuple[Tensor, Tensor]]:
    def make() -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, vocabulary, (B, T + 1))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return make


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def own(name: str, kind: Any, shape: tuple[int, ...], vocabulary: int = 0) -> nn.Module:
    task = models.Task(kind=kind, classes=10, shape=shape, vocabulary=vocabulary)
    return models.build(name, task, seed=0)


WORKLOADS = {
    "mlp": Workload(mlp, image(256, 784)),
    "cnn": Workload(lambda: own("cnn", "image", (28, 28, 1)), image(128, 1, 28, 28)),
    "vit": Workload(lambda: own("vit", "image", (32, 32, 3)), image(64, 3, 32, 32)),
    "gpt-128": Workload(
        lambda: own("gpt", "language", (128,), 8192), text(16, 128), tokens=True, hooks=False
    ),
    "gpt-512": Workload(
        lambda: own("gpt", "language", (512,), 8192), text(4, 512), tokens=True, hooks=False
    ),
}


def per_sample_loss(workload: Workload, logits: Tensor, y: Tensor) -> Tensor:  # [B]
    if workload.tokens:
        return F.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)
    return F.cross_entropy(logits, y, reduction="none")


def plain(workload: Workload) -> Callable[[], None]:
    torch.manual_seed(0)
    model, (x, y) = workload.model(), workload.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> None:
        per_sample_loss(workload, model(x), y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steelyard(groups: str, sigma: float = SIGMA) -> Callable[[Workload], Callable[[], None]]:
    def make(workload: Workload) -> Callable[[], None]:
        torch.manual_seed(0)
        model, (x, y) = workload.model(), workload.batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        rows = PerSample(model, FlatClip(BOUND), expected_batch=len(x), groups=groups, strict=True)
        attach(optimizer, rows, Gaussian(sigma))

        def step() -> None:
            rows.backward(per_sample_loss(workload, model(x), y))
            optimizer.step()
            optimizer.zero_grad()

        return step

    return make


def opacus(mode: str) -> Callable[[Workload], Callable[[], None]]:
    def make(workload: Workload) -> Callable[[], None]:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer
        from opacus.optimizers.optimizer_fast_gradient_clipping import (
            DPOptimizerFastGradientClipping,
        )
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        torch.manual_seed(0)
        model, (x, y) = workload.model(), workload.batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        options: dict[str, Any] = {
            "noise_multiplier": SIGMA,
            "max_grad_norm": BOUND,
            "expected_batch_size": len(x),
        }
        if mode == "hooks":
            wrapped = GradSampleModule(model, loss_reduction="mean")
            private = DPOptimizer(optimizer, **options)

            def step() -> None:
                per_sample_loss(workload, wrapped(x), y).mean().backward()
                private.step()
                private.zero_grad()

            return step

        wrapped = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=BOUND, use_ghost_clipping=True, loss_reduction="mean"
        )
        private = DPOptimizerFastGradientClipping(optimizer, **options)

        class Criterion(nn.Module):
            reduction = "mean"

            def forward(self, logits: Tensor, y: Tensor) -> Tensor:
                return per_sample_loss(workload, logits, y)

        criterion = DPLossFastGradientClipping(wrapped, private, Criterion(), "mean")

        def ghost() -> None:
            criterion(wrapped(x), y).backward()
            private.step()
            private.zero_grad()

        return ghost

    return make


ENGINES: dict[str, tuple[str, str, Callable[[Workload], Callable[[], None]]]] = {
    "plain": ("plain", "-", plain),
    "steelyard": ("steelyard", "all", steelyard("all")),
    "steelyard-quiet": ("steelyard without noise", "all", steelyard("all", sigma=0.0)),
    "steelyard-layer": ("steelyard", "layer", steelyard("layer")),
    "opacus-ghost": ("opacus ghost", "all", opacus("ghost")),
    "opacus-hooks": ("opacus hooks", "all", opacus("hooks")),
}
