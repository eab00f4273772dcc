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
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from steelyard import models
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

B = 6
WEIGHTS = torch.tensor([1.0, 5.0, 0.0, 0.1, 30.0, 2.0]).double()  # of the samples' losses
MODES = ("hooks", "functorch", "ew", "ghost", "fast")
Sums = dict[str, Tensor]


class OpacusClip(FlatClip):
    def __call__(self, norms: Tensor) -> Tensor:
        return (self.bound / (norms + 1e-6)).clamp(max=1.0)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of a sample
    vocabulary: int = 0  # > 0: integer inputs
    not_in: tuple[str, ...] = ()  # modes of Opacus that do not serve it

    def batch(self) -> Tensor:
        if self.vocabulary:
            return torch.randint(0, self.vocabulary, (B, *self.shape))
        return torch.randn(B, *self.shape).double()


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def chain(*parts: nn.Module) -> Callable[[], nn.Module]:
    """The layer under test stands in the middle: its inputs need gradients too."""
    return lambda: nn.Sequential(*(copy.deepcopy(part) for part in parts))


def frozen(layer: nn.Module, name: str) -> nn.Module:
    layer.get_parameter(name).requires_grad_(False)
    return layer


def gpt() -> nn.Module:
    task = models.Task(kind="language", shape=(6,), vocabulary=11)
    return models.build("gpt", task, seed=0, layers=2, width=8, heads=2, tied=False)


def lora() -> nn.Module:
    return nn.Sequential(
        LoRA(nn.Linear(4, 6), 2), nn.GELU(), LoRA(nn.Linear(6, 5), 3), nn.LayerNorm(5)
    )


CASES = {
    "linear 2-D": Case(chain(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (5,)),
    "linear 3-D": Case(chain(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)), (7, 3)),
    "linear 4-D": Case(chain(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (2, 5, 3), 0, ("ghost",)),
    "frozen weight": Case(chain(frozen(nn.Linear(3, 4), "weight"), nn.Linear(4, 2)), (7, 3)),
    "frozen bias": Case(chain(frozen(nn.Linear(3, 4), "bias"), nn.Linear(4, 2)), (7, 3)),
    "embedding": Case(chain(nn.Embedding(7, 4), nn.Linear(4, 3)), (9,), 7),
    "conv1d": Case(chain(nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.Conv1d(4, 3, 2)), (2, 11)),
    "conv1d groups": Case(
        chain(nn.Conv1d(4, 6, 3, dilation=2, groups=2), nn.Conv1d(6, 6, 2, groups=6)), (4, 9)
    ),
    "conv2d": Case(
        chain(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=1, dilation=2), nn.Conv2d(4, 3, 1)),
        (2, 8, 6),
    ),
    "conv2d groups": Case(
        chain(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Conv2d(6, 3, 2, groups=3)), (4, 6, 5)
    ),
    "conv2d same": Case(chain(nn.Conv2d(2, 4, (4, 3), padding="same"), nn.Conv2d(4, 3, 2)), (2, 6, 5)),
    "conv3d": Case(
        chain(nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=1), nn.Conv3d(4, 2, 1)), (2, 3, 4, 3)
    ),
    "conv3d groups": Case(
        chain(nn.Conv3d(4, 4, 2, groups=2, dilation=(1, 2, 1)), nn.Conv3d(4, 2, 1)),
        (4, 3, 5, 3), 0, ("ew",),
    ),
    "layer norm": Case(chain(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (7, 3)),
    "layer norm 2-D": Case(chain(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (4,)),
    "layer norm two dims": Case(chain(nn.LayerNorm((4, 5)), nn.Linear(5, 3)), (4, 5)),
    "rms norm": Case(chain(nn.Linear(3, 5), nn.RMSNorm(5), nn.Linear(5, 3)), (7, 3), 0, ("ew",)),
    "group norm": Case(chain(nn.Conv1d(3, 6, 2), nn.GroupNorm(3, 6), nn.Conv1d(6, 2, 2)), (3, 8)),
    "instance norm 1-D": Case(
        chain(nn.Conv1d(3, 4, 2), nn.InstanceNorm1d(4, affine=True), nn.Tanh(), nn.Linear(7, 3)),
        (3, 8),
    ),
    "instance norm 2-D": Case(
        chain(nn.Conv2d(3, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.Tanh(), nn.Conv2d(4, 2, 2)),
        (3, 6, 5),
    ),
    "instance norm 3-D": Case(
        chain(nn.Conv3d(1, 3, 2), nn.InstanceNorm3d(3, affine=True), nn.Tanh(), nn.Conv3d(3, 2, 1)),
        (1, 4, 3, 4),
    ),
    "gpt": Case(gpt, (6,), 11),
    "lora": Case(lora, (7, 4)),
    "convolutional net": Case(
        chain(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2), nn.GroupNorm(2, 4), nn.Tanh(),
            nn.Conv2d(4, 4, 2, groups=2, bias=False), nn.Flatten(), nn.Linear(16, 3),
        ),
        (2, 8, 8),
    ),
}  # fmt: skip


def losses(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # [B]
    """Of a function with curvature: rows of different directions and sizes."""
    y = model(x).flatten(1)
    return WEIGHTS * (y + 0.1 * y.square() - torch.linspace(-1, 1, y.shape[1]).cos()).square().mean(1)


def prepared(case: Case) -> tuple[nn.Module, Tensor, float]:
    """Model, inputs, and a bound that some rows are within and some past."""
    model = case.build().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
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
        for _ in range(2):
            rows.backward(losses(model, x))
            taken = rows.take()
        return dict(zip(rows.names, taken.tensors, strict=True))


def theirs(mode: str, model: nn.Module, x: Tensor, bound: float) -> Sums:
    """The clipped sum of Opacus, before noise."""
    options = {"noise_multiplier": 0.0, "max_grad_norm": bound, "expected_batch_size": 1}
    plain = torch.optim.SGD(model.parameters())
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if mode in ("ghost", "fast"):
        wrapped = GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", max_grad_norm=bound, use_ghost_clipping=mode == "ghost"
        )
        private = optimizers.DPOptimizerFastGradientClipping(plain, loss_reduction="sum", **options)
        DPTensorFastGradientClipping(wrapped, private, losses(wrapped, x), "sum").backward()
        return {name: p.grad.clone() for name, p in names.items() if p.grad is not None}
    if mode == "ew":
        wrapped = GradSampleModuleExpandedWeights(model, loss_reduction="sum")
    else:
        wrapped = GradSampleModule(
            model, loss_reduction="sum", force_functorch=mode == "functorch"
        )
    private = optimizers.DPOptimizer(plain, loss_reduction="sum", **options)
    losses(wrapped, x).sum().backward()
    private.clip_and_accumulate()
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


RECURRENT = {"rnn": (nn.RNN, layers.DPRNN), "lstm": (nn.LSTM, layers.DPLSTM), "gru": (nn.GRU, layers.DPGRU)}


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost", "fast"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_are_those_of_opacus(kind, options, mode):
    """torch's layer with our rule, against Opacus' own layer with the same weights."""
    usual, private = RECURRENT[kind]
    width = 2 if options else 4
    model, x, bound = prepared(Case(lambda: Last(usual(3, width, batch_first=True, **options)), (5, 3)))
    twin = Last(private(3, width, batch_first=True, **options)).double()
    twin.inner.load_state_dict(model.inner.state_dict())
    twin.head.load_state_dict(model.head.state_dict())
    assert error(ours(model, x, bound), theirs(mode, twin, x, bound)) < 1e-12


class Attention(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.before, self.inner = nn.Linear(3, 4), inner

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.inner(x, torch.tanh(x), x)[0]


@pytest.mark.parametrize("mode", ["hooks", "ghost", "fast"])
def test_attention_is_that_of_opacus(mode):
    """torch's layer with our rule, against Opacus' own: its three projections are one of torch's. One head:
    with batch_first and more of them, Opacus' layer computes something else."""

    case = Case(lambda: Attention(nn.MultiheadAttention(4, 1, batch_first=True)), (5, 3))
    model, x, bound = prepared(case)
    twin = Attention(layers.DPMultiheadAttention(4, 1, batch_first=True)).double()
    twin.before.load_state_dict(model.before.state_dict())
    twin.inner.load_state_dict(model.inner.state_dict())
    found = theirs(mode, twin, x, bound)
    parts = [[found.pop(f"inner.{one}linear.{what}") for one in "qkv"] for what in ("weight", "bias")]
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
    wanted = {name: p.summed_grad for name, p in names.items()}
    assert error(ours(model, x, bound, groups="parameter"), wanted) < 1e-12


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
