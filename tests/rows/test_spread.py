"""V_pub, the variance of the mean of public rows: without bias, in both metrics."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.rows.sources import PublicRows
from steelyard.rows.spread import PublicSum, adam_metric
from steelyard.types import Noised
from steelyard.weightings.clip import FlatClip
from steelyard.weightings.coupling import ConstantWeight, Known, OptimalWeight

coupled = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("coupled.py"))))
Run, batch, losses = coupled.Run, coupled.batch, coupled.losses
B, R, SIGMA = coupled.B, coupled.R, coupled.SIGMA

D, TRIALS = 4, 800
SPREAD = torch.tensor([0.2, 0.5, 1.0, 2.0])  # standard deviations of the synthetic gradients
MEAN = torch.tensor([1.0, -1.0, 0.5, 0.0])


def linear() -> tuple[nn.Linear, PerSample]:
    """losses x . w: the gradient of sample i is x_i itself."""
    net = nn.Linear(D, 1, bias=False)
    return net, PerSample(net, FlatClip(1.5), expected_batch=B)


def gradients(n: int) -> Tensor:
    return MEAN + SPREAD * torch.randn(n, D)


def estimates(public: PublicSum, net: nn.Module, sizes: list[int]) -> Tensor:
    """V_pub of TRIALS steps with micro-batches of these sizes."""
    found = []
    for _ in range(TRIALS):
        for n in sizes:
            public.add(net(gradients(n))[:, 0])
        found.append(public.variance())
        public.clear()
    return torch.tensor(found, dtype=torch.float64)


def assert_mean(found: Tensor, truth: float) -> None:
    error = float(found.std()) / len(found) ** 0.5
    assert error < 0.05 * truth
    assert abs(float(found.mean()) - truth) < 5 * error


def test_unclipped_rows():
    net, rows = linear()
    found = estimates(PublicSum(rows, FlatClip(float("inf")), "identity"), net, [3, 2])
    assert_mean(found, float(SPREAD.square().sum()) / 5)


def test_clipped_rows():
    net, rows = linear()
    many = gradients(400_000)
    many = many * (1.5 / many.norm(dim=1, keepdim=True)).clamp(max=1)
    found = estimates(PublicSum(rows, None, "identity"), net, [4])
    assert_mean(found, float(many.var(dim=0).sum()) / 4)


def test_adams_metric_from_micro_batches_of_any_size():
    net, rows = linear()
    optimizer = torch.optim.AdamW(net.parameters(), eps=0.1)
    v = torch.tensor([[0.01, 0.04, 0.25, 1.0]])
    optimizer.state[net.weight] = {"step": torch.tensor(3.0), "exp_avg_sq": v * (1 - 0.999**3)}
    h = 1 / (v.sqrt() + 0.1)
    h = h / h.mean()
    torch.testing.assert_close(adam_metric(optimizer, rows.parameters), [h])
    public = PublicSum(rows, FlatClip(float("inf")), "adam")
    public.connect(optimizer)
    found = estimates(public, net, [1, 3, 2])
    assert_mean(found, float((h * SPREAD.square()).sum()) / 6)


def test_adams_metric_is_plain_before_the_first_step_and_leaves_out_what_does_not_move():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(net[0].parameters())
    h = adam_metric(optimizer, list(net.parameters()))
    assert [float(t.mean()) for t in h] == pytest.approx([13 / 9, 13 / 9, 0, 0])


def test_the_sum_is_the_same_in_every_metric():
    run = Run(ConstantWeight(0.5), optimizer="adamw")
    sums = {}
    for metric in (None, "identity", "adam"):
        public = PublicSum(run.rows, None, metric)
        public.connect(run.optimizer)
        for n in (2, 0, 1, 4):
            public.add(losses(run.net, batch(n, 1, n)))
        assert public.count == 7
        sums[metric] = public.tensors()
    for metric in ("identity", "adam"):
        torch.testing.assert_close(sums[metric], sums[None])


@pytest.mark.parametrize(("metric", "sizes"), [(None, [3, 3]), ("identity", [1]), ("adam", [5])])
def test_no_answer_from_too_little(metric, sizes):
    run = Run(ConstantWeight(0.5), optimizer="adamw")
    public = PublicSum(run.rows, None, metric)
    public.connect(run.optimizer)
    for n in sizes:
        public.add(losses(run.net, batch(n, 1, n)))
    assert public.variance() is None


def test_equal_rows_have_no_spread():
    net, rows = linear()
    public = PublicSum(rows, None, "identity")
    public.add(net(torch.full((5, D), 0.3))[:, 0])
    variance = public.variance()
    assert variance is not None
    assert 0 <= variance < 1e-7


def test_what_the_weight_gets_to_know():
    class Spy:
        metric = "identity"
        seen: Known | None = None

        def alpha(self, known: Known) -> float:
            self.seen = known
            return 0.5

    spy = Spy()
    net, rows = linear()
    public = PublicRows(rows, spy, clip="none", scale=0.1)
    x = gradients(6)
    for step in range(2):
        public.backward(net(x[:2])[:, 0])
        public.backward(net(x[2:])[:, 0])
        public.filter(Noised([torch.zeros(1, D)], R / B, SIGMA))
        assert spy.seen is not None
        assert (spy.seen.step, spy.seen.public_batch, spy.seen.batch) == (step, 6, B)
        variance = 0.1**2 * float(x.var(dim=0).sum()) / 6
        assert spy.seen.public_variance == pytest.approx(variance, rel=1e-5)
        assert spy.seen.noise_variance == pytest.approx((SIGMA * R / B) ** 2 * D)


def test_micro_batches_that_are_not_finite_are_seen_in_adams_metric_too():
    run = Run(ConstantWeight(0.5), optimizer="adamw")
    public = PublicSum(run.rows, None, "adam")
    public.connect(run.optimizer)
    public.add(losses(run.net, batch(0, 1, 2) * float("nan")))
    public.add(losses(run.net, batch(0, 1, 2)))
    assert not public.finite
    public.clear()
    assert public.finite


def test_the_optimal_weight_in_adams_metric_trains():
    run: Any = Run(OptimalWeight(metric="adam"), optimizer="adamw")
    for t in range(4):
        for part in batch(t, 1, 8).split(3):
            run.public.backward(losses(run.net, part))
        run.step(public=False)
        assert 0 < run.public.last_alpha < 1


def test_adams_metric_without_adam_is_refused():
    with pytest.raises(ValueError, match=r"found SGD: use AdamW, or metric"):
        Run(OptimalWeight(metric="adam"))
    net, rows = linear()
    public = PublicRows(rows, OptimalWeight(metric="adam"))
    public.backward(net(gradients(2))[:, 0])
    with pytest.raises(RuntimeError, match="reads the optimizer: attach"):
        public.backward(net(gradients(2))[:, 0])
    public.discard()
    optimizer = torch.optim.Adamax(net.parameters())  # betas and eps, but another moment
    net(gradients(2)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="found Adamax"):
        adam_metric(optimizer, rows.parameters)
