"""How many operations the algorithm needs: counted from the layers' shapes, and as measured.

For a layer with input [B, L, n] and output [B, L, m] one product takes 2 B L m n operations
(multiplications and additions; a convolution's n is channels x kernel, L its output positions).

| | plain step | private step (book-keeping, arXiv 2210.00038) |
|---|---|---|
| forward | 1 product | 1 |
| input gradient | 1, none where nothing below is trained | the same |
| weight gradient | 1, none where the weight is frozen | 1: of weighted rows, or of each row |
| norms | - | least: min(2 B L^2 (m + n), 4 B m n); BK-MixOpt: 2 B L^2 (m + n) if 2 L^2 < m n |

4 B m n is the norm and the weighted sum of instantiated rows: few operations, but they wait for
memory; that is why "least" is a floor and "BK-MixOpt" the rule of the paper. Attention's products
are the same in both steps: they are taken from the measured plain step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .engines import Engine
from .workloads import Workload

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class Product:
    """One call of a layer that multiplies by a matrix."""

    L: int
    m: int
    n: int
    needs_input: bool  # something below it is trained
    trains: bool

    @property
    def plain(self) -> int:
        """Operations per sample."""
        return 2 * self.L * self.m * self.n * (1 + self.needs_input + self.trains)

    @property
    def ghost(self) -> int:
        return 2 * self.L**2 * (self.m + self.n)

    @property
    def least(self) -> int:
        """The cheapest norm, per sample."""
        return min(self.ghost, 4 * self.m * self.n) if self.trains else 0

    @property
    def mixopt(self) -> int:
        """The norm by the paper's rule, per sample."""
        return self.ghost if self.trains and self.m * self.n > 2 * self.L**2 else 0


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Ratios to the plain step's operations, and its operations."""

    plain_gflop: float
    least: float
    mixopt: float
    measured: float  # steelyard, all-layer

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


def products(workload: Workload) -> list[Product]:
    """The matrix products of one forward pass."""
    model, x, _ = workload.build()
    found: list[Product] = []

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        m, n = weight.shape[0], weight[0].numel()
        found.append(
            Product(
                L=output.numel() // (len(x) * m),
                m=m,
                n=n,
                needs_input=inputs[0].requires_grad,
                trains=weight.requires_grad,
            )
        )

    handles = [
        module.register_forward_hook(see)
        for module in model.modules()
        if isinstance(module, LAYERS)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def floors(workload: Workload, plain: Engine, ours: Engine) -> Floors:
    """Both engines must be warm."""
    layers, batch = products(workload), len(workload.build()[2])
    whole = measured(plain.step)
    return Floors(
        plain_gflop=whole / 1e9,
        least=1 + batch * sum(p.least for p in layers) / whole,
        mixopt=1 + batch * sum(p.mixopt for p in layers) / whole,
        measured=measured(ours.step) / whole,
    )


def measured(step: Callable[[], object]) -> int:
    """Operations of the products that torch's FlopCounterMode saw, attention on CPUs included."""

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(dy: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(dy, query, key, value)

    on_cpu = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        step()
    return counter.get_total_flops()
