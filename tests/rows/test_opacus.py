"""Side by side with Opacus 1.6 in hooks mode: an oracle that we did not write.

Opacus clips by min(1, R / (||g|| + 1e-6)); the rule below does the same, so that equality is exact.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip


class OpacusClip(FlatClip):
    def __call__(self, norms: Tensor) -> Tensor:
        return (self.bound / (norms + 1e-6)).clamp(max=1.0)


def text_model() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(7, 4),  # Opacus gives a padding row a gradient, autograd does not
        nn.LayerNorm(4),
        nn.Linear(4, 6),
        nn.GELU(),
        nn.Linear(6, 5, bias=False),
        nn.Flatten(),
        nn.Linear(40, 3),
    )


def image_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 2, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def deep_model() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))


MODELS = {
    "embedding, layer norm, linear": (text_model, lambda: torch.randint(0, 7, (6, 8))),
    "conv2d, group norm, linear": (image_model, lambda: torch.randn(6, 2, 8, 8).double()),
    "linear, layer norm": (deep_model, lambda: torch.randn(6, 5).double()),
}


@pytest.mark.parametrize("bound", [0.05, 1.0, 1e6])
@pytest.mark.parametrize("name", MODELS)
def test_three_steps_are_opacus_three_steps(name, bound):
    opacus = pytest.importorskip("opacus")
    from opacus.optimizers import DPOptimizer

    build, batch = MODELS[name]
    ours = build().double()
    theirs = copy.deepcopy(ours)
    weights = torch.tensor([1.0, 5.0, 0.0, 0.1, 30.0, 2.0]).double()

    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    rows = PerSample(ours, OpacusClip(bound), expected_batch=8, strict=True)
    attach(optimizer, rows, Gaussian(0.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # full backward hooks and inputs without gradients
        wrapped = opacus.GradSampleModule(theirs, loss_reduction="sum")
        private = DPOptimizer(
            torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9),
            noise_multiplier=0.0,
            max_grad_norm=bound,
            expected_batch_size=8,
            loss_reduction="mean",  # divide the clipped sum by the expected batch size
        )
        for _ in range(3):
            x, y = batch(), torch.randint(0, 3, (6,))
            rows.backward(weights * F.cross_entropy(ours(x), y, reduction="none"))
            optimizer.step()
            private.zero_grad()
            (weights * F.cross_entropy(wrapped(x), y, reduction="none")).sum().backward()
            private.step()
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
            optimizer.zero_grad()
