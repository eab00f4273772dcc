"""The oracle of the call rules: what the module itself gives, sample by sample, through autograd.

A `Case` says how the module is called on some of its samples, and which dimension of each output is
the sample. losses[i] = sum of coefficients[i] * output[i] * (1 + output[i]), over the outputs used.
Relative error here: L2 of the difference over L2 of the truth; per parameter in float64, over all
parameters together in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from steelyard.rules.call_rules import CALL_RULES, call_rule_for, needs_rng, supports
from steelyard.rules.calls import Call, rng_state
from steelyard.rules.factors import Factor, squared_norms, weighted_sum

Inputs = Callable[
    [Sequence[int]], tuple[tuple[Any, ...], dict[str, Any]]
]  # samples -> args, kwargs
Row = dict[str, Tensor]


class Case:
    """module: float64. inputs(samples): its arguments when these samples alone are there.
    dims: the sample's dimension of each tensor output; None: the losses do not use that output."""

    def __init__(self, module: nn.Module, inputs: Inputs, dims: Sequence[int | None], B: int):
        self.module, self.inputs, self.dims, self.B = module, inputs, dims, B
        self.wanted = {n for n, p in module.named_parameters() if p.requires_grad}
        self._coefficients: list[Tensor] = []
        for output, dim in zip(self._outputs(module, range(B)), dims, strict=True):
            rows = output if dim is None else output.movedim(dim, 0)
            self._coefficients.append(torch.randn_like(rows.detach()))

    def _outputs(self, module: nn.Module, samples: Sequence[int]) -> list[Tensor]:
        args, kwargs = self.inputs(samples)
        dtype = next(module.parameters()).dtype
        args, kwargs = tree_map(lambda x: cast(x, dtype), (args, kwargs))
        self.called = args, kwargs
        return [o for o in tree_leaves(module(*args, **kwargs)) if isinstance(o, Tensor)]

    def losses(self, outputs: list[Tensor], samples: Sequence[int]) -> Tensor:
        total = torch.zeros(len(samples), dtype=outputs[0].dtype)
        for output, dim, of in zip(outputs, self.dims, self._coefficients, strict=True):
            if dim is not None:
                rows = output.movedim(dim, 0).flatten(1)
                chosen = of[list(samples)].flatten(1).to(rows.dtype)
                total = total + (chosen * rows * (1 + rows)).sum(1)
        return total

    def call(self, module: nn.Module) -> tuple[Call, Tensor]:
        """The call on all samples, recorded by hand, and its losses."""
        rng = rng_state(module) if needs_rng(module) and module.training else None
        outputs = self._outputs(module, range(self.B))
        losses = self.losses(outputs, range(self.B))
        live = [o for o in outputs if o.requires_grad]
        grads = torch.autograd.grad(losses.sum(), live, retain_graph=True, allow_unused=True)
        by_output = {id(o): grad for o, grad in zip(live, grads, strict=True)}
        gradients = [by_output.get(id(o)) for o in outputs]
        args, kwargs = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, self.called)
        return Call(args, kwargs, gradients, [o.shape for o in outputs], rng), losses

    def alone(self) -> list[Row]:
        """Every sample in a forward pass of its own."""
        return [
            self._row(self.losses(self._outputs(self.module, [i]), [i])[0]) for i in range(self.B)
        ]

    def together(self, losses: Tensor) -> list[Row]:
        """Every sample's own loss through the graph of one forward pass: what dropout dropped is
        the same for all."""
        return [self._row(loss) for loss in losses]

    def _row(self, loss: Tensor) -> Row:
        named = {n: p for n, p in self.module.named_parameters() if n in self.wanted}
        grads = torch.autograd.grad(
            loss, list(named.values()), retain_graph=True, allow_unused=True
        )
        return {
            name: torch.zeros_like(p) if g is None else g.to_dense()
            for (name, p), g in zip(named.items(), grads, strict=True)
        }


def check(case: Case, *, random: bool = False, float32: bool = True) -> None:
    """The rule's rows are the oracle's: squared norms and weighted sums.

    random: dropout is at work; the truth is then taken from the very forward that was recorded.
    """
    call, losses = case.call(case.module)
    truth = case.together(losses) if random else case.alone()
    compare(case, case.module, call, truth, 1e-12)
    if float32 and not random:
        single = copy.deepcopy(case.module).float()
        compare(case, single, case.call(single)[0], truth, 1e-6)


def compare(case: Case, module: nn.Module, call: Call, rows: list[Row], tolerance: float) -> None:
    found = rows_of(case, module, call)
    reached = {name for name in case.wanted if any(row[name].any() for row in rows)}
    assert reached <= found.keys() <= case.wanted
    weights, errors, sizes = torch.linspace(-1, 2, case.B, dtype=torch.float64), 0.0, 0.0
    for name, factors in found.items():
        stacked = torch.stack([row[name] for row in rows])
        dtype = torch.promote_types(next(module.parameters()).dtype, torch.float32)
        norms = squared_norms([factors])
        assert norms.dtype == dtype
        if dtype == torch.float64:
            close(norms, stacked.flatten(1).square().sum(1), tolerance, f"norms of {name}")
        total = weighted_sum(factors, weights.to(dtype))
        expected = torch.tensordot(weights, stacked, 1)
        assert total.shape == expected.shape
        errors += float((total - expected).square().sum())
        sizes += float(expected.square().sum())
        if dtype == torch.float64:
            close(total, expected, tolerance, f"sum of {name}")
    assert errors**0.5 <= tolerance * sizes**0.5, f"relative error {(errors / sizes) ** 0.5:.1e}"


def rows_of(case: Case, module: nn.Module, call: Call) -> dict[str, list[Factor]]:
    """What the rule says, called as the engine calls it."""
    rule = call_rule_for(module)
    assert rule is not None
    assert rule in CALL_RULES.values()
    assert supports(module, call) is None
    torch.rand(3)  # others draw between forward and backward
    state = torch.get_rng_state()
    with torch.no_grad():
        found = rule(module, call, case.wanted)
    assert torch.equal(state, torch.get_rng_state()), "the rule moved the generator"
    return found


def close(got: Tensor, truth: Tensor, tolerance: float, what: str) -> None:
    error, size = float((got.double() - truth).norm()), float(truth.norm())
    assert error <= tolerance * max(size, 1e-8), f"{what}: relative error {error / size:.1e}"


def cast(x: object, dtype: torch.dtype) -> object:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
