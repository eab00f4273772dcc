"""The contracts as functions: each raises AssertionError when a method breaks its protocol.

| function | protocol | says |
|---|---|---|
| `assert_separable` | RowWeighting | each weight from its own norm, C(n) n <= R, finite |
| `assert_sensitivity` | RowWeighting | in the engine: one sample moves `take` by at most R / B |
| `assert_mechanism` | Mechanism | N(0, (sigma s)^2) on every element: fresh and independent |
| `assert_filter` | Filter | keeps the record and the shapes; deterministic; causal |
| `assert_unit_gain` | Filter | a constant gradient stays itself in the long run |
| `assert_resumes` | Stateful | save, load into a fresh object, go on bit-exactly; plain data only |

A method's own test is then its formulas, and one line in the table of its contract.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped, Filter, Mechanism, Noised, RowWeighting

SHAPES = [(100, 200), (300,), (), (1,), (5, 6, 7), (20_000,)]
DEVIATIONS = 5.0  # two-sided error probability 6e-7 per statistic


def assert_separable(weighting: RowWeighting) -> None:
    """RowWeighting: norms [B] -> weights [B], each from its own norm, none past the bound."""
    bound = weighting.bound
    assert 0 < bound < math.inf
    norms = torch.cat([torch.zeros(2), torch.logspace(-18, 18, 73), torch.tensor([bound])])
    weights = weighting(norms)
    assert weights.shape == norms.shape
    assert weights.dtype == norms.dtype
    assert bool(weights.isfinite().all()), "a weight is not finite"
    assert bool((weights >= 0).all()), "a weight is negative"
    reached = weights.double() * norms.double()
    assert float(reached.max()) <= bound * (1 + 1e-6), "a row passes the bound"
    for i in range(0, len(norms), 7):  # alone, reordered, among others: always the same weight
        assert torch.equal(weighting(norms[i : i + 1])[0], weights[i]), "rows are not separate"
    order = torch.randperm(len(norms), generator=torch.Generator().manual_seed(0))
    assert torch.equal(weighting(norms[order]), weights[order]), "rows are not separate"
    assert torch.equal(weighting(norms), weights), "the rule changes from call to call"
    assert weighting(norms[:0]).shape == (0,)
    share = weighting.with_bound(bound / 2)
    assert share.bound == bound / 2
    assert weighting.bound == bound
    assert float((share(norms).double() * norms).max()) <= bound / 2 * (1 + 1e-6)


def assert_sensitivity(
    weighting: RowWeighting,
    model: nn.Module,
    losses: Callable[..., Tensor],
    batch: Sequence[Tensor],
    *,
    groups: Any = "all",
    expected_batch: float = 3.0,
    slack: float = 1e-4,
) -> None:
    """Private rows: ||take(batch) - take(batch without sample i)|| <= R / B for every sample i.

    losses(model, *batch) -> [B]. The batch must contain rows that are past the bound.
    """

    def taken(keep: list[int]) -> Clipped:
        with PerSample(model, weighting, expected_batch=expected_batch, groups=groups) as rows:
            rows.backward(losses(model, *(part[keep] for part in batch)))
            return rows.take()

    everybody = list(range(len(batch[0])))
    whole = taken(everybody)
    assert math.isclose(whole.sensitivity, weighting.bound / expected_batch, rel_tol=1e-9)
    for i in everybody:
        rest = taken([j for j in everybody if j != i])
        moved = _norm([a - b for a, b in zip(whole.tensors, rest.tensors, strict=True)])
        assert moved <= whole.sensitivity * (1 + slack), (
            f"sample {i} moves the sum by {moved:.4g}, allowed {whole.sensitivity:.4g}"
        )


def assert_mechanism(make: Callable[[], Mechanism], *, sensitivity: float = 0.3) -> None:
    """Mechanism: released - clipped is fresh N(0, (sigma * sensitivity)^2) on every element.

    For mechanisms that hand the signal on unchanged. The scale is accepted within 5 standard
    deviations of chi-square with 40,500 degrees of freedom: 1.8 % of the scale.
    """
    mechanism = make()
    scale = mechanism.noise_multiplier * sensitivity
    assert scale > 0
    steps = []
    for signal in (0.0, 3.0):  # an empty batch is as noisy as a full one
        clipped = Clipped([torch.full(shape, signal) for shape in SHAPES], sensitivity)
        released = mechanism.privatise(clipped)
        assert isinstance(released, Noised)
        assert released.sensitivity == sensitivity
        assert released.noise_multiplier == mechanism.noise_multiplier
        assert [t.shape for t in released.tensors] == [torch.Size(shape) for shape in SHAPES]
        steps.append([t.double() - signal for t in released.tensors])
    # one float32 in a million is so small that it vanishes beside a signal of 3: twice, never
    untouched = [bool((one.eq(0) & two.eq(0)).any()) for one, two in zip(*steps, strict=True)]
    assert not any(untouched), "an element without noise"
    for noise in steps:
        _assert_normal(torch.cat([t.flatten() for t in noise]), scale)
    big = [noise[i].flatten()[:20_000] for noise in steps for i in (0, 5)]
    for i, x in enumerate(big):
        for y in big[:i]:
            r = float((x * y).sum() / (x.norm() * y.norm()))
            assert abs(r) * math.sqrt(len(x)) < DEVIATIONS, "noise of two tensors or steps agrees"


def assert_filter(make: Callable[[], Filter]) -> None:
    """Filter: released -> released, the record and shapes kept, from past and present only."""
    inputs = _releases(6)
    whole = _run(make(), inputs)
    for before, after in zip(inputs, whole, strict=True):
        assert isinstance(after, Noised)
        assert [t.shape for t in after.tensors] == [t.shape for t in before.tensors]
        assert after.noise_multiplier == before.noise_multiplier
        assert all(bool(t.isfinite().all()) for t in after.tensors)
    again = _run(make(), _releases(6))
    head = _run(make(), [*_releases(3), *reversed(_releases(3))])
    assert all(_same(a, b) for a, b in zip(whole, again, strict=True)), "not deterministic"
    assert all(_same(a, b) for a, b in zip(whole[:3], head[:3], strict=True)), "not causal"


def assert_unit_gain(
    make: Callable[[], Filter], *, steps: int = 400, tolerance: float = 1e-3
) -> None:
    """Filter: the same gradient for ever comes out as itself in the end (sum_s h_s = 1)."""
    one = make()
    last: Sequence[Tensor] = []
    for _ in range(steps):
        last = one.filter(Noised([torch.full(s, 2.0) for s in SHAPES], 1.0, 1.0)).tensors
    for tensor in last:
        expected = torch.full_like(tensor, 2.0)
        torch.testing.assert_close(tensor, expected, rtol=tolerance, atol=tolerance)


def assert_resumes(make: Callable[[], Any], drive: Callable[[Any], Sequence[Tensor]]) -> None:
    """Stateful: k steps, save, load into a fresh object, go on: equal to never having stopped.

    drive(object) takes one step and returns what it made. Holds for k = 0, 1, 3; the state passes
    through torch.save and a weights-only torch.load, so it is made of plain data.
    """
    for done in (0, 1, 3):
        first = make()
        for _ in range(done):
            drive(first)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = make()
        drive(second)  # a fresh object that has moved on must not matter
        second.load_state_dict(torch.load(file, weights_only=True))
        for step in range(3):
            for a, b in zip(drive(first), drive(second), strict=True):
                assert torch.equal(a, b), f"step {step} after resuming at {done} differs"


def _assert_normal(x: Tensor, scale: float) -> None:
    n = len(x)
    spread = float(((x / scale).square().sum() - n) / math.sqrt(2 * n))
    assert abs(spread) < DEVIATIONS, f"scale off by {spread:.1f} standard deviations"
    mean = float(x.mean() / scale) * math.sqrt(n)
    assert abs(mean) < DEVIATIONS, f"mean off by {mean:.1f} standard deviations"
    tail = float((x.abs() > 2 * scale).double().mean())
    expected = math.erfc(math.sqrt(2))
    off = (tail - expected) / math.sqrt(expected * (1 - expected) / n)
    assert abs(off) < DEVIATIONS, f"tail off by {off:.1f} standard deviations: not Gaussian"


def _releases(steps: int) -> list[Noised]:
    generator = torch.Generator().manual_seed(0)
    return [
        Noised([torch.randn(s, generator=generator) for s in SHAPES], 0.5, 1.2)
        for _ in range(steps)
    ]


def _run(one: Filter, inputs: Sequence[Noised]) -> list[Noised]:
    outputs = [one.filter(release) for release in inputs]
    return [
        Noised([t.clone() for t in o.tensors], o.sensitivity, o.noise_multiplier) for o in outputs
    ]


def _same(one: Noised, other: Noised) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
