"""Who owns the learning rates."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from steelyard import Disk, FlatClip, Gaussian, PerSample, attach, chain
from steelyard.filters.attach import step_watchers
from steelyard.steps.gen import GeN
from steelyard.steps.hidlr import HiDLR
from steelyard.steps.learning_rates import NOT_LINEAR, Rates


def optimizer(lr=0.1):
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    return torch.optim.SGD([{"params": [p]}, {"params": [q], "lr": 0.5}], lr)


def now(opt):
    return [float(group["lr"]) for group in opt.param_groups]


def test_values_times_the_factor_of_the_step_to_come():
    opt = optimizer()
    rates = Rates(opt, lambda t: 1 / (1 + t))
    assert rates.values == now(opt) == [0.1, 0.5]
    rates.at(3)
    assert rates.factor == 0.25
    assert now(opt) == [0.025, 0.125]
    rates.multiply(2.0)
    assert rates.values == [0.2, 1.0]
    rates.multiply([1.0, 3.0])
    assert now(opt) == [0.05, 0.75]
    rates.restore([1.0, 2.0], 1)
    assert now(opt) == [0.5, 1.0]
    rates.check()


def test_loading_the_optimizer_and_others_changes_are_seen():
    opt = optimizer()
    saved = copy.deepcopy(opt.state_dict())
    rates = Rates(opt)
    rates.multiply(3.0)
    opt.load_state_dict(saved)  # puts new groups there
    with pytest.raises(ValueError, match=r"are \[0.1, 0.5\], left here were \[0.3"):
        rates.check()
    rates.restore([0.7, 0.7], 0)
    rates.check()
    assert now(opt) == [0.7, 0.7]
    opt.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="new object for new groups"):
        rates.check()


def test_tensors_are_written_in_place():
    lr = torch.tensor(0.25)
    opt = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr)
    held = opt.param_groups[0]["lr"]
    rates = Rates(opt)
    rates.multiply(0.1)
    assert opt.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(0.025)
    rates.check()  # although 0.025 is rounded in it


@pytest.mark.parametrize("kind", NOT_LINEAR)
def test_steps_not_proportional_to_the_rate_are_refused(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} is not proportional"):
        Rates(kind([nn.Parameter(torch.ones(2))], lr=0.1))


# -- behind a filter that measures the steps -----------------------------------------------------


def filtered(gain: float, lr: float):
    """A private step of a line through 32 points, without noise to speak of, behind DiSK."""
    torch.manual_seed(0)
    net = nn.Linear(3, 1, bias=False)
    x = torch.randn(32, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr)
    rows = PerSample(net, FlatClip(1e3), expected_batch=32)
    disk = Disk(gain)
    attached = attach(optimizer, rows, chain(Gaussian(1e-9, seed=0), disk))

    def losses():
        return (net(x) - 1).square().sum(1)

    rows.backward(losses)
    return net, optimizer, disk, attached, losses


@pytest.mark.parametrize("method", [GeN, HiDLR])
@pytest.mark.parametrize("gain", [0.7, 1.0])
def test_behind_disk_a_step_keeps_its_length(method, gain):
    net, optimizer, disk, attached, losses = filtered(gain, 0.05)
    assert step_watchers(optimizer) == ([] if gain == 1 else [disk])
    before = net.weight.detach().clone()
    rate = method(optimizer, model=net, probes_are="public", bootstrap=0, every=1)
    decision = rate.step(losses)
    change = decision.multiple if method is GeN else decision.multipliers["0"]
    assert change > 1.05  # the rate was too small
    gradient = net.weight.grad
    length = float(((net.weight.detach() - before) / (-0.05 * gradient)).mean())
    assert length == pytest.approx(1.0 if gain == 0.7 else change, rel=1e-4)
    if gain == 0.7:  # the look-ahead is that of the step that was taken
        ahead = disk.state_dict()["ahead"][0]
        u = net.weight.detach() - before
        assert torch.allclose(ahead, net.weight.detach() + disk.look_ahead * u, atol=1e-6)
    attached.detach()
    assert step_watchers(optimizer) == []


@pytest.mark.parametrize("method", [GeN, HiDLR])
def test_behind_disk_a_step_taken_back_begins_anew(method):
    net, optimizer, disk, _, losses = filtered(0.7, 1e4)
    before = net.weight.detach().clone()
    rate = method(optimizer, model=net, probes_are="public")
    rate.step(losses)
    assert torch.equal(net.weight, before)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e3)
    assert disk.state_dict()["ahead"] == []  # the next gradient is evaluated here
