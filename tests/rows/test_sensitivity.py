"""The guarantee itself: `take` moves by at most R / B when one sample is added or removed.

Measured on the tensors that wait for their noise, by leaving out one sample after the other, for
every clipping rule and group style, on batches with ordinary, huge, tiny and zero rows.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from steelyard import models
from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped, RowWeighting
from steelyard.weightings.clip import CLIPS, AutoClip, FlatClip

SCALES = torch.tensor([1.0, 1e4, 1e-6, 0.0, 3.0])  # of the five samples' losses
SLACK = 1e-5  # float32


def distance(one: Clipped, other: Clipped) -> float:
    gaps = [
        (a.double() - b.double()).square().sum()
        for a, b in zip(one.tensors, other.tensors, strict=True)
    ]
    return math.sqrt(float(torch.stack(gaps).sum()))


def size(clipped: Clipped) -> float:
    return distance(clipped, Clipped([t.new_zeros(()) for t in clipped.tensors], 0.0))


def classified(model: nn.Module, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:  # [B]
    return scale * F.cross_entropy(model(x), y, reduction="none")


def continued(model: nn.Module, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:  # [B]
    return scale * F.cross_entropy(model(x).transpose(1, 2), y, reduction="none").sum(1)


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2),
        nn.GroupNorm(1, 2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(18, 3),
    )


def tied_gpt() -> nn.Module:
    task = models.Task(kind="language", shape=(6,), vocabulary=7)
    return models.build("gpt", task, seed=0, layers=1, width=4, heads=2, tied=True)


def image_batch() -> tuple[Tensor, ...]:
    return torch.randn(5, 1, 8, 8), torch.randint(0, 3, (5,)), SCALES


def token_batch() -> tuple[Tensor, ...]:
    return torch.randint(0, 7, (5, 6)), torch.randint(0, 7, (5, 6)), SCALES


WORKLOADS = {
    "cnn": (small_cnn, image_batch, classified),
    "tied gpt": (tied_gpt, token_batch, continued),
}


def taken(model, losses, data, weighting: RowWeighting, groups) -> Clipped:
    with PerSample(model, weighting, expected_batch=5, groups=groups) as rows:
        rows.backward(losses(model, *data))
        return rows.take()


@pytest.mark.parametrize("groups", ["all", "layer", "parameter", 2, ["*.bias"]], ids=str)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_leaving_one_sample_out_moves_the_sum_by_at_most_the_sensitivity(workload, clip, groups):
    build, batch, losses = WORKLOADS[workload]
    model, data = build(), batch()
    if workload == "tied gpt" and groups == ["*.bias"]:
        groups = ["*norm*"]
    whole = taken(model, losses, data, CLIPS[clip](0.7), groups)
    assert whole.sensitivity == pytest.approx(0.7 / 5, rel=1e-12)
    moved = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        rest = taken(model, losses, [part[others] for part in data], CLIPS[clip](0.7), groups)
        moved.append(distance(whole, rest))
    assert max(moved) <= whole.sensitivity * (1 + SLACK)
    if clip != "global":  # the bound is tight: the huge sample uses it up
        assert max(moved) > 0.9 * whole.sensitivity


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_the_bound_covers_all_micro_batches_of_a_step(engine):
    build, batch, losses = WORKLOADS["cnn"]
    model, (x, y, scale) = build(), batch()
    sums = []
    for keep in (range(5), [0, 2, 3, 4]):
        with PerSample(model, FlatClip(0.7), expected_batch=5, engine=engine) as rows:
            for i in keep:
                rows.backward(losses(model, x[i : i + 1], y[i : i + 1], scale[i : i + 1]))
            sums.append(rows.take())
    assert distance(*sums) <= 0.7 / 5 * (1 + SLACK)


# -- numbers that try to get around the norm -------------------------------------------------


def cancelling(seed: int, offset: float, B: int = 1) -> tuple[nn.Linear, Tensor, Tensor]:
    """Inputs nearly the same at all positions, output gradients that sum to about zero: the ghost
    norm is a small difference of huge numbers."""
    torch.manual_seed(seed)
    x = offset + 0.01 * torch.randn(B, 16, 300)
    dy = torch.randn(B, 16, 300)
    return nn.Linear(300, 300, bias=False), x, dy - dy.mean(1, keepdim=True)


@pytest.mark.parametrize("weighting", [FlatClip(1.0), AutoClip(1.0), AutoClip(1.0, stability=0.0)])
@pytest.mark.parametrize("offset", [1.0, 100.0, 1000.0])
def test_cancellation_does_not_get_a_row_past_the_bound(weighting, offset):
    worst = 0.0
    for seed in range(6):
        layer, x, dy = cancelling(seed, offset)
        with PerSample(layer, weighting, expected_batch=1, strict=True) as rows:
            rows.backward((layer(x) * dy).sum((1, 2)))
            worst = max(worst, size(rows.take()))
    assert worst <= 1.01


@pytest.mark.parametrize("scale", [1e-15, 1e-19, 1e-21, 1e-22, 7e-23, 4.5e-23, 1e-24, 1e-30, 0.0])
@pytest.mark.parametrize("clip", CLIPS)
def test_tiny_rows_stay_within_the_bound_and_finite(clip, scale):
    layer = nn.Linear(1, 1, bias=False)
    with PerSample(layer, CLIPS[clip](1.0), expected_batch=1) as rows:
        rows.backward(layer(torch.ones(2, 1)).sum(1) * torch.tensor([scale, 0.0]))
        assert size(rows.take()) <= 1 + 1e-3


@pytest.mark.parametrize("clip", CLIPS)
def test_huge_rows_are_clipped_or_stop_the_step(clip):
    layer = nn.Linear(2, 1, bias=False)
    for scale in (1e10, 1e18, 1e25, 1e38):
        with PerSample(layer, CLIPS[clip](1.0), expected_batch=1) as rows:
            rows.backward(layer(torch.ones(2, 2)).sum(1) * torch.tensor([scale, 0.1]))
            try:
                clipped = rows.take()
            except FloatingPointError:
                continue
            assert size(clipped) <= 2 + SLACK


def test_a_stability_below_float32_is_refused():
    """1 / 1e-40 overflows, and infinity times a zero row is a NaN that would be released."""
    with pytest.raises(ValueError, match="stability"):
        AutoClip(1.0, stability=1e-40)


# -- precision: norms and sums are float32 at least --------------------------------------------


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(9, 16), nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 9)
    )


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("how", ["parameters", "autocast forward", "autocast around all"])
def test_bfloat16(how, engine):
    model = wide().bfloat16() if how == "parameters" else wide()
    exact = wide()
    exact.load_state_dict(model.state_dict())
    tokens, targets, scale = (torch.randint(0, 9, (5, 12)), torch.randint(0, 9, (5, 12)), SCALES)
    wanted = taken(exact, continued, (tokens, targets, scale), FlatClip(0.5), "all")
    with PerSample(model, FlatClip(0.5), expected_batch=5, engine=engine) as rows:
        with torch.autocast("cpu", torch.bfloat16, enabled=how != "parameters"):
            losses = continued(model, tokens, targets, scale)
            if how == "autocast around all":
                rows.backward(losses)
        if how != "autocast around all":
            rows.backward(losses)
        clipped = rows.take()
        if engine == "auto":
            assert rows.engine == "book-keeping"
    assert all(t.dtype == torch.float32 for t in clipped.tensors)
    assert size(clipped) <= 4 * 0.5 / 5 * (1 + SLACK)
    assert distance(clipped, wanted) < 0.05 * size(wanted)

    for i in range(5):  # each row alone: norm in float32 of what enters the sum
        with PerSample(model, FlatClip(0.5), expected_batch=1, engine=engine) as rows:
            with torch.autocast("cpu", torch.bfloat16, enabled=how != "parameters"):
                one = slice(i, i + 1)
                losses = continued(model, tokens[one], targets[one], scale[one])
                if how == "autocast around all":
                    rows.backward(losses)
            if how != "autocast around all":
                rows.backward(losses)
            assert size(rows.take()) <= 0.5 * (1 + SLACK)


# -- any small model -----------------------------------------------------------------------


@st.composite
def sequential_models(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    channels, length = draw(st.integers(1, 4)), draw(st.integers(3, 7))
    shape, layers = (channels, length), []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["linear", "conv", "layer norm", "group norm", "tanh", "again"])
        )
        if kind == "linear":
            layers.append(nn.Linear(length, length := draw(st.integers(3, 6)), draw(st.booleans())))
        elif kind == "conv":
            wide = draw(st.integers(1, 4))
            layers.append(nn.Conv1d(channels, wide, 3, padding=1, bias=draw(st.booleans())))
            channels = wide
        elif kind == "layer norm":
            layers.append(nn.LayerNorm(length))
        elif kind == "group norm":
            layers.append(nn.GroupNorm(1, channels))
        elif kind == "again" and layers and isinstance(layers[0], nn.Linear):
            if layers[0].in_features == length:
                layers.append(layers[0])
                length = layers[0].out_features
        else:
            layers.append(nn.Tanh())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * length, 2)), shape


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    made=sequential_models(),
    clip=st.sampled_from(sorted(CLIPS)),
    groups=st.sampled_from(["all", "layer", "parameter", 1]),
    B=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_any_small_model_equals_the_oracle(oracle, made, clip, groups, B, seed):
    from steelyard.rows.groups import partition

    torch.manual_seed(seed)
    model, shape = made
    model.double()
    x, y = torch.randn(B, *shape).double(), torch.randint(0, 2, (B,))
    data = (x, y, SCALES[:B].double())
    truth = oracle.per_sample(model, classified, *data)
    bound = max(oracle.norm(row) for row in truth) * 0.6
    lists = partition(dict(model.named_parameters()), groups)
    with (
        warnings.catch_warnings(),
        PerSample(model, CLIPS[clip](bound), expected_batch=1, groups=groups, strict=True) as rows,
    ):
        warnings.simplefilter("error")
        rows.backward(classified(model, *data))
        got = dict(zip(rows.names, rows.take().tensors, strict=True))
    expected = oracle.clipped_sum(truth, lists, clip, bound)
    assert oracle.relative_error(got, expected, rows.names) < 1e-9
