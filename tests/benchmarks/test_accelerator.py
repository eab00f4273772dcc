"""The checks of an accelerator, run on the CPU: they find what is exact, and what is not."""

from __future__ import annotations

import re

import accelerator
import torch
from lib.cases import CASES
from lib.workloads import WORKLOADS


def test_exact_cases_are_counted_and_wrong_ones_named(monkeypatch):
    some = [case for case in CASES if not case.refusal][:3]
    assert accelerator.clipped_sums("cpu", some)[0].startswith("3 cases ran, 0 are not exact")
    take = accelerator.PerSample.take

    def twice(rows):
        found = take(rows)
        torch._foreach_mul_(list(found.tensors), 2.0)
        return found

    monkeypatch.setattr(accelerator.PerSample, "take", twice)
    lines = accelerator.clipped_sums("cpu", some)
    assert "3 are not exact" in lines[0]
    assert lines[1].startswith(f"- {some[0].name}: error 1")


def test_noise_and_weighing_are_told_in_numbers():
    told = accelerator.noise("cpu")
    pattern = (
        r"sigma 2: mean (\S+), standard deviation (\S+), 4th moment (\S+) \(3\), correlation of "
        r"two draws (\S+)\."
    )
    mean, deviation, fourth, correlation = map(float, re.fullmatch(pattern, told).groups())
    assert abs(mean) < 0.01
    assert abs(deviation / 2 - 1) < 0.01
    assert abs(fourth / 3 - 1) < 0.02
    assert abs(correlation) < 0.01
    assert "gradient 0.0e+00, weights 0.0e+00" in accelerator.weighing("cpu", WORKLOADS["cnn"])


def test_the_cost_has_a_row_for_every_arm():
    rows = accelerator.cost("cpu", WORKLOADS["cnn"], 0.1)
    assert [row["arm"] for row in rows] == [arm.label for arm in accelerator.ARMS.values()]
    assert rows[0]["ratio"] == 1
