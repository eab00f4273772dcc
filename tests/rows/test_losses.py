"""Gradients evaluated elsewhere, second sums, sums of public rows: against rows one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import models
from steelyard.rows.groups import partition
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import AutoClip, FlatClip

B, R = 5, 0.7


class Moved:
    """Evaluations at x + scale * (fixed direction), as a filter that looks ahead asks for them."""

    def __init__(self, net: nn.Module, *weights_and_scales: tuple[float, float]):
        self.net, self.asked = net, weights_and_scales
        torch.manual_seed(5)
        self.direction = [0.3 * torch.randn_like(p) for p in net.parameters()]

    @contextmanager
    def at(self, scale: float) -> Iterator[None]:
        own = [p.detach().clone() for p in self.net.parameters()]
        with torch.no_grad():
            for p, d in zip(self.net.parameters(), self.direction, strict=True):
                p.add_(d, alpha=scale)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, old in zip(self.net.parameters(), own, strict=True):
                    p.copy_(old)

    def evaluations(self):
        return [(weight, self.at(scale)) for weight, scale in self.asked]


def classified(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:  # [B]
    return F.cross_entropy(net(x), y, reduction="none")


def continued(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:  # [B]
    return F.cross_entropy(net(x).transpose(1, 2), y, reduction="none").mean(1)


def tied_gpt() -> nn.Module:
    task = models.Task(kind="language", shape=(6,), vocabulary=11)
    return models.build("gpt", task, seed=0, layers=1, width=8, heads=2, tied=True).double()


def cnn() -> nn.Module:
    task = models.Task(kind="image", shape=(14, 14, 1), classes=3)
    return models.build("cnn", task, seed=0).double()


def tokens() -> tuple[Tensor, Tensor]:
    both = torch.randint(0, 11, (B, 7))
    return both[:, :-1], both[:, 1:]


def pictures() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 1, 14, 14).double(), torch.randint(0, 3, (B,))


WORKLOADS = {"tied gpt": (tied_gpt, tokens, continued), "cnn": (cnn, pictures, classified)}
POINTS = {
    "one, ahead": [(1.0, 0.8)],
    "two": [(0.6, 0.8), (0.4, 0.0)],
    "two, w > 1": [(1.5, 0.8), (-0.5, 0.0)],
    "three": [(0.5, 1.0), (0.3, 0.5), (0.2, -0.5)],
}


def mixed(oracle, net, points: Moved, losses, batch) -> list[dict[str, Tensor]]:
    """sum_k weight_k grad f(point_k; i), one sample and one point at a time."""
    total: list[dict[str, Tensor]] = []
    for weight, scale in points.asked:
        with points.at(scale):
            rows = oracle.per_sample(net, losses, *batch)
        rows = [{name: weight * g for name, g in row.items()} for row in rows]
        total = rows if not total else [
            {name: a[name] + b[name] for name in a} for a, b in zip(total, rows, strict=True)
        ]  # fmt: skip
    return total


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("groups", ["all", "layer"])
@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_rows_are_mixed_before_they_are_clipped(oracle, workload, points, groups, engine):
    make, draw, losses = WORKLOADS[workload]
    torch.manual_seed(0)
    net, batch = make(), draw()
    moved = Moved(net, *POINTS[points])
    rows = mixed(oracle, net, moved, losses, batch)
    named = dict(net.named_parameters())
    expected = oracle.clipped_sum(rows, partition(named, groups), "flat", R)
    bigger = oracle.clipped_sum(rows, partition(named, groups), "flat", 2.5 * R)
    with PerSample(net, FlatClip(R), expected_batch=1, groups=groups, engine=engine) as own:
        own.points, own.raw_bound = moved, 2.5 * R
        for _ in range(2):  # the first batch is proved on, the second is not
            own.backward(lambda: losses(net, *batch))
            taken = own.take()
    assert taken.raw is not None
    for name, one, raw in zip(named, taken.tensors, taken.raw, strict=True):
        torch.testing.assert_close(one, expected[name], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(raw, bigger[name], rtol=1e-9, atol=1e-11)
    norms = [oracle.norm(row, list(named)) for row in rows]
    assert max(norms) > R  # some rows are clipped: the order of mixing and clipping matters


def test_micro_batches_and_empty_ones_are_mixed_too():
    torch.manual_seed(0)
    net = cnn()
    moved, (x, y) = Moved(net, (0.6, 0.8), (0.4, 0.0)), pictures()
    taken = []
    for cuts in ([B], [2, 3], [0, 4, 0, 1]):
        with PerSample(net, FlatClip(R), expected_batch=B) as rows:
            rows.points = moved
            for part_x, part_y in zip(x.split(cuts), y.split(cuts), strict=True):
                rows.backward(
                    lambda a=part_x, b=part_y: classified(net, a, b) if len(b) else torch.zeros(0)
                )
            taken.append(rows.take().tensors)
    for other in taken[1:]:
        for a, b in zip(taken[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_same_masks_at_every_point():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 1)).double()
    masks = []
    net[1].register_forward_hook(lambda module, args, out: masks.append(out.detach() != 0))
    x = torch.randn(B, 4).double()
    with PerSample(net, FlatClip(R), expected_batch=B) as rows:
        rows.points = Moved(net, (0.6, 0.0), (0.4, 0.0))
        rows.backward(lambda: net(x).square().sum(1))
        rows.discard()
        first, second = masks
        assert torch.equal(first, second)
        masks.clear()
        after_two = torch.get_rng_state()
        rows.backward(lambda: net(x).square().sum(1))
        assert not torch.equal(masks[0], first)  # the next step has others
    torch.manual_seed(0)
    assert not torch.equal(after_two, torch.get_rng_state())


def test_a_tensor_is_refused_where_a_function_is_needed():
    net = nn.Linear(3, 1)
    with PerSample(net, FlatClip(R), expected_batch=B) as rows:
        rows.points = Moved(net, (1.0, 0.5))
        with pytest.raises(ValueError, match=r"Moved evaluates gradients away .*lambda"):
            rows.backward(net(torch.randn(B, 3)).square().sum(1))


def test_the_batch_may_not_change_from_point_to_point():
    net, sizes = nn.Linear(3, 1), iter([4, 3])
    with PerSample(net, FlatClip(R), expected_batch=B) as rows:
        rows.points = Moved(net, (0.5, 0.5), (0.5, 0.0))
        with pytest.raises(ValueError, match="4 losses at one point and 3 at another"):
            rows.backward(lambda: net(torch.randn(next(sizes), 3)).square().sum(1))
        assert not rows.armed


@pytest.mark.parametrize("broken", [0, 1], ids=["first", "second"])
def test_parameters_come_back_whatever_happens(broken):
    net = nn.Linear(3, 1)
    before = [p.detach().clone() for p in net.parameters()]
    calls = iter(range(2))

    def losses() -> Tensor:
        if next(calls) == broken:
            raise RuntimeError("the user's own")
        return net(torch.randn(B, 3)).square().sum(1)

    with PerSample(net, FlatClip(R), expected_batch=B) as rows:
        rows.points = Moved(net, (0.5, 0.5), (0.5, 0.7))
        with pytest.raises(RuntimeError, match="the user's own") as error:
            rows.backward(losses)
        # even while the traceback, which holds the frames, is alive
        assert error.value.__traceback__ is not None
        for p, old in zip(net.parameters(), before, strict=True):
            assert torch.equal(p, old)


def test_public_rows_go_into_a_sum_of_their_own(oracle):
    torch.manual_seed(0)
    net = cnn()
    (x, y), (u, v) = pictures(), pictures()
    named = dict(net.named_parameters())
    public = oracle.per_sample(net, classified, u[:3], v[:3])
    with PerSample(net, AutoClip(R), expected_batch=B) as rows:
        rows.backward(classified(net, x, y))
        alone = rows.take()
        beside = rows.new_sum(expected_batch=3)
        beside.measured = True
        rows.backward(classified(net, x[:2], y[:2]))
        rows.backward(classified(net, u[:3], v[:3]), into=beside)
        rows.backward(classified(net, x[2:], y[2:]))
        for a, b in zip(alone.tensors, rows.take().tensors, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        expected = oracle.clipped_sum(public, [list(named)], "auto-s", R)
        for name, tensor in zip(named, beside.tensors(), strict=True):
            torch.testing.assert_close(tensor, expected[name] / 3, rtol=1e-9, atol=1e-12)
        norms = [oracle.norm(row, list(named)) for row in public]
        squares = sum((R * n / (n + 0.01)) ** 2 for n in norms)
        assert float(beside.squares) == pytest.approx(squares, rel=1e-9)
        assert not rows.armed
        rows.backward(classified(net, u[:3], v[:3]), into=beside)
        assert not rows.armed  # public rows alone make no private step


def test_without_a_bound_there_is_no_second_sum():
    net = nn.Linear(3, 1)
    with PerSample(net, FlatClip(R), expected_batch=B) as rows:
        rows.backward(net(torch.randn(B, 3)).square().sum(1))
        assert rows.take().raw is None
