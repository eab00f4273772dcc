"""Who owns the learning rates."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

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
