"""Poisson batches. Statistical tests are two-sided, both ways: the right sampler passes, wrong ones
(q five per cent off, batches of fixed size, neighbours drawn together) fail.

Each statistic is compared with 5 standard deviations: a right sampler fails with probability 6e-7
per statistic (seeds are fixed, so nothing flakes); the wrong ones lie beyond 10.
"""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from steelyard.rows.sampling import PoissonSampler, microbatches, poisson_loader

N, Q, STEPS = 60, 0.3, 20_000


def members(sampler: PoissonSampler, steps: int = STEPS) -> Tensor:
    """Who joined when: float64 [steps, n] of zeros and ones."""
    joined = torch.zeros(steps, sampler.n, dtype=torch.float64)
    for t in range(steps):
        joined[t, sampler.draw()] = 1
    return joined


def deviations(joined: Tensor, q: float) -> dict[str, float]:
    """How many standard deviations each statistic lies from independent coins of probability q."""
    steps, n = joined.shape
    variance = q * (1 - q)
    centred = (joined - q) / variance**0.5
    frequency = centred.mean(0) * steps**0.5  # [n], each N(0, 1)
    pairs = (centred.T @ centred / steps)[*torch.triu_indices(n, n, 1)] * steps**0.5
    lagged = (centred[1:] * centred[:-1]).mean() * ((steps - 1) * n) ** 0.5
    sizes = joined.sum(1)
    squares = (sizes - n * q).square() / (n * variance)  # mean 1, variance about 2
    fourth = 2 + (1 - 6 * variance) / (n * variance)
    return {
        "frequency": float(frequency.square().sum().sub(n) / (2 * n) ** 0.5),
        "total": float(centred.mean() * (steps * n) ** 0.5),
        "pairs": float(pairs.square().sum().sub(len(pairs)) / (2 * len(pairs)) ** 0.5),
        "one pair": float(pairs.abs().max()) - 1.0,  # the largest of 1770 has a tail of its own
        "steps": float(lagged),
        "batch size": float((squares.mean() - 1) * (steps / fourth) ** 0.5),
    }


@pytest.fixture(scope="module")
def joined() -> Tensor:
    return members(PoissonSampler(N, Q, STEPS, seed=1))


def test_every_sample_joins_every_step_independently(joined):
    found = deviations(joined, Q)
    assert all(abs(value) < 5 for value in found.values()), found


def fixed_size(joined: Tensor) -> Tensor:
    scores = torch.rand(joined.shape, generator=torch.Generator().manual_seed(3))
    chosen = scores.topk(int(N * Q), dim=1).indices
    return torch.zeros_like(joined).scatter_(1, chosen, 1.0)


WRONG = {
    "five per cent more often": (
        lambda _: members(PoissonSampler(N, 1.05 * Q, STEPS, seed=2)),
        "total",
    ),
    "five per cent less often": (
        lambda _: members(PoissonSampler(N, 0.95 * Q, STEPS, seed=2)),
        "total",
    ),
    "one sample always": (lambda j: torch.cat([torch.ones(STEPS, 1), j[:, 1:]], 1), "frequency"),
    "fixed batch size": (fixed_size, "batch size"),
    "neighbours together": (lambda j: torch.cat([j[:, :1], j[:, :1], j[:, 2:]], 1), "one pair"),
    "every batch twice": (lambda j: j[: STEPS // 2].repeat_interleave(2, 0), "steps"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_sampler_is_noticed(joined, name):
    wrong, statistic = WRONG[name]
    assert abs(deviations(wrong(joined).double(), Q)[statistic]) > 10


def test_small_probabilities_are_not_rounded():
    sampler = PoissonSampler(1_000_000, 1e-6, 1, seed=0)
    counts = torch.tensor([len(sampler.draw()) for _ in range(200)], dtype=torch.float64)
    assert abs(counts.mean() - 1) < 5 / 200**0.5
    assert (counts == 0).any()


def test_probability_one_takes_everybody():
    sampler = PoissonSampler(7, 1.0, 3)
    assert list(sampler) == [list(range(7))] * 3


def test_length_is_what_is_left_and_iteration_goes_on_after_a_break():
    sampler = PoissonSampler(7, 0.5, 5, seed=0)
    expected = list(PoissonSampler(7, 0.5, 5, seed=0))
    found = []
    for batch in sampler:
        found.append(batch)
        if len(found) == 2:
            break
    assert len(sampler) == 3
    assert found + list(sampler) == expected
    assert len(sampler) == 0
    assert list(sampler) == []


def test_resume_goes_on_exactly_where_it_stopped():
    whole = list(PoissonSampler(50, 0.3, 10, seed=0))
    first = PoissonSampler(50, 0.3, 10, seed=0)
    head = [first.draw().tolist() for _ in range(4)]
    second = PoissonSampler(50, 0.3, 10)
    second.load_state_dict(first.state_dict())
    assert head + list(second) == whole
    assert len(second) == 0


@pytest.mark.parametrize("other", [(51, 0.3), (50, 0.2)])
def test_a_state_of_another_sampler_is_refused(other):
    state = PoissonSampler(50, 0.3, 10).state_dict()
    with pytest.raises(ValueError, match="saved sampler"):
        PoissonSampler(*other, 10).load_state_dict(state)


def test_seeds():
    def draws(seed: int | None) -> list[list[int]]:
        return list(PoissonSampler(50, 0.5, 3, seed=seed))

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(None) != draws(None)
    # torch's CPU generator drops all but 32 bits of a plain seed: 2^32 tries would find the batches
    assert draws(1) != draws(1 + 2**32)
    before = torch.random.get_rng_state()
    draws(None)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("q", [0.0, -0.1, 1.0001, float("nan")])
def test_a_bad_probability_is_refused(q):
    with pytest.raises(ValueError, match=r"sampling probability must be in \(0, 1\]"):
        PoissonSampler(10, q, 1)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="at least one sample, found 0"):
        PoissonSampler(0, 0.5, 1)


@pytest.mark.parametrize(("n", "size", "sizes"), [(7, 3, [3, 3, 1]), (3, 7, [3]), (0, 3, [0])])
def test_microbatches(n, size, sizes):
    pieces = microbatches(torch.arange(n), size)
    assert [len(piece) for piece in pieces] == sizes
    assert torch.equal(torch.cat(list(pieces)), torch.arange(n))


# -- the loader's empty batch: the structure of the others, and nobody in it ------------------


def empty_loader(samples: list, **options):
    sampler = PoissonSampler(len(samples), 1e-12, 1, seed=0)
    (batch,) = poisson_loader(samples, sampler, **options)
    return batch


Point = namedtuple("Point", "x y")  # what default_collate keeps


def test_empty_batch_of_nested_samples():
    image, label = torch.ones(3, 2), torch.tensor(1)
    sample = {"image": image, "more": (label, {"mask": torch.ones(4, dtype=torch.bool)}), "n": 2.5}
    batch = empty_loader([sample] * 5)
    assert batch["image"].shape == (0, 3, 2)
    assert batch["more"][0].shape == (0,)
    assert batch["more"][0].dtype == torch.int64
    assert batch["more"][1]["mask"].shape == (0, 4)
    assert batch["more"][1]["mask"].dtype == torch.bool
    assert batch["n"].shape == (0,)


def test_empty_batch_of_a_tensor_data_set():
    data = TensorDataset(torch.randn(5, 3), torch.arange(5))
    (batch,) = poisson_loader(data, PoissonSampler(5, 1e-12, 1, seed=0))
    assert [part.shape for part in batch] == [(0, 3), (0,)]


def test_empty_batch_of_named_tuples():
    batch = empty_loader([Point(torch.ones(3), 1)] * 5)
    assert isinstance(batch, Point)
    assert batch.x.shape == (0, 3)


def test_empty_batch_of_strings_has_no_string():
    text, labels = empty_loader([("private words", 1)] * 5)
    assert len(text) == len(labels) == 0


@dataclass
class Batch:
    x: Tensor


@pytest.mark.parametrize("kind", [UserDict, lambda d: Batch(d["x"])], ids=["UserDict", "dataclass"])
def test_an_empty_batch_of_another_kind_is_empty_or_an_error(kind):
    """Tokenizers' batches are UserDicts. Sample 0 must not stand in for nobody."""
    try:
        batch = empty_loader(
            [torch.ones(3)] * 5, collate_fn=lambda samples: kind({"x": torch.stack(samples)})
        )
    except (TypeError, ValueError):
        return
    assert len(batch["x"] if isinstance(batch, UserDict) else batch.x) == 0


def test_the_loader_hands_out_the_samplers_batches():
    sampler, twin = PoissonSampler(20, 0.4, 6, seed=3), PoissonSampler(20, 0.4, 6, seed=3)
    found = [batch.tolist() for batch in poisson_loader(list(range(20)), sampler)]
    assert found == list(twin)


def test_the_loader_resumes_in_mid_epoch():
    def loader(sampler: PoissonSampler):
        return poisson_loader(list(range(20)), sampler)

    whole = [b.tolist() for b in loader(PoissonSampler(20, 0.4, 6, seed=3))]
    sampler, found = PoissonSampler(20, 0.4, 6, seed=3), []
    for batch in loader(sampler):
        found.append(batch.tolist())
        if len(found) == 3:
            state = sampler.state_dict()
            break
    resumed = PoissonSampler(20, 0.4, 6)
    resumed.load_state_dict(state)
    assert found + [b.tolist() for b in loader(resumed)] == whole
