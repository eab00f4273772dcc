"""Optimizer groups split in place: options, ratios, names and training as before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from steelyard.steps.partition import owners, partition, split
from steelyard.steps.roles import by_role


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))


def test_groups_are_split_and_keep_their_options():
    model = network()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1, "lr": 2.0}, {"params": plain, "lr": 1.0}], lr=3.0
    )
    groups = partition(optimizer, by_role(model))
    assert list(groups) == ["head", "norm", "bias", "other"]
    split(optimizer, groups)
    assert owners(optimizer, groups) == ["other", "head", "bias", "norm", "head"]
    found = [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert found == [(2.0, 0.1, 1), (2.0, 0.1, 1), (1.0, 0.01, 1), (1.0, 0.01, 2), (1.0, 0.01, 1)]
    before = list(optimizer.param_groups)
    split(optimizer, groups)
    assert all(a is b for a, b in zip(optimizer.param_groups, before, strict=True))


def test_training_goes_on_as_before_also_in_the_middle():
    def run(divided: bool):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(6):
            if step == 3 and divided:
                split(optimizer, partition(optimizer, by_role(model)))
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().sum().backward()
            optimizer.step()
        return list(model.parameters())

    assert all(torch.equal(p, q) for p, q in zip(run(True), run(False), strict=True))


def test_names_and_tensor_rates():
    model = network()
    optimizer = torch.optim.Adam(model.named_parameters(), lr=torch.tensor(0.1))
    groups = partition(optimizer, by_role(model))
    split(optimizer, groups)
    named = dict(model.named_parameters())
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            assert named[name] is p
    assert len({id(group["lr"]) for group in optimizer.param_groups}) == 4


def test_the_optimizers_own_groups():
    model = network()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "name": "first"}, {"params": model[2].parameters()}],
        lr=0.1,
    )
    assert list(partition(optimizer, None)) == ["first", "1"]
    model[2].requires_grad_(False)
    assert list(partition(optimizer, None)) == ["first"]
    copy.deepcopy(optimizer)
    optimizer.param_groups[1]["name"] = "first"
    with pytest.raises(ValueError, match="have the same name"):
        partition(optimizer, None)
