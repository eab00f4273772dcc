"""Can the tests fail? Each bug planted here has cost some library its guarantee: the property that
should see it must raise. The same property without the bug passes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.filters import gaussian, grid
from steelyard.filters.gaussian import Gaussian
from steelyard.filters.grid import GridGaussian
from steelyard.filters.keystream import Keystream
from steelyard.rows import clipped_sum, proof
from steelyard.rules import factors
from steelyard.types import Clipped, Noised, RowWeighting
from steelyard.weightings.clip import FlatClip, NormalizedClip


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.body = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.token(tokens)))


def token_losses(model: nn.Module, tokens: Tensor, scale: Tensor) -> Tensor:  # [B]
    logits = model(tokens).transpose(1, 2)
    return scale * F.cross_entropy(logits, tokens, reduction="none").sum(1)


def token_batch() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 6, (4, 5)), torch.tensor([1.0, 3.0, 10.0, 30.0])


@pytest.fixture
def sensitivity(properties) -> Callable[..., None]:
    def check(weighting: RowWeighting | None = None, losses=token_losses, **options: Any) -> None:
        torch.manual_seed(0)
        rule = FlatClip(0.5) if weighting is None else weighting
        properties.assert_sensitivity(rule, Tied(), losses, token_batch(), **options)

    check()  # the healthy engine passes
    return check


# -- clipping -----------------------------------------------------------------------------


def test_a_layer_left_out_of_the_norm(sensitivity, monkeypatch):
    right = factors.squared_norms

    def without_biases(parameters: list[list[Any]]) -> Tensor:
        return right([uses for uses in parameters if not isinstance(uses[0], factors.Dense)])

    monkeypatch.setattr(clipped_sum, "squared_norms", without_biases)
    with pytest.raises(AssertionError, match="moves the sum"):
        sensitivity(FlatClip(0.5))


def test_tied_weights_without_cross_terms(sensitivity, monkeypatch):
    monkeypatch.setattr(
        factors,
        "_norms",
        lambda uses: tuple(map(sum, zip(*(u.norms() for u in uses), strict=True))),
    )
    with pytest.raises(AssertionError, match="moves the sum"):
        sensitivity()


def test_tied_weights_with_the_norm_of_the_last_use_only(sensitivity, monkeypatch):
    monkeypatch.setattr(factors, "_norms", lambda uses: uses[-1].norms())
    with pytest.raises(AssertionError, match="moves the sum"):
        sensitivity()


def test_groups_that_each_get_the_whole_bound(sensitivity, monkeypatch):
    monkeypatch.setattr(clipped_sum, "bounds", lambda count, bound, shares: [bound] * count)
    with pytest.raises(AssertionError, match="moves the sum"):
        sensitivity(groups="parameter")


def test_a_bias_norm_per_position(sensitivity, monkeypatch):
    """The norm of each position's gradient instead of that of their sum."""
    right = factors.Outer.norms

    def diagonal(self: Any) -> tuple[Tensor, Tensor]:
        if self.left.shape[1] == 1:
            return right(self)
        squares = (self.left.square().sum(2) * self.right.square().sum(2)).sum(1)
        return squares, squares.sqrt()

    monkeypatch.setattr(factors.Outer, "norms", diagonal)
    with pytest.raises(AssertionError, match="moves the sum"):
        sensitivity()


def masked_losses(model: nn.Module, tokens: Tensor, mask: Tensor, *, over: str) -> Tensor:  # [B]
    each = F.cross_entropy(model(tokens).transpose(1, 2), tokens, reduction="none") * mask
    return each.sum(1) / (mask.sum() if over == "batch" else mask.sum(1))


def test_a_mean_over_the_tokens_of_the_batch(properties):
    """Sixteen samples of one token and one of 32: its leaving triples the others' gradients.

    The number of tokens has no gradient, so no proof on the graph can see this one.
    """
    tokens = torch.zeros(17, 32, dtype=torch.int64)
    mask = torch.zeros(17, 32)
    mask[:, 0] = mask[16] = 1
    tokens[16] = torch.arange(32) % 6
    rule, model = NormalizedClip(0.5, stability=0.1), Tied()
    for over, bug in (("sample", False), ("batch", True)):
        losses = functools.partial(masked_losses, over=over)
        if bug:
            with pytest.raises(AssertionError, match="sample 16 moves the sum"):
                properties.assert_sensitivity(rule, model, losses, (tokens, mask))
        else:
            properties.assert_sensitivity(rule, model, losses, (tokens, mask))


def test_samples_that_share_a_batch_statistic(properties, monkeypatch):
    """The proof refuses it; were the proof silent, the sensitivity would show it."""

    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            return self.head(10 * torch.tanh(h - h.mean(0)))

    def losses(model: nn.Module, x: Tensor) -> Tensor:  # [B]
        return model(x).square().sum(1)

    batch = (torch.randn(6, 3) * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 50.0])[:, None],)
    with pytest.raises(ValueError, match="depends on other samples"):
        properties.assert_sensitivity(FlatClip(0.5), Centred(), losses, batch)
    monkeypatch.setattr(proof.Proof, "independence", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="moves the sum"):
        properties.assert_sensitivity(FlatClip(0.5), Centred(), losses, batch)


class Leaky(FlatClip):
    """A rule that looks at the other rows."""

    def __call__(self, norms: Tensor) -> Tensor:
        return super().__call__(norms) / (1e-3 + norms / norms.sum().clamp(min=1e-30))


class Late(FlatClip):
    """Clips at twice the bound that it declares."""

    def __call__(self, norms: Tensor) -> Tensor:
        return (2 * self.bound / norms).clamp(max=1.0)


class Soft(FlatClip):
    """1 / (1 + n / R) would be right; without the one it is infinite at zero."""

    def __call__(self, norms: Tensor) -> Tensor:
        return self.bound / norms


@pytest.mark.parametrize("rule", [Leaky, Late, Soft])
def test_a_rule_that_breaks_the_contract(properties, rule):
    properties.assert_separable(FlatClip(0.5))
    with pytest.raises(AssertionError):
        properties.assert_separable(rule(0.5))


# -- noise --------------------------------------------------------------------------------


class Wrong(Gaussian):
    """A mechanism with one thing wrong, chosen by name."""

    def __init__(self, what: str):
        super().__init__(1.0, seed=0)
        self.what, self._calls = what, itertools.count()

    def privatise(self, gradient: Clipped) -> Noised:
        before = [t.clone() for t in gradient.tensors]
        factor = {"halved": 0.5, "5 % short": 0.95, "5 % long": 1.05}.get(self.what, 1.0)
        if self.what == "per step as before":
            self._words = Keystream("0" * 64, "the same words")
        found = super().privatise(Clipped(gradient.tensors, gradient.sensitivity * factor))
        noise = [t - b for t, b in zip(found.tensors, before, strict=True)]
        if self.what == "one tensor without":
            noise[2] = torch.zeros_like(noise[2])
        if self.what == "same on two tensors":
            noise[5] = noise[0].flatten().clone()
        if self.what == "none on an empty batch" and not any(b.any() for b in before):
            noise = [torch.zeros_like(n) for n in noise]
        if self.what == "biased":
            noise = [n + 0.05 * gradient.sensitivity for n in noise]
        if self.what == "uniform":
            width = gradient.sensitivity * 12**0.5
            noise = [width * (torch.rand(n.shape) - 0.5) for n in noise]
        tensors = [b + n for b, n in zip(before, noise, strict=True)]
        return Noised(tensors, gradient.sensitivity, self.noise_multiplier)


BUGS = [
    "halved",
    "5 % short",
    "5 % long",
    "one tensor without",
    "same on two tensors",
    "per step as before",
    "none on an empty batch",
    "biased",
    "uniform",
]


@pytest.mark.parametrize("bug", BUGS)
def test_wrong_noise(properties, bug):
    properties.assert_mechanism(lambda: Wrong("nothing"))
    with pytest.raises(AssertionError):
        properties.assert_mechanism(lambda: Wrong(bug))


@pytest.mark.parametrize("mechanism", [Gaussian, GridGaussian])
def test_all_chunks_from_the_same_words(properties, monkeypatch, mechanism):
    for module in (gaussian, grid):
        monkeypatch.setattr(module, "CHUNK", 20_000)
    properties.assert_mechanism(lambda: mechanism(1.0, seed=0))

    def again(self: Keystream, out: np.ndarray[Any, Any]) -> None:
        fill(Keystream("0" * 64, "the same words"), out)

    fill = Keystream.fill
    monkeypatch.setattr(Keystream, "fill", again)
    with pytest.raises(AssertionError):
        properties.assert_mechanism(lambda: mechanism(1.0, seed=0))


# -- state --------------------------------------------------------------------------------


class Forgetful(Gaussian):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "position": 0})  # starts the noise from the beginning


def test_a_state_that_repeats_old_noise(properties):
    def drive(mechanism: Gaussian) -> list[Tensor]:
        return list(mechanism.privatise(Clipped([torch.zeros(20)], 1.0)).tensors)

    properties.assert_resumes(lambda: Gaussian(1.0, seed=0), drive)
    with pytest.raises(AssertionError, match="resuming"):
        properties.assert_resumes(lambda: Forgetful(1.0, seed=0), drive)


class Hasty:
    """A filter with the wrong gain that looks at nothing but the present."""

    def filter(self, gradient: Noised) -> Noised:
        halved = [0.5 * t for t in gradient.tensors]
        return Noised(halved, gradient.sensitivity, gradient.noise_multiplier)


def test_a_filter_without_unit_gain(properties):
    properties.assert_filter(Hasty)
    with pytest.raises(AssertionError):
        properties.assert_unit_gain(Hasty)
