"""Opacus 1.6 in its five modes, by the doors that its PrivacyEngine uses.

| engine | mode | how it clips |
|---|---|---|
| opacus-ghost | `ghost` | two backward passes, ghost norms |
| opacus-fast | `ghost` with use_ghost_clipping=False | two backward passes, instantiated norms |
| opacus-hooks | `hooks` | per-sample gradients of all layers, then one weighted sum |
| opacus-functorch | `functorch` | the same, each layer's by vmap of its functional copy |
| opacus-ew | `ew` | the same, by torch's ExpandedWeights |

Nothing of Opacus is changed. Its validator decides first, as in `PrivacyEngine.make_private`.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from .engines import Engine, Kind, Make, Settings, sgd
from .workloads import Workload


def opacus(mode: str) -> Make:
    def make(workload: Workload, settings: Settings) -> Engine:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hooks on inputs that need no gradient
            return build(mode, workload, settings)

    return make


def build(mode: str, workload: Workload, settings: Settings) -> Engine:
    from opacus.optimizers import DPOptimizer
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    model, x, y = workload.build()
    wrapped = wrap(mode, model, settings.bound)
    two_passes = mode in ("ghost", "fast")
    kind: Any = DPOptimizerFastGradientClipping if two_passes else DPOptimizer
    private = kind(
        sgd(model, settings),
        noise_multiplier=settings.sigma,
        max_grad_norm=settings.bound,
        expected_batch_size=len(y),
    )

    def zero() -> None:
        private.zero_grad()
        for p in model.parameters():  # Opacus keeps zeros there; nobody else has to
            p.grad = None

    if not two_passes:
        return Engine(
            model=model,
            forward=lambda: workload.losses(wrapped(x), y),
            backward=lambda losses: losses.mean().backward(),
            apply=private.step,
            zero=zero,
        )

    class Criterion(nn.Module):
        reduction = "mean"

        def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
            return workload.losses(outputs, y)

    criterion = DPLossFastGradientClipping(wrapped, private, Criterion(), "mean")
    return Engine(
        model=model,
        forward=lambda: criterion(wrapped(x), y),
        backward=lambda loss: loss.backward(),
        apply=private.step,
        zero=zero,
    )


def wrap(mode: str, model: nn.Module, bound: float) -> Any:
    """The model behind Opacus' validator and the mode's wrapper."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.grad_sample.utils import prepare_module
    from opacus.validators import ModuleValidator

    ModuleValidator.validate(model, strict=True)
    options: dict[str, Any] = {"loss_reduction": "mean"}
    if mode in ("ghost", "fast"):
        options["max_grad_norm"] = bound
    if mode == "fast":
        return GradSampleModuleFastGradientClipping(model, use_ghost_clipping=False, **options)
    return prepare_module(model, mode, **options)


OPACUS = {
    "opacus-ghost": Kind(label="Opacus ghost", family="opacus", make=opacus("ghost")),
    "opacus-fast": Kind(label="Opacus fast gradient", family="opacus", make=opacus("fast")),
    "opacus-hooks": Kind(label="Opacus hooks", family="opacus", make=opacus("hooks"), rows=True),
    "opacus-functorch": Kind(
        label="Opacus functorch", family="opacus", make=opacus("functorch"), rows=True
    ),
    "opacus-ew": Kind(
        label="Opacus expanded weights", family="opacus", make=opacus("ew"), rows=True
    ),
}
