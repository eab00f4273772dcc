"""What the first batches must reveal: samples that mix, and parameters that the rules do not reach.

Every model here is small and wrong in one way that has cost somebody their privacy guarantee.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

MIXED = "depends on other samples|one per sample|first dimension"


def squares(model: nn.Module, *batch: Tensor) -> Tensor:  # [B]
    return model(*batch).square().flatten(1).sum(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def x(B: int, *shape: int) -> Tensor:
    return torch.randn(B, *shape, dtype=torch.float64)


# -- samples that mix -------------------------------------------------------------------------

COUPLED = {
    "batch mean": lambda losses: losses.mean().expand(len(losses)),
    "batch normaliser": lambda losses: losses / losses.sum(),
    "next sample": lambda losses: losses + losses.roll(-1),
    "previous sample": lambda losses: losses + losses.roll(1),
    "running sum": lambda losses: losses.cumsum(0),
    "reversed running sum": lambda losses: losses.flip(0).cumsum(0).flip(0),
    "pairs": lambda losses: losses.view(-1, 2).sum(1).repeat_interleave(2),
    "contrastive": lambda losses: losses - torch.logsumexp(losses, 0),
}


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("how", COUPLED)
def test_losses_that_look_at_other_samples_are_refused(how, engine):
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=4, engine=engine)
    with pytest.raises(ValueError, match=MIXED):
        rows.backward(COUPLED[how](squares(model, x(4, 3))))
    assert not rows.armed  # and nothing of it is left
    rows.backward(squares(model, x(4, 3)))
    assert rows.armed


def test_a_single_sample_first_does_not_close_the_proof():
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=4)
    for _ in range(4):
        rows.backward(squares(model, x(1, 3)))
    with pytest.raises(ValueError, match=MIXED):
        rows.backward(COUPLED["batch mean"](squares(model, x(4, 3))))


def test_token_mean_over_the_batch_is_refused():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    tokens = torch.randint(0, 7, (4, 5))
    rows = PerSample(model, FlatClip(), expected_batch=4)
    per_token = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten(), reduction="none")
    with pytest.raises(ValueError, match=MIXED):
        rows.backward(per_token.mean().expand(4))


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_one_loss_per_token_is_not_one_per_sample(engine):
    """Flattened token losses are 1-D too: each token would become a protected sample of its own."""
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    tokens = torch.randint(0, 7, (4, 5))
    rows = PerSample(model, FlatClip(), expected_batch=4, engine=engine)
    per_token = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten(), reduction="none")
    with pytest.raises(ValueError, match=r"one per sample|losses"):
        rows.backward(per_token)


@pytest.mark.parametrize("shape", [(), (4, 1), (1, 4), (2, 2)], ids=str)
def test_losses_of_another_shape_are_refused(shape):
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=4)
    losses = squares(model, x(4, 3))
    with pytest.raises(ValueError, match=r"shape \[B\]"):
        rows.backward(losses.sum() if shape == () else losses.view(shape))


def test_losses_without_a_graph_are_refused():
    rows = PerSample(mlp(), FlatClip(), expected_batch=4)
    with pytest.raises(ValueError, match="do not depend"):
        rows.backward(torch.ones(4))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm1d(4, affine=False),
        nn.BatchNorm1d(4).eval(),
        nn.SyncBatchNorm(4),
        nn.LazyBatchNorm1d(),
        # not of the batch, but it keeps averages of private activations without noise
        nn.InstanceNorm1d(4, track_running_stats=True),
    ],
    ids=lambda norm: f"{type(norm).__name__} {norm.extra_repr()[:40]}",
)
def test_layers_with_batch_statistics_are_refused(norm):
    with pytest.raises(ValueError, match=r"'1'.*Norm"):
        PerSample(nn.Sequential(nn.Linear(3, 4), norm), FlatClip(), expected_batch=4)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_that_couple_samples_are_refused(option):
    model = nn.Sequential(nn.Embedding(7, 3, **option), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=f"'0'.*{next(iter(option))}"):
        PerSample(model, FlatClip(), expected_batch=4)


class Functional(nn.Module):
    """Mixes samples by `mix` between its layers."""

    def __init__(self, mix, *, first: bool = False):
        super().__init__()
        self.a, self.b, self.mix, self.first = nn.Linear(3, 4), nn.Linear(4, 4), mix, first

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(self.mix(x) if self.first else x))
        return self.b(h if self.first else self.mix(h))


def centred(h: Tensor) -> Tensor:
    return h - h.mean(0)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_functional_batch_statistics_are_refused(engine):
    model = Functional(centred).double()
    rows = PerSample(model, FlatClip(), expected_batch=4, engine=engine)
    with pytest.raises(ValueError, match=MIXED):
        rows.backward(squares(model, x(4, 3)))


@pytest.mark.xfail(strict=True, reason="samples that mix before the first layer leave no trace")
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_batch_statistics_of_the_inputs_are_refused(engine):
    model = Functional(centred, first=True).double()
    rows = PerSample(model, FlatClip(), expected_batch=4, engine=engine)
    with pytest.raises(ValueError, match=MIXED):
        rows.backward(squares(model, x(4, 3)))


# -- a first dimension that is not the sample: refused, or exact by the reference -----------------


class Permuted(nn.Module):
    """One layer sees the samples in another order: its rows belong to other samples' losses."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.tensor([1, 0, 3, 2])
        return self.b(torch.tanh(self.a(x))[order])[order]


class SequenceFirst(nn.Module):
    """[T, B, d] inside, with T = B in the tests: the wrong dimension has the right size."""

    def __init__(self):
        super().__init__()
        self.token, self.b, self.c = nn.Embedding(7, 3), nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.token(tokens).transpose(0, 1)
        return self.c(torch.tanh(self.b(h))).transpose(0, 1)


class LengthOne(nn.Module):
    """[1, B, d]: looks like something to broadcast over the batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))[None])[-1]


class Masked(nn.Module):
    """A head on chosen positions [n_chosen, d], four of them, all of sample 0."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        chosen = torch.zeros(4, 5, dtype=torch.bool)
        chosen[0, :4] = True
        rows = chosen.nonzero()[:, 0]
        out = self.head(torch.tanh(self.token(tokens))[chosen[: len(tokens)]])
        return tokens.new_zeros(len(tokens), 3, dtype=out.dtype).index_add(0, rows, out)


class Positions(nn.Module):
    """Position index without a batch dimension, T = B."""

    def __init__(self):
        super().__init__()
        self.token, self.position, self.head = (
            nn.Embedding(7, 3),
            nn.Embedding(4, 3),
            nn.Linear(3, 2),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.token(tokens) + self.position(torch.arange(tokens.shape[1])))


WRONG_DIMENSION = {
    "permuted": (Permuted, lambda: x(4, 3)),
    "sequence first": (SequenceFirst, lambda: torch.randint(0, 7, (4, 4))),
    "length one": (LengthOne, lambda: x(4, 3)),
    "masked positions": (Masked, lambda: torch.randint(0, 7, (4, 5))),
    "positions without batch": (Positions, lambda: torch.randint(0, 7, (4, 4))),
}


@pytest.mark.filterwarnings("ignore:.*the reference engine takes over")
@pytest.mark.parametrize("name", WRONG_DIMENSION)
def test_a_wrong_first_dimension_never_passes_as_the_samples(name):
    """Refusing is right, and so is any clipped sum within the bound that the truth obeys."""
    build, batch = WRONG_DIMENSION[name]
    model, data = build().double(), batch()
    losses = squares(model, data) * torch.tensor([1.0, 3.0, 9.0, 27.0]).double()
    parameters = list(model.parameters())
    expected = [torch.zeros_like(p) for p in parameters]
    for i in range(4):  # not by forwards of one sample: these models may need all four
        row = torch.autograd.grad(losses[i], parameters, retain_graph=True, allow_unused=True)
        row = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, row, strict=True)
        ]
        size = float(torch.stack([g.square().sum() for g in row]).sum().sqrt())
        for total, g in zip(expected, row, strict=True):
            total += min(1.0, 0.3 / size) * g if size else 0 * g
    rows = PerSample(model, FlatClip(0.3), expected_batch=1)
    try:
        rows.backward(squares(model, data) * torch.tensor([1.0, 3.0, 9.0, 27.0]).double())
    except ValueError:
        return
    for got, wanted in zip(rows.take().tensors, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keyword", [False, True])
def test_position_ids_of_one_row_are_everybodys(oracle, keyword):
    class WithPositions(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Embedding(7, 3), nn.Embedding(6, 3)
            self.head = nn.Linear(3, 2)

        def forward(self, tokens: Tensor, position_ids: Tensor | None = None) -> Tensor:
            if position_ids is None:
                position_ids = torch.arange(tokens.shape[1])[None]
            return self.head(self.token(tokens) + self.position(position_ids))

    model = WithPositions().double()
    tokens = torch.randint(0, 7, (4, 6))
    truth = oracle.per_sample(model, squares, tokens)
    bound = oracle.norm(truth[0])
    options = {"position_ids": torch.arange(6)[None]} if keyword else {}
    with PerSample(model, FlatClip(bound), expected_batch=1, strict=True) as rows:
        rows.backward(model(tokens, **options).square().flatten(1).sum(1))
        got = dict(zip(rows.names, rows.take().tensors, strict=True))
    expected = oracle.clipped_sum(truth, [rows.names], "flat", bound)
    assert oracle.relative_error(got, expected, rows.names) < 1e-12
