"""Strong peers in plain torch: the same flat clipping and noise, and the same SGD.

| engine | how it gets the clipped sum |
|---|---|
| peer-ghost | pass 1: norms from layer inputs and output gradients, no weight gradients; pass 2: |
| | ordinary backward of sum_i C_i loss_i (GhostClip; per layer the cheaper of two norms) |
| peer-fast | the same with norms of instantiated gradients (FastGradClip, arXiv 2009.03106) |
| peer-vmap | vmap(grad): all per-sample gradients, then one weighted sum |
| peer-loop | one sample after the other |

They know the layers of the benchmark models and refuse others, and a parameter used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .engines import Engine, Kind, Make, Settings, sgd, trainable
from .norms import SQUARES
from .workloads import Workload


class Norms:
    """Per-sample gradient norms by hooks and one backward pass that skips weight gradients."""

    def __init__(self, model: nn.Module, *, ghost: bool):
        self.ghost = ghost
        self.uses: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.batch = 0
        model.register_forward_pre_hook(self.began)
        seen: set[int] = set()
        for name, module in model.named_modules():
            own = [p for p in module.parameters(recurse=False) if p.requires_grad]
            if own and type(module) not in SQUARES:
                raise ValueError(f"the peers know no {type(module).__name__} ({name})")
            if any(id(p) in seen for p in own):
                raise ValueError(f"a parameter of {name} has a second use")
            seen |= {id(p) for p in own}
            if own:
                module.register_forward_hook(self.record)
                if isinstance(module, nn.Embedding):
                    module.register_forward_pre_hook(self.expand)

    def began(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.uses, self.batch = [], len(inputs[0])

    def expand(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Positions [1, T], shared by the samples: one row for each."""
        (index,) = inputs
        return (index.expand(self.batch, -1),) if len(index) == 1 else None

    def record(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.uses.append((module, inputs[0].detach(), output))

    def of(self, losses: Tensor) -> Tensor:  # [B] -> [B]
        uses, self.uses = self.uses, []
        outputs = [output for _, _, output in uses]
        gradients = torch.autograd.grad(losses.sum(), outputs, retain_graph=True)
        squares = [
            square
            for (module, x, _), dy in zip(uses, gradients, strict=True)
            for square in SQUARES[type(module)](module, x, dy, self.ghost)
        ]
        return torch.stack(squares).sum(0).sqrt()


def two_passes(*, ghost: bool) -> Make:
    def make(workload: Workload, settings: Settings) -> Engine:
        model, x, y = workload.build()
        norms = Norms(model, ghost=ghost)

        def backward(losses: Tensor) -> None:
            weights = clip(norms.of(losses), settings.bound) / len(y)
            (weights * losses).sum().backward()

        return engine(model, settings, len(y), lambda: workload.losses(model(x), y), backward)

    return make


def vmapped(workload: Workload, settings: Settings) -> Engine:
    model, x, y = workload.build()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = trainable(model)

    def loss(values: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(model, dict(zip(names, values, strict=True)), (x[None],))
        return workload.losses(outputs, y[None])[0]

    rows_of = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")

    def backward(_: object) -> None:
        with torch.no_grad():
            rows = rows_of([p.detach() for p in parameters], x, y)
            parts = [torch.linalg.vector_norm(row.flatten(1), dim=1) for row in rows]
            norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
            weights = clip(norms, settings.bound) / len(y)
            for p, row in zip(parameters, rows, strict=True):
                p.grad = (weights @ row.flatten(1)).view_as(p)

    return engine(model, settings, len(y), lambda: None, backward)


def loop(workload: Workload, settings: Settings) -> Engine:
    model, x, y = workload.build()
    parameters = trainable(model)

    def backward(_: object) -> None:
        for i in range(len(y)):
            losses = workload.losses(model(x[i : i + 1]), y[i : i + 1])
            row = torch.autograd.grad(losses.sum(), parameters)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(row)))
            torch._foreach_mul_(row, float(clip(norm, settings.bound)) / len(y))
            sums = [p.grad for p in parameters if p.grad is not None]
            if sums:
                torch._foreach_add_(sums, row)
            else:
                for p, g in zip(parameters, row, strict=True):
                    p.grad = g

    return engine(model, settings, len(y), lambda: None, backward)


def clip(norms: Tensor, bound: float) -> Tensor:
    return (bound / norms).clamp(max=1.0)


def engine(
    model: nn.Module,
    settings: Settings,
    batch: int,
    forward: Callable[[], object],
    backward: Callable[..., None],
) -> Engine:
    """Noise on every parameter's mean gradient, one `normal_` each, then SGD."""
    optimizer, parameters = sgd(model, settings), trainable(model)
    deviation = settings.sigma * settings.bound / batch

    def apply() -> None:
        if deviation > 0:
            for p in parameters:
                assert p.grad is not None
                p.grad.add_(torch.empty_like(p).normal_(), alpha=deviation)
        optimizer.step()

    return Engine(
        model=model, forward=forward, backward=backward, apply=apply, zero=optimizer.zero_grad
    )


PEERS = {
    "peer-ghost": Kind(label="two passes, ghost", family="peer", make=two_passes(ghost=True)),
    "peer-fast": Kind(label="two passes, rows", family="peer", make=two_passes(ghost=False)),
    "peer-vmap": Kind(label="vmap(grad)", family="peer", make=vmapped, rows=True),
    "peer-loop": Kind(label="one by one", family="peer", make=loop),
}
