"""Coverage, exactness, sensitivity: each fails where the engine or the clipping is made wrong."""

from __future__ import annotations

import math

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


def test_what_cannot_be_shown_yet_is_said():
    """A first factor has no gradient while the second is zero; a layer may not be used."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, CLASSES))
    nn.init.zeros_(model[1].weight)
    result = run(model, classified(model), *points())
    assert result.passed
    assert finding(result, "coverage").figures["zero"] == ["0.weight"]
    assert "The gradient of '0.weight' was exactly zero" in finding(result, "coverage").text
    model = mlp()
    model.add_module("unused", nn.Linear(2, 2))
    inner = model[:3]
    result = run(model, lambda x, y: F.cross_entropy(inner(x), y, reduction="none"), *points())
    assert result.passed
    assert "No gradient reached 'unused.weight', 'unused.bias'" in finding(result, "coverage").text


def test_a_trainable_tensor_outside_of_the_model_is_found():
    model, head = mlp(), nn.Linear(CLASSES, 2)
    result = run(model, lambda x, y: head(model(x)).square().sum(1), *points())
    assert failed(result) == {"coverage"}
    found = finding(result, "coverage")
    assert sorted(found.figures["outside"]) == [[2], [2, CLASSES]]
    assert "2 trainable tensor(s) that are no parameters of the rows' model" in found.text
    head.requires_grad_(False)
    assert run(model, lambda x, y: head(model(x)).square().sum(1), *points()).passed


class Careless(FlatClip):
    """Forgets to clip the groups with a small share of the bound."""

    def with_bound(self, bound: float) -> FlatClip:
        return FlatClip(bound if bound > 0.7 * self.bound else math.inf)


def test_a_layer_that_is_not_clipped_is_found():
    model = mlp()
    options = {"groups": "layer", "shares": [1.0, 3.0]}
    with PerSample(model, Careless(0.05), expected_batch=4, **options) as rows:
        result = check(rows, model, classified(model), points())
    assert failed(result) == {"sensitivity"}
    found = finding(result, "sensitivity")
    assert found.figures["ratio"] > 2
    assert "the weighting does not clip" in found.text


class Yielding(FlatClip):
    """Clips what it is used to, and lets enormous rows through."""

    def __call__(self, norms: Tensor) -> Tensor:
        return torch.where(norms < 100, super().__call__(norms), 1.0)


def test_a_rule_that_fails_on_an_extreme_sample_is_found():
    model = mlp()
    losses_of = lambda x, y: model[2](model[0](x)).square().sum(1)  # noqa: E731  # nothing saturates
    found = finding(run(model, losses_of, *points(), weighting=Yielding(0.1)), "sensitivity")
    assert not found.passed
    assert found.figures["extreme"]
    assert "made extreme" in found.text
    usual = run(model, losses_of, *points(), weighting=Yielding(0.1), extreme=None)
    assert usual.passed
    assert "times 1000" not in finding(usual, "sensitivity").text


@pytest.mark.parametrize(("clip", "ratio"), [(0.01, 1.0), (100.0, 0.1)])
def test_the_ratio_is_the_largest_move(clip, ratio):
    """All rows are clipped: exactly 1; none is: the largest norm over the bound."""
    model, (x, y) = mlp(), points()
    found = finding(
        run(model, classified(model), x, y, weighting=FlatClip(clip), samples=B, extreme=None),
        "sensitivity",
    )
    norms = []
    for loss in classified(model)(x, y):
        rows = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in rows)))
    assert found.figures["ratio"] == pytest.approx(min(1.0, max(norms) / clip), rel=1e-4)
    assert clip < 1 or found.figures["sample"] == norms.index(max(norms))


@pytest.mark.parametrize("broken", ["norm", "sum"])
def test_an_engine_that_is_wrong_is_found(broken, monkeypatch):
    """Rows with one norm, or one parameter's sum, off by a hundredth."""

    class Wrong(PerSample):
        def __init__(self, model, weighting, **options):
            if broken == "norm":
                weighting = Off(weighting)
            super().__init__(model, weighting, **options)

        def take(self):
            taken = super().take()
            if broken == "sum":
                taken.tensors[2].mul_(1.01)
            return taken

    class Off:
        def __init__(self, inner):
            self.inner, self.bound = inner, inner.bound

        def with_bound(self, bound):
            return Off(self.inner.with_bound(bound))

        def __call__(self, norms):
            return self.inner(norms * torch.linspace(0.99, 1, len(norms)))

    monkeypatch.setattr("steelyard.checks.probe.PerSample", Wrong)
    model = mlp()
    result = run(model, classified(model), *points(), samples=B)
    if broken == "sum":
        assert failed(result) == {"coverage", "exactness"}
        assert finding(result, "coverage").figures["differ"] == ["2.weight"]
        assert "The rows of '2.weight' do not add up" in finding(result, "coverage").text
    else:
        assert failed(result) == {"exactness"}
        assert finding(result, "exactness").figures["sample"] == 0
        assert finding(result, "exactness").figures["norm_error"] == pytest.approx(0.01, rel=0.01)
