"""GeN and the optimizer's learning rates: groups, decay, a bad start, resuming, refusals."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steelyard.steps.gen import GeN

D = 12


class Bowl(nn.Module):
    """0.5 (w - w*)'H(w - w*), float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        H = torch.randn(D, D, dtype=torch.float64)
        self.H = H @ H.T / D + 0.1 * torch.eye(D, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(D, 1, dtype=torch.float64))

    def forward(self, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        return scale * 0.5 * (self.w.T @ self.H @ self.w).squeeze() + offset


def backward(
    bowl,
):
    bowl.zero_grad()
    bowl().backward()
    return bowl.w.grad.clone()


def test_one_multiple_for_all_groups_and_decay_outside():
    bowl, extra = Bowl(), nn.Parameter(torch.ones(1, dtype=torch.float64))
    groups = [{"params": [bowl.w], "lr": 0.02}, {"params": [extra], "lr": 0.005}]
    optimizer = torch.optim.SGD(groups, 0.1)
    rate = GeN(optimizer, every=1, bootstrap=0, decay=lambda t: 0.5**t)
    for t in range(4):
        assert [g["lr"] for g in optimizer.param_groups] == [r * 0.5**t for r in rate.rates]
        backward(bowl)
        extra.grad = extra.detach().clone()
        rate.step(lambda: bowl() + 0.5 * extra.square().sum())
        assert rate.rates[0] / rate.rates[1] == pytest.approx(4)
        assert rate.log[-1].accepted
    assert rate.rates[0] > 0.02  # it grows although half a step is taken each time


def test_probes_lie_at_multiples_of_the_undecayed_rate():
    p, seen = nn.Parameter(torch.zeros(1, dtype=torch.float64)), []
    rate = GeN(torch.optim.SGD([p], 0.8), every=1, bootstrap=0, decay=lambda t: 0.25)
    p.grad = torch.ones_like(p)

    def losses():
        seen.append(p.item())
        return (p + 1).square().sum()

    rate.step(losses)
    assert seen == pytest.approx([0.0, 1.6, 0.8, -0.8, -1.6, 0.0])  # and the check of the first
    assert rate.rates[0] == pytest.approx(0.8 * (0.9 + 0.1 * 1 / 0.8))
    assert p.item() == pytest.approx(-0.25 * rate.rates[0])


def test_a_decay_that_has_ended_makes_no_fits():
    bowl = Bowl()
    rate = GeN(torch.optim.SGD(bowl.parameters(), 0.1), every=1, decay=lambda t: 0.001)
    backward(bowl)
    assert "too small" in rate.step(bowl).reason
    with pytest.raises(ValueError, match=r"decay\(0\) must be 0 or positive, found -1"):
        GeN(torch.optim.SGD(bowl.parameters(), 0.1), decay=lambda t: -1.0)


def trained(lr0, steps=200):
    torch.manual_seed(0)
    x = torch.randn(2000, 10)
    y = (x @ torch.randn(10, 8)).tanh() @ torch.randn(8, 3)
    y = y.argmax(1)
    net = nn.Sequential(nn.Linear(10, 16, bias=False), nn.Tanh(), nn.Linear(16, 3, bias=False))
    optimizer = torch.optim.SGD(net.parameters(), lr0, momentum=0.9, weight_decay=0.01)
    rate = GeN(optimizer, model=net)
    for _ in range(steps):
        i, j = torch.randint(2000, (2, 128))
        optimizer.zero_grad()
        cross_entropy(net(x[i]), y[i]).backward()
        rate.step(lambda j=j: cross_entropy(net(x[j]), y[j], reduction="none"))
    return cross_entropy(net(x), y).item(), rate


@pytest.mark.parametrize("lr0", [1e-7, 1e-3, 1.0, 1e3])
def test_a_first_rate_that_is_off_by_orders_of_magnitude(lr0):
    loss, rate = trained(lr0)
    assert 1e-2 < rate.rates[0] < 10
    assert loss < 0.34  # 1.13 at the start; constant rates: 0.31 (0.3), 0.83 (1e-3), nan (1e3)
    assert len(rate.log) == 20 + 23


def test_resumes_bit_for_bit():
    def run(steps, states=None):
        bowl = Bowl()
        optimizer = torch.optim.AdamW(bowl.parameters(), 1e-5)
        rate = GeN(optimizer, every=2, bootstrap=6, decay=lambda t: 1 - t / 40)
        if states is not None:
            bowl.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
            rate.load_state_dict(states[2])
        for _ in range(steps):
            backward(bowl)
            rate.step(bowl)
        return copy.deepcopy((bowl.state_dict(), optimizer.state_dict(), rate.state_dict()))

    for first in (3, 11):
        assert str(run(20 - first, run(first))) == str(run(20))
        assert torch.equal(run(20 - first, run(first))[0]["w"], run(20)[0]["w"])
    rate = GeN(torch.optim.SGD(Bowl().parameters(), 0.1))
    with pytest.raises(ValueError, match=r"not a saved GeN: found \['kind'\]"):
        rate.load_state_dict({"kind": "gen"})
    with pytest.raises(ValueError, match="has 2 parameter groups"):
        rate.load_state_dict(rate.state_dict() | {"rates": [1.0, 2.0]})


# -- what is refused -------------------------------------------------------------------------------


def test_a_scheduler_beside_it_is_refused():
    bowl = Bowl()
    optimizer = torch.optim.SGD(bowl.parameters(), 0.1)
    rate = GeN(optimizer)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    backward(bowl)
    rate.step(bowl)
    scheduler.step()
    before = bowl.w.detach().clone()
    with pytest.raises(ValueError, match="detach what sets them"):
        rate.step(bowl)
    assert torch.equal(bowl.w, before)


def test_a_batch_drawn_inside_is_refused():
    bowl, batches = Bowl(), iter(range(1, 100))
    backward(bowl)
    rate = GeN(torch.optim.SGD(bowl.parameters(), 0.1))
    with pytest.raises(ValueError, match="draw the batch outside"):
        rate.step(lambda: bowl(float(next(batches))))


def test_a_loss_that_raises_leaves_the_step_taken():
    bowl = Bowl()
    plain = copy.deepcopy(bowl)
    optimizer = torch.optim.SGD(bowl.parameters(), 0.1)
    rate = GeN(optimizer)

    def fails():
        raise KeyError

    backward(bowl)
    backward(plain)
    torch.optim.SGD(plain.parameters(), 0.1).step()
    with pytest.raises(KeyError):
        rate.step(fails)
    assert torch.equal(bowl.w, plain.w)
    assert rate.rates == [0.1]
    assert rate.state_dict()["steps"] == 1
    backward(bowl)
    assert rate.step(bowl).accepted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every and shrink_after are at least 1"),
        ({"smoothing": 1.0}, r"smoothing in \[0, 1\)"),
        ({"probes": (0, 1)}, "none 0"),
        ({"probes": (1,)}, "two different numbers"),
        ({"clip": (2.0, 3.0)}, "around 1"),
        ({"probes_are": "private"}, "found 'private'"),
        ({"training": "test"}, "unknown training"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        GeN(torch.optim.SGD(Bowl().parameters(), 0.1), **options)


def test_a_fit_that_is_due_needs_losses():
    bowl = Bowl()
    rate = GeN(torch.optim.SGD(bowl.parameters(), 0.1), every=2, bootstrap=0)
    backward(bowl)
    assert not rate.due
    assert rate.step() is None
    with pytest.raises(ValueError, match="a fit is due"):
        rate.step()
    assert np.isclose(rate.rates[0], 0.1)
