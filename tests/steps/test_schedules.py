"""Schedulers set the rates of the shapes, step by step, across a resume, in every group."""

from __future__ import annotations

import io

import pytest
import torch

from steelyard.plans.schedule_shapes import Shape
from steelyard.runs.config import TrainConfig
from steelyard.runs.optimizers import rate
from steelyard.steps import schedules

NAMES = ("linear", "cosine", "wsd", "constant", "inverse_sqrt", "cyclic")


def optimizer_of(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    return torch.optim.SGD(groups, lr=1.0)


def taken(optimizer, scheduler, steps):
    """The rates of each step: read before it, as a training loop logs them."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_rates_are_the_shape_times_each_groups_own(name, warmup):
    optimizer = optimizer_of(0.5, 2.0)
    scheduler = getattr(schedules, name)(optimizer, 40, warmup=warmup)
    s = Shape(kind=name.replace("_", "-"), warmup=warmup)(40)
    rates = taken(optimizer, scheduler, 40)
    assert [r[0] for r in rates] == pytest.approx(0.5 * s)
    assert [r[1] for r in rates] == pytest.approx(2.0 * s)


def test_options_reach_the_shape():
    optimizer = optimizer_of(1.0)
    rates = taken(optimizer, schedules.wsd(optimizer, 20, stable=0.5, warmup=0), 20)
    assert [r[0] for r in rates] == pytest.approx(Shape(kind="wsd", stable=0.5)(20))
    optimizer = optimizer_of(1.0)
    rates = taken(optimizer, schedules.cyclic(optimizer, 20, cycles=2, low=0.3, warmup=0), 20)
    assert [r[0] for r in rates] == pytest.approx(Shape(kind="cyclic", cycles=2, low=0.3)(20))


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_keeps_its_schedule(name):
    """Through torch.save with weights_only, even into a scheduler that was made for another run."""
    whole = optimizer_of(1.0)
    expected = taken(whole, getattr(schedules, name)(whole, 30), 30)
    first = optimizer_of(1.0)
    scheduler = getattr(schedules, name)(first, 30)
    taken(first, scheduler, 11)
    file = io.BytesIO()
    torch.save([scheduler.state_dict(), first.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    second = optimizer_of(1.0)
    other = schedules.linear(second, 7, warmup=0.5)
    other.load_state_dict(states[0])
    second.load_state_dict(states[1])
    assert taken(second, other, 19) == expected[11:]


@pytest.mark.parametrize("name", NAMES)
def test_behind_the_end(name):
    optimizer = optimizer_of(1.0)
    scheduler = getattr(schedules, name)(optimizer, 5)
    taken(optimizer, scheduler, 5)
    optimizer.step()
    if name in ("constant", "inverse_sqrt"):
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] > 0
    else:
        with pytest.raises(ValueError, match="of 5 steps, whose rate has ended"):
            scheduler.step()


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_the_command_lines_schedules_are_these_shapes(kind):
    config = TrainConfig(model="mlp", data="tiny", steps=50, schedule=kind, warmup=5)
    expected = [rate(config, step, 50) for step in range(50)]
    assert Shape(kind=kind, warmup=5 / 50)(50) == pytest.approx(expected)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        schedules.cosine(optimizer_of(1.0), 0)
