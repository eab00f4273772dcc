"""Measuring leaves no trace, trains as a plain loop does, and finds what was planted."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from steelyard.steps.roles import by_pattern, by_role
from steelyard.surgery.influence import influence
from steelyard.surgery.select import choose, front


@pytest.mark.parametrize("every", [None, 3])
def test_no_trace_is_left(network, every):
    model, batches = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    next(batches())().mean().backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    found = influence(model, batches(), optimizer, by_role(model), fits=4, every=every)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[0][name]), name
    after = optimizer.state_dict()
    assert after["param_groups"] == before[1]["param_groups"]
    for k, state in before[1]["state"].items():
        assert all(torch.equal(v, after["state"][k][n]) for n, v in state.items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert max(found.acceptance.values()) == 1.0
    assert found.total == sum(p.numel() for p in model.parameters())


def test_no_trace_is_left_by_an_error(network):
    model, batches = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="ended after 5 batches, 20 are needed"):
        influence(model, itertools.islice(batches(), 5), optimizer, by_role(model))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_probe_run_trains_and_may_be_kept(network):
    """Six plain steps, on the batches that were not for probes."""

    def run(train) -> nn.Module:
        model, batches = network()
        model[3].p = 0.0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        train(model, batches(), optimizer)
        return model

    def probed(model, stream, optimizer):
        found = influence(model, stream, optimizer, by_role(model), fits=2, every=3, keep=True)
        assert found.fits == 2

    def plain(model, stream, optimizer):
        for step in range(6):
            optimizer.zero_grad()
            next(stream)().mean().backward()
            optimizer.step()
            if step % 3 == 2:
                next(stream)

    states = [run(train).state_dict() for train in (probed, plain, lambda *_: None)]
    assert all(torch.equal(t, states[1][n]) for n, t in states[0].items())
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])


def test_lora_moves_only_as_one_group_at_the_start():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(4, 4).requires_grad_(False)
            self.lora_A = nn.Linear(4, 2, bias=False)
            self.lora_B = nn.Linear(2, 4, bias=False)
            nn.init.zeros_(self.lora_B.weight)

        def forward(self, x):
            return self.base(x) + self.lora_B(self.lora_A(x))

    torch.manual_seed(0)
    model, x = Adapted().double(), torch.randn(64, 4).double()
    batches = itertools.repeat(lambda: (model(x) - x).square().sum(1))

    def measured(fine):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        return influence(model, batches, optimizer, by_role(model, fine=fine), fits=3)

    apart = measured(fine=True)
    assert apart.reasons["lora_A"] == ("it did not move",) * 3
    assert choose(apart, "100%").names == ("lora_B",)
    assert measured(fine=False).gains["lora"] == pytest.approx(apart.gains["lora_B"], rel=1e-6)
    assert apart.total == 20 + 16
    assert apart.sizes == {"lora_A": 8, "lora_B": 8}


def test_the_planted_group_is_densest():
    """A head's bias was shifted: it alone needs training, and has the highest density."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    model = copy.deepcopy(teacher)
    with torch.no_grad():
        teacher[2].bias += torch.tensor([2.0, -1.0, -1.0])
    random = torch.Generator().manual_seed(1)

    def batches():
        while True:
            x = torch.randn(256, 8, generator=random)
            yield lambda x=x: (model(x) - teacher(x).detach()).square().mean(1)

    groups = by_pattern(model, ["2.bias", "0.bias", "0.weight", "2.weight"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    found = influence(model, batches(), optimizer, groups, fits=5)
    assert front(found)[0].names == ("2.bias",)
    assert choose(found, 3).names == ("2.bias",)
    assert found.gains["2.bias"] == pytest.approx(2.0, rel=0.1)  # all of the mean square


def test_refusals(network):
    model, batches = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="in no group"):
        influence(model, batches(), optimizer, {"a": list(model[0].named_parameters())})
    with pytest.raises(ValueError, match="found 0 and None"):
        influence(model, batches(), optimizer, by_role(model), fits=0)
    stream = batches()
    drawing = itertools.repeat(lambda: next(stream)())
    with pytest.raises(ValueError, match="draw the batch outside"):
        influence(model, drawing, optimizer, by_role(model), fits=1)


def test_private_optimizers_are_refused(network):
    from steelyard import FlatClip, Gaussian, PerSample, attach

    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with PerSample(model, FlatClip(1.0), expected_batch=8) as rows:
        attached = attach(optimizer, rows, Gaussian(1.0))
        with pytest.raises(ValueError, match="measure on public data"):
            influence(model, network()[1](), optimizer, by_role(model))
        attached.detach()
