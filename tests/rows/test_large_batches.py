"""Large logical batches in little memory: micro-batches, half precision, evaluation in between."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import models
from steelyard.filters.attach import attach
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import AutoClip, FlatClip


def continued(model: nn.Module, tokens: Tensor) -> Tensor:  # [B]
    logits = model(tokens[:, :-1]).float()
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


def gpt(**options) -> nn.Module:
    task = models.Task(kind="language", shape=(12,), vocabulary=40)
    return models.build("gpt", task, seed=0, layers=2, width=32, heads=2, **options)


def tokens(B: int) -> Tensor:
    return torch.randint(0, 40, (B, 13), generator=torch.Generator().manual_seed(B))


def in_bfloat16(model: nn.Module, data: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return continued(model, data)


def distance(a, b) -> float:
    size = sum(float(t.double().square().sum()) for t in b)
    return (
        sum(float((s - t).double().square().sum()) for s, t in zip(a, b, strict=True)) / size
    ) ** 0.5


@pytest.mark.parametrize("groups", ["all", "layer", 2])
def test_any_split_of_a_logical_batch_gives_its_sum(groups):
    model, data = gpt().double(), tokens(48)
    with PerSample(model, AutoClip(0.3), expected_batch=48, groups=groups, strict=True) as rows:
        rows.backward(continued(model, data))
        whole = rows.take().tensors
        for size in (1, 7, 16, 48):
            for part in data.split(size):
                rows.backward(continued(model, part))
            assert distance(rows.take().tensors, whole) < 1e-12


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("groups", ["all", "layer"])
def test_autocast_keeps_norms_sums_and_noise_in_float32(groups, tied):
    """bfloat16 rounds the forward and the output gradients; the bound holds in float32."""
    model, data = gpt(tied=tied), tokens(16)
    rows = PerSample(model, FlatClip(0.05), expected_batch=1, groups=groups, strict=True)
    rows.backward(continued(model, data))
    exact = rows.take().tensors
    for _ in range(4):
        rows.backward(in_bfloat16(model, data))
        got = rows.take().tensors
        assert all(t.dtype == torch.float32 for t in got)
        assert distance(got, exact) < 2e-2
    for one in range(16):  # the row of one sample obeys the bound to float32's last digits
        rows.backward(in_bfloat16(model, data[one : one + 1]))
        norm = sum(float(t.double().square().sum()) for t in rows.take().tensors) ** 0.5
        assert norm <= 0.05 * (1 + 1e-5)
    assert rows.engine == "book-keeping"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    connection = attach(optimizer, rows, Gaussian(1.0))
    rows.backward(in_bfloat16(model, data))
    optimizer.step()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())  # type: ignore[union-attr]
    connection.detach()


def test_a_bfloat16_model_has_float32_sums():
    model, data = gpt().bfloat16(), tokens(8)
    rows = PerSample(model, FlatClip(0.05), expected_batch=1, strict=True)
    for _ in range(4):
        rows.backward(continued(model, data))
        assert all(t.dtype == torch.float32 for t in rows.take().tensors)
    assert rows.engine == "book-keeping"


def test_evaluation_between_the_micro_batches_changes_nothing():
    model, data = gpt().double(), tokens(8)
    rows = PerSample(model, FlatClip(0.05), expected_batch=1, strict=True)
    rows.backward(continued(model, data))
    whole = rows.take().tensors
    for part in data.split(4):
        losses = continued(model, part)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                model.eval()
                continued(model, tokens(5))
                model.train()
        rows.backward(losses)
    assert distance(rows.take().tensors, whole) < 1e-12


def test_the_same_seeds_give_the_same_bits():
    """Sums, noise and steps: nothing depends on addresses, hash seeds or the order of sets."""
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        model = gpt(tied=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        rows = PerSample(model, AutoClip(), expected_batch=8, groups="layer")
        attach(optimizer, rows, Gaussian(0.7, seed=1))
        for step in range(4):
            for part in tokens(8 + step).split(5):
                rows.backward(continued(model, part))
            optimizer.step()
            optimizer.zero_grad()
        found.append([p.detach().clone() for p in model.parameters()])
        rows.close()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
