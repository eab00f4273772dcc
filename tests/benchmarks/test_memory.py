"""The live peak against sums done by hand."""

from __future__ import annotations

import torch
from lib.memory import live_peak, model_bytes
from torch import nn

A = 4 * 1000  # bytes of a thousand float32 numbers


def test_the_peak_is_what_lives_at_once():
    def step() -> None:
        x = torch.zeros(1000)
        y = torch.cat([x, x])  # x, y: 3 A
        del x
        z = torch.cat([y, y])  # y, z: 6 A
        del y
        torch.cat([z[:500], z[:500]])  # z and this: 5 A

    assert live_peak(lambda: step) == 6 * A


def test_what_is_kept_from_step_to_step_counts_and_what_is_older_does_not():
    old = torch.zeros(1000)
    kept: list[torch.Tensor] = []

    def before():
        kept.append(torch.zeros(2000))
        torch.zeros(9000)  # freed before the step begins
        return lambda: torch.cat([old, old])

    assert live_peak(before) == 2 * A + 2 * A


def test_memory_inside_an_operator_counts():
    # a linear layer's backward: dy, the gradients of weight and bias, nothing twice
    layer, x = nn.Linear(100, 50), torch.zeros(64, 100)

    def step() -> None:
        layer(x).backward(torch.ones(64, 50))

    layer.requires_grad_(True)
    peak = live_peak(lambda: step)
    ends = 4 * (64 * 50 + 100 * 50 + 50)  # dy, both gradients
    assert ends <= peak <= ends + 4 * 64 * 50 + 64  # and the output while it lives
    assert live_peak(lambda: step) == live_peak(lambda: step)


def test_shared_weights_are_counted_once():
    first, second = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    model = nn.ModuleList([first, second])
    model.register_buffer("counts", torch.zeros(3, dtype=torch.int64))
    assert model_bytes(model) == 800 + 24
    model.register_buffer("view", first.weight.detach()[:5])
    assert model_bytes(model) == 800 + 24
    second.weight = first.weight
    assert model_bytes(model) == 400 + 24
