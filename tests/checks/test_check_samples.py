"""Influence and buffers: who moved whose loss, and what a forward pass leaves in the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.checks.self_check import SelfCheck, check
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

B, CLASSES = 6, 3


def run(model: nn.Module, losses_of, *batch, weighting=None, groups="all", **options) -> SelfCheck:
    weighting = weighting or FlatClip(0.5)
    with PerSample(model, weighting, expected_batch=4, groups=groups) as rows:
        return check(rows, model, losses_of, batch, **options)


def finding(result: SelfCheck, name: str):
    (found,) = [f for f in result.findings if f.name == name]
    return found


def failed(result: SelfCheck) -> set[str]:
    return {f.name for f in result.findings if not f.passed}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def points(count: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 4), torch.randint(0, CLASSES, (count,))


def classified(model: nn.Module):
    return lambda x, y: F.cross_entropy(model(x), y, reduction="none")


class Statistics(nn.Module):
    """A linear layer; `mix` changes its input, and may keep something of it."""

    def __init__(self, mix):
        super().__init__()
        self.body, self.mix = nn.Linear(4, CLASSES), mix
        self.register_buffer("kept", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.mix(self, x))


def remember(module: Statistics, x: Tensor) -> Tensor:
    if module.training:
        module.kept.lerp_(x.detach().mean(0), 0.1)
    return x


def replace(module: Statistics, x: Tensor) -> Tensor:
    module.kept = x.detach().mean(0)  # another tensor in the place of the buffer
    return x


def step_count(module: Statistics, x: Tensor) -> Tensor:
    module.kept += 1
    return x


@pytest.mark.parametrize("count", [2, 3, 8, 13])
def test_who_influenced_whom(count):
    """One sample enters the loss of one other: found and named, whichever two they are."""
    model, (x, y) = mlp(), points(count)
    for cause in range(count):
        victim = (3 * cause + 1) % count
        if victim == cause:
            continue

        def losses_of(x: Tensor, y: Tensor, cause=cause, victim=victim) -> Tensor:
            losses = F.cross_entropy(model(x), y, reduction="none")
            if len(x) < count:
                return losses
            return losses + 1e-3 * x[cause].sum() * F.one_hot(torch.tensor(victim), count)

        found = finding(run(model, losses_of, x, y, samples=1), "influence")
        assert not found.passed
        assert (found.figures["by"], found.figures["sample"]) == (cause, victim)
        assert found.figures["influenced"] == 1
        assert f"replacing sample {cause} " in found.text
        assert f"the loss of sample {victim} from" in found.text


def test_equal_samples_show_nothing():
    model, (x, y) = mlp(), points()
    same = x[:1].expand(B, -1), y[:1].expand(B)
    assert (
        "all samples of the batch are equal"
        in finding(run(model, classified(model), *same), "influence").text
    )
    some = torch.cat([x[:2], x[:1].expand(4, -1)]), torch.cat([y[:2], y[:1].expand(4)])
    found = finding(run(model, classified(model), *some), "influence")
    assert found.passed
    assert found.figures["alike"] > 0
    assert "have no other content to try" in found.text


@pytest.mark.parametrize("mix", [remember, replace])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_in_a_buffer_are_found(mix, training):
    model = Statistics(mix).train(training)
    buffer, before = model.kept, model.kept.clone()
    result = run(model, classified(model), *points())
    assert failed(result) == {"buffers"}
    found = finding(result, "buffers")
    assert found.figures["buffers"] == ["kept"]
    assert "writes something of its inputs into 'kept'" in found.text
    assert model.kept is buffer
    assert torch.equal(model.kept, before)


def test_a_counter_in_a_buffer_is_no_statistic():
    model = Statistics(step_count)
    found = finding(run(model, classified(model), *points()), "buffers")
    assert found.passed
    assert found.figures["harmless"] == ["kept"]


def test_a_forward_that_writes_into_a_parameter_is_found():
    model = mlp()
    model.register_parameter("table", nn.Parameter(torch.ones(4), requires_grad=False))

    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            model.get_parameter("table").copy_(x.mean(0))
        return F.cross_entropy(model(x), y, reduction="none")

    found = finding(run(model, losses_of, *points()), "buffers")
    assert not found.passed
    assert "writes into the parameter 'table'" in found.text
