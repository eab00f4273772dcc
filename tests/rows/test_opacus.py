"""Side by side with Opacus 1.6: an oracle that we did not write, in every mode that it has.

| mode | how Opacus gets the clipped sum |
|---|---|
| hooks | every sample's gradient, by a formula per layer |
| functorch | every sample's gradient, by `vmap` |
| ew | every sample's gradient, by torch's expanded weights |
| ghost | two backward passes; norms without gradients for Linear and Embedding |
| fast | two backward passes; norms from every sample's gradient |

Opacus clips by min(1, R / (||g|| + 1e-6)); `OpacusClip` does the same, so that equality is exact:
to 1e-12 of the whole sum, in float64.
"""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

opacus = pytest.importorskip("opacus")

from opacus import layers, optimizers  # noqa: E402
from opacus.grad_sample import (  # noqa: E402
    GradSampleModule,
    GradSampleModuleExpandedWeights,
    GradSampleModuleFastGradientClipping,
)
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping  # noqa: E402

# Opacus' hooks on inputs without gradients; its functions that torch deprecates
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

MODELS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("opacus_models.py"))))
Case, CASES = MODELS.Case, MODELS.CASES
WEIGHTS = torch.tensor([1.0, 5.0, 0.0, 0.1, 30.0, 2.0]).double()  # of the samples' losses
MODES = ("hooks", "functorch", "ew", "ghost", "fast")
Sums = dict[str, Tensor]


class OpacusClip(FlatClip):
    def __call__(self, norms: Tensor) -> Tensor:
        return (self.bound / (norms + 1e-6)).clamp(max=1.0)


def losses(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # [B]
    """Of a function with curvature: rows of different directions and sizes."""
    y = model(x).flatten(1)
    gap = y + 0.1 * y.square() - torch.linspace(-1, 1, y.shape[1]).cos()
    return WEIGHTS * gap.square().mean(1)


def prepared(case: Any) -> tuple[nn.Module, Tensor, float]:
    """Model, inputs, and a bound that some rows are within and some past."""
    model = case.build().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    x = case.batch()
    sizes = []
    for loss in losses(model, x):
        parameters = [p for p in model.parameters() if p.requires_grad]
        rows = torch.autograd.grad(loss, parameters, retain_graph=True)
        sizes.append(float(torch.cat([row.flatten() for row in rows]).norm()))
    return model, x, sorted(sizes)[2]


def ours(model: nn.Module, x: Tensor, bound: float, groups: str = "all") -> Sums:
    rule = OpacusClip(bound)
    with PerSample(model, rule, expected_batch=1, groups=groups, strict=True) as rows:
        for _ in range(2):  # the first batch is the one that proves the rules
            rows.discard()
            rows.backward(losses(model, x))
        return dict(zip(rows.names, rows.take().tensors, strict=True))


def theirs(mode: str, model: nn.Module, x: Tensor, bound: float) -> Sums:
    """The clipped sum of Opacus, before noise."""
    options = {"noise_multiplier": 0.0, "max_grad_norm": bound, "expected_batch_size": 1}
    plain = torch.optim.SGD(model.parameters())
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if mode in ("ghost", "fast"):
        wrapped = GradSampleModuleFastGradientClipping(
            model,
            loss_reduction="sum",
            max_grad_norm=bound,  # pyright: ignore[reportArgumentType]  # any positive number
            use_ghost_clipping=mode == "ghost",
        )
        private = optimizers.DPOptimizerFastGradientClipping(plain, loss_reduction="sum", **options)
        DPTensorFastGradientClipping(wrapped, private, losses(wrapped, x), "sum").backward()
        return {name: p.grad.clone() for name, p in names.items() if p.grad is not None}
    if mode == "ew":
        wrapped = GradSampleModuleExpandedWeights(model, loss_reduction="sum")
    else:
        wrapped = GradSampleModule(model, loss_reduction="sum", force_functorch=mode == "functorch")
    private = optimizers.DPOptimizer(plain, loss_reduction="sum", **options)
    losses(wrapped, x).sum().backward()
    private.clip_and_accumulate()
    return summed(names)


def summed(names: dict[str, Any]) -> Sums:
    return {name: p.summed_grad for name, p in names.items()}


def error(got: Sums, wanted: Sums) -> float:
    assert got.keys() == wanted.keys()
    size = torch.cat([t.flatten() for t in wanted.values()]).norm()
    return float(torch.cat([(got[name] - wanted[name]).flatten() for name in wanted]).norm() / size)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_the_clipped_sum_is_that_of_opacus(name, mode):
    case = CASES[name]
    if mode in case.not_in:
        pytest.skip(f"{mode} of Opacus does not serve it")
    model, x, bound = prepared(case)
    wanted = theirs(mode, copy.deepcopy(model), x, bound)
    assert error(ours(model, x, bound), wanted) < 1e-12


class Last(nn.Module):
    """A recurrent layer, and a head on its last state."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.head = inner, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0])[:, -3:]


RECURRENT = {
    "rnn": (nn.RNN, layers.DPRNN),
    "lstm": (nn.LSTM, layers.DPLSTM),
    "gru": (nn.GRU, layers.DPGRU),
}


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost", "fast"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_are_those_of_opacus(kind, options, mode):
    """torch's layer with our rule, and Opacus' own layer with the same weights, against Opacus."""
    usual, private = RECURRENT[kind]
    width = 2 if options else 4
    model, x, bound = prepared(
        Case(lambda: Last(usual(3, width, batch_first=True, **options)), (5, 3))
    )
    twin = Last(private(3, width, batch_first=True, **options)).double()
    twin.inner.load_state_dict(model.get_submodule("inner").state_dict())
    twin.head.load_state_dict(model.get_submodule("head").state_dict())
    wanted = theirs(mode, copy.deepcopy(twin), x, bound)
    assert error(ours(model, x, bound), wanted) < 1e-12
    assert error(ours(twin, x, bound), wanted) < 1e-12  # one linear layer, called at every step


class Attention(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.before, self.inner = nn.Linear(3, 4), inner

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.inner(x, torch.tanh(x), x)[0]


@pytest.mark.parametrize("mode", ["hooks", "ghost", "fast"])
def test_attention_is_that_of_opacus(mode):
    """torch's layer with our rule, against Opacus' own, whose three projections are one of torch's.

    One head: with batch_first and more of them, Opacus' layer computes something else.
    """

    case = Case(lambda: Attention(nn.MultiheadAttention(4, 1, batch_first=True)), (5, 3))
    model, x, bound = prepared(case)
    twin = Attention(layers.DPMultiheadAttention(4, 1, batch_first=True)).double()
    twin.before.load_state_dict(model.get_submodule("before").state_dict())
    twin.inner.load_state_dict(model.get_submodule("inner").state_dict())
    found = theirs(mode, twin, x, bound)
    parts = [
        [found.pop(f"inner.{one}linear.{what}") for one in "qkv"] for what in ("weight", "bias")
    ]
    found["inner.in_proj_weight"], found["inner.in_proj_bias"] = (torch.cat(part) for part in parts)
    assert error(ours(model, x, bound), found) < 1e-12


def test_groups_are_the_per_layer_clipping_of_opacus():
    """R_m = R / sqrt(M) for every parameter."""
    model, x, bound = prepared(CASES["convolutional net"])
    twin = copy.deepcopy(model)
    names = dict(twin.named_parameters())
    wrapped = GradSampleModule(twin, loss_reduction="sum")
    private = optimizers.DPPerLayerOptimizer(
        torch.optim.SGD(twin.parameters()), noise_multiplier=0.0, expected_batch_size=1,
        max_grad_norm=[bound / len(names) ** 0.5] * len(names), loss_reduction="sum",
    )  # fmt: skip
    losses(wrapped, x).sum().backward()
    private.clip_and_accumulate()
    assert error(ours(model, x, bound, groups="parameter"), summed(names)) < 1e-12


@pytest.mark.parametrize("bound", [0.05, 1.0, 1e6])
@pytest.mark.parametrize("name", ["embedding", "convolutional net", "linear 2-D", "gpt"])
def test_three_steps_are_opacus_three_steps(name, bound):
    mine = CASES[name].build().double()
    other = copy.deepcopy(mine)

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    optimizer = sgd(mine)
    rows = PerSample(mine, OpacusClip(bound), expected_batch=8, strict=True)
    attach(optimizer, rows, Gaussian(0.0))
    wrapped = GradSampleModule(other, loss_reduction="sum")
    private = optimizers.DPOptimizer(
        sgd(other), noise_multiplier=0.0, max_grad_norm=bound, expected_batch_size=8,
        loss_reduction="mean",  # divide the clipped sum by the expected batch size
    )  # fmt: skip
    for _ in range(3):
        x = CASES[name].batch()
        rows.backward(losses(mine, x))
        optimizer.step()
        private.zero_grad()
        losses(wrapped, x).sum().backward()
        private.step()
        for p, q in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
        optimizer.zero_grad()
