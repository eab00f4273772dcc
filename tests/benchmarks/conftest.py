"""The benchmarks are scripts beside the library: their folder is put on the import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from lib.workloads import Workload, own

from steelyard.models import Task, build


def _small_gpt() -> nn.Module:
    task = Task(kind="language", shape=(6,), vocabulary=11)
    return build("gpt", task, seed=0, layers=1, width=8, heads=2)


SMALL = {
    "linear": Workload(
        name="linear",
        about="",
        model=lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 10)),
        batch=lambda: (torch.randn(4, 5), torch.randint(0, 10, (4,))),
    ),
    "convolution": Workload(
        name="convolution",
        about="",
        model=lambda: own("cnn", "image", (14, 14, 1)),
        batch=lambda: (torch.randn(5, 1, 14, 14), torch.randint(0, 10, (5,))),
    ),
    "text": Workload(
        name="text",
        about="",
        model=_small_gpt,
        batch=lambda: (torch.randint(0, 11, (4, 6)), torch.randint(0, 11, (4, 6))),
        tokens=True,
    ),
}


@pytest.fixture(params=SMALL)
def small(request) -> Workload:
    """A linear model, a convolutional one and a GPT, in turn."""
    return SMALL[request.param]


@pytest.fixture
def linear() -> Workload:
    """5-6-10 with tanh, four samples."""
    return SMALL["linear"]
