"""Every layer rule x clipping groups x clipping rules; a new layer joins by one line.

Relative error here: L2 of (engine - oracle) over L2 of the oracle's clipped sum, for each clipping
group as a whole. float64: 1e-12. float32: 1e-6 against the oracle's float64 truth.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from steelyard.rows.groups import partition
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import CLIPS

B = 5  # differs from every other dimension below unless a case wants it equal
GROUPS = ["all", "layer", "parameter", 2, ["second.*", "*.bias"]]


@dataclass(frozen=True)
class Case:
    layer: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of one sample
    vocabulary: int = 0  # > 0: integer inputs
    frozen: tuple[str, ...] = ()
    float64: bool = True


def hf_conv1d(d_out: int, d_in: int) -> nn.Module:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(d_out, d_in)


def llama_norm(d: int, eps: float) -> nn.Module:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    return randomised(llama.LlamaRMSNorm(d, eps=eps))


def randomised(layer: nn.Module) -> nn.Module:
    """Affine parameters away from their trivial ones and zeros."""
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer


def padded(layer: nn.Embedding) -> nn.Embedding:
    return randomised(layer)  # type: ignore[return-value]  # a padding row need not be zero


CASES = {
    "linear 2-D": Case(lambda: nn.Linear(3, 4), (3,)),
    "linear 3-D ghost": Case(lambda: nn.Linear(3, 4), (7, 3)),
    "linear 3-D L = B": Case(lambda: nn.Linear(3, 4), (B, 3)),
    "linear 3-D instantiated": Case(lambda: nn.Linear(3, 2), (40, 3)),
    "linear 3-D one position": Case(lambda: nn.Linear(3, 4), (1, 3)),
    "linear 4-D": Case(lambda: nn.Linear(3, 4), (2, 7, 3)),
    "linear no bias": Case(lambda: nn.Linear(3, 4, bias=False), (7, 3)),
    "linear frozen weight": Case(lambda: nn.Linear(3, 4), (7, 3), frozen=("weight",)),
    "linear frozen bias": Case(lambda: nn.Linear(3, 4), (7, 3), frozen=("bias",)),
    "linear frozen": Case(lambda: nn.Linear(3, 4), (7, 3), frozen=("weight", "bias")),
    "hf conv1d 2-D": Case(lambda: hf_conv1d(4, 3), (3,)),
    "hf conv1d 3-D": Case(lambda: hf_conv1d(4, 3), (7, 3)),
    "hf conv1d instantiated": Case(lambda: hf_conv1d(2, 3), (40, 3)),
    "hf conv1d frozen weight": Case(lambda: hf_conv1d(4, 3), (7, 3), frozen=("weight",)),
    "embedding": Case(lambda: nn.Embedding(4, 3), (9,), vocabulary=4),
    "embedding one token": Case(lambda: nn.Embedding(4, 3), (), vocabulary=4),
    "embedding 2-D tokens": Case(lambda: nn.Embedding(4, 3), (2, 3), vocabulary=4),
    "embedding padding": Case(
        lambda: padded(nn.Embedding(4, 3, padding_idx=1)), (9,), vocabulary=4
    ),
    "embedding padding -1": Case(
        lambda: padded(nn.Embedding(4, 3, padding_idx=-1)), (9,), vocabulary=4
    ),
    "layer norm 2-D": Case(lambda: randomised(nn.LayerNorm(6)), (6,)),
    "layer norm 3-D": Case(lambda: randomised(nn.LayerNorm(6)), (7, 6)),
    "layer norm two dims": Case(lambda: randomised(nn.LayerNorm((3, 4))), (2, 3, 4)),
    "layer norm no bias": Case(lambda: randomised(nn.LayerNorm(6, bias=False)), (7, 6)),
    "layer norm no affine": Case(lambda: nn.LayerNorm(6, elementwise_affine=False), (7, 6)),
    "layer norm frozen weight": Case(
        lambda: randomised(nn.LayerNorm(6)), (7, 6), frozen=("weight",)
    ),
    "layer norm frozen bias": Case(lambda: randomised(nn.LayerNorm(6)), (7, 6), frozen=("bias",)),
    "layer norm eps": Case(lambda: randomised(nn.LayerNorm(6, eps=0.5)), (7, 6)),
    "rms norm": Case(lambda: randomised(nn.RMSNorm(6)), (7, 6)),
    "rms norm two dims": Case(lambda: randomised(nn.RMSNorm((3, 4), eps=0.1)), (2, 3, 4)),
    # transformers' norm computes in float32 whatever the model is: no float64 to compare
    "llama norm": Case(lambda: llama_norm(6, 0.1), (7, 6), float64=False),
    "group norm 2-D": Case(lambda: randomised(nn.GroupNorm(2, 6)), (6,)),
    "group norm 3-D": Case(lambda: randomised(nn.GroupNorm(2, 4)), (4, 7)),
    "group norm 4-D": Case(lambda: randomised(nn.GroupNorm(3, 6)), (6, 3, 2)),
    "group norm frozen weight": Case(
        lambda: randomised(nn.GroupNorm(2, 4)), (4, 7), frozen=("weight",)
    ),
    "conv1d": Case(lambda: nn.Conv1d(3, 4, 2), (3, 7)),
    "conv1d all options": Case(
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (4, 11)
    ),
    "conv1d same even": Case(lambda: nn.Conv1d(3, 4, 4, padding="same"), (3, 7)),
    "conv1d circular": Case(lambda: nn.Conv1d(3, 4, 3, padding=2, padding_mode="circular"), (3, 7)),
    "conv1d replicate same": Case(
        lambda: nn.Conv1d(3, 4, 4, padding="same", padding_mode="replicate"), (3, 7)
    ),
    "conv2d": Case(lambda: nn.Conv2d(2, 3, (2, 3)), (2, 4, 7)),
    "conv2d instantiated": Case(lambda: nn.Conv2d(1, 2, 2), (1, 6, 5)),
    "conv2d no bias": Case(lambda: nn.Conv2d(2, 3, 2, bias=False), (2, 4, 3)),
    "conv2d 1x1": Case(lambda: nn.Conv2d(2, 3, 1), (2, 4, 3)),
    "conv2d all options": Case(
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        (4, 7, 6),
    ),
    "conv2d depthwise": Case(lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), (3, 4, 6)),
    "conv2d valid": Case(lambda: nn.Conv2d(2, 3, 3, padding="valid", dilation=2), (2, 6, 7)),
    "conv2d same even": Case(lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 6, 7)),
    "conv2d same dilated": Case(
        lambda: nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(3, 2)), (2, 6, 7)
    ),
    "conv2d circular": Case(
        lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 6)
    ),
    "conv2d reflect groups": Case(
        lambda: nn.Conv2d(2, 4, 3, padding=(2, 1), padding_mode="reflect", groups=2), (2, 4, 6)
    ),
    "conv2d frozen weight": Case(lambda: nn.Conv2d(2, 3, 2), (2, 4, 3), frozen=("weight",)),
    "conv2d frozen bias": Case(lambda: nn.Conv2d(2, 3, 2), (2, 4, 3), frozen=("bias",)),
    "conv2d channels last": Case(lambda: channels_last(nn.Conv2d(3, 4, 3, padding=1)), (3, 4, 5)),
    "conv3d": Case(lambda: nn.Conv3d(2, 3, (1, 2, 2), stride=(1, 1, 2), padding=1), (2, 2, 3, 4)),
    "conv3d groups": Case(lambda: nn.Conv3d(4, 6, 2, groups=2, dilation=(1, 2, 1)), (4, 3, 4, 3)),
    "transposed 1d": Case(lambda: nn.ConvTranspose1d(3, 4, 2), (3, 7)),
    "transposed 1d all options": Case(
        lambda: nn.ConvTranspose1d(
            4, 6, 3, stride=3, padding=2, output_padding=1, groups=2, dilation=2
        ),
        (4, 5),
    ),
    "transposed 2d": Case(lambda: nn.ConvTranspose2d(2, 3, (2, 3)), (2, 4, 3)),
    "transposed 2d all options": Case(
        lambda: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2
        ),
        (4, 3, 2),
    ),
    "transposed 2d instantiated": Case(lambda: nn.ConvTranspose2d(1, 2, 2), (1, 6, 5)),
    "transposed 2d no bias": Case(lambda: nn.ConvTranspose2d(2, 3, 2, bias=False), (2, 4, 3)),
    "transposed 2d frozen weight": Case(
        lambda: nn.ConvTranspose2d(2, 3, 2), (2, 4, 3), frozen=("weight",)
    ),
    "transposed 3d": Case(lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 2)),
    "instance norm 3-D": Case(lambda: randomised(nn.InstanceNorm1d(4, affine=True)), (4, 7)),
    "instance norm 4-D": Case(
        lambda: randomised(nn.InstanceNorm2d(4, affine=True, eps=0.1)), (4, 3, 2)
    ),
    "instance norm 5-D": Case(lambda: randomised(nn.InstanceNorm3d(3, affine=True)), (3, 2, 2, 2)),
    "instance norm frozen bias": Case(
        lambda: randomised(nn.InstanceNorm1d(4, affine=True)), (4, 7), frozen=("bias",)
    ),
    "attention": Case(lambda: Alone(nn.MultiheadAttention(4, 2, batch_first=True)), (6, 4)),
    "lstm": Case(lambda: Alone(nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)), (6, 3)),
    "gru": Case(lambda: Alone(nn.GRU(3, 4, batch_first=True)), (6, 3)),
    "rnn": Case(lambda: Alone(nn.RNN(3, 4, batch_first=True)), (6, 3)),
    "embedding bag": Case(lambda: nn.EmbeddingBag(4, 3), (9,), vocabulary=4),
    "embedding bag sum": Case(lambda: nn.EmbeddingBag(7, 3, mode="sum"), (4,), vocabulary=7),
    "embedding bag max": Case(lambda: nn.EmbeddingBag(5, 3, mode="max"), (3,), vocabulary=5),
    "t5 norm": Case(lambda: t5_norm(6), (7, 6), float64=False),
}


class Alone(nn.Module):
    """A module with several inputs or outputs as a layer of one."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        attends = isinstance(self.inner, nn.MultiheadAttention)
        return self.inner(*[x] * 3)[0] if attends else self.inner(x)[0]


def channels_last(layer: nn.Module) -> nn.Module:
    return layer.to(memory_format=torch.channels_last)


def t5_norm(d: int) -> nn.Module:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    return randomised(t5.T5LayerNorm(d))


class Around(nn.Module):
    """The layer under test, then two small linear layers: B x anything -> B x 2."""

    def __init__(self, layer: nn.Module, x: Tensor):
        super().__init__()
        self.layer = layer
        self.first = nn.Linear(layer(x)[0].numel(), 3)
        self.second = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.tanh(self.layer(x)).flatten(1))))


def losses(model: nn.Module, x: Tensor, weight: Tensor) -> Tensor:  # [B]
    # sample 1 has a gradient of exactly zero, sample 3 a large one
    return weight * model(x).square().sum(1)


@lru_cache
def built(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    case = CASES[name]
    torch.manual_seed(0)
    layer = case.layer()
    x = torch.randn(B, *case.shape)
    if case.vocabulary:
        x = torch.randint(0, case.vocabulary, (B, *case.shape))
    model = Around(layer, x)
    for parameter in case.frozen:
        layer.get_parameter(parameter).requires_grad_(False)
    return model, x, torch.tensor([1.3, 0.0, 0.2, 30.0, 1.0])


def in_float64(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


@pytest.fixture(scope="module")
def truth(oracle):
    """The oracle's rows of a case, in float64, computed once."""

    @lru_cache
    def rows(name: str):
        model, x, weight = built(name)
        return oracle.per_sample(
            copy.deepcopy(model).double(), losses, in_float64(x), weight.double()
        )

    return rows


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_clipped_sum_is_the_oracles(oracle, truth, name, groups):
    model, x, weight = built(name)
    norms = sorted(oracle.norm(row) for row in truth(name))
    assert norms[0] == 0 < norms[1]
    bound = (norms[2] * norms[3]) ** 0.5  # some rows are clipped, some are not
    lists = partition({n: p for n, p in model.named_parameters() if p.requires_grad}, groups)
    runs = [(model, x, weight, 1e-6)]
    if CASES[name].float64:
        exact = copy.deepcopy(model).double()
        runs.append((exact, in_float64(x), weight.double(), 1e-12))

    for net, inputs, weights, tolerance in runs:
        for clip in CLIPS:
            rule = CLIPS[clip](bound)
            with PerSample(net, rule, expected_batch=1.0, groups=groups, strict=True) as rows:
                rows.backward(losses(net, inputs, weights))
                assert rows.engine == "book-keeping"
                got = dict(zip(rows.names, rows.take().tensors, strict=True))
            expected = oracle.clipped_sum(truth(name), lists, clip, bound)
            for group in lists:
                error = oracle.relative_error(got, expected, group)
                assert error <= tolerance, (clip, inputs.dtype, group, error)


def test_the_oracle_can_disagree(oracle, truth):
    """Leaving out the smallest tensor's clipping moves the error far above the tolerance."""
    rows = truth("linear 3-D ghost")
    together = oracle.clipped_sum(rows, [list(rows[0])], "flat", 0.1)
    apart = oracle.clipped_sum(rows, [[n] for n in rows[0]], "flat", 0.1)
    assert oracle.relative_error(apart, together, list(together)) > 1e-2
