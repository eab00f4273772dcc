"""The cost of weighing: every arm steps, NGDiff needs one gradient copy, the page marks limits."""

from __future__ import annotations

import pytest
import torch
from lib import memory
from lib.workloads import WORKLOADS, Workload
from task_cost import ARMS, BASE, make, page
from torch import nn


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_takes_finite_steps(name):
    step = make(ARMS[name], WORKLOADS["cnn"])
    for _ in range(2):
        step()
    cells = [c.cell_contents for c in step.__closure__ or ()]
    (optimizer,) = [c for c in cells if isinstance(c, torch.optim.Optimizer)]
    for group in optimizer.param_groups:
        assert all(bool(p.isfinite().all()) for p in group["params"])


@pytest.mark.parametrize("name", ["ngdiff", "blur"])
def test_one_gradient_copy_above_two_backward_passes(name):
    """On a model that is mostly parameters: what is added is one gradient, to a few percent."""
    wide = Workload(
        name="wide",
        about="",
        model=lambda: nn.Sequential(nn.Linear(300, 1000), nn.Tanh(), nn.Linear(1000, 10)),
        batch=lambda: (torch.randn(4, 300), torch.randint(0, 10, (4,))),
    )
    size = 4 * sum(p.numel() for p in wide.build()[0].parameters())
    live = {}
    for arm in ("two", name):

        def before(arm=arm):
            step = make(ARMS[arm], wide)
            step()
            return step

        live[arm] = memory.live_peak(before)
    # two plain passes hold .grad and, while the second one adds to it, a layer's new gradient
    assert (live[name] - live["two"]) / size < 1.05


def test_the_page_marks_what_is_past_its_limit():
    common = {
        "workload": "mlp", "ratio": 1.2, "low": 1.0, "high": 1.1, "ms": 20.0, "memory": 1.0,
        "rounds": 5,
    }  # fmt: skip
    rows = [
        common | {"arm": "kept", "two": 1.05, "limit": 1.05},
        common | {"arm": "missed", "two": 1.051, "limit": 1.05},
        common | {"arm": "free", "two": 2.0, "limit": None},
    ]
    lines = {line.split("|")[2].strip(): line for line in page(rows).splitlines() if "mlp" in line}
    assert lines["kept"].endswith("| yes |")
    assert lines["missed"].endswith("| **no** |")
    assert lines["free"].endswith("|  |")
    assert ARMS[BASE].weighting is None
