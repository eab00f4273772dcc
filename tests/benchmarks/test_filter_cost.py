"""The cost of filters: every arm steps, and the page says who kept the limit."""

from __future__ import annotations

import pytest
import torch
from filter_cost import ARMS, BASE, make, page
from lib.workloads import WORKLOADS


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_takes_finite_steps(name):
    step = make(ARMS[name], WORKLOADS["cnn"])
    for _ in range(2):
        step()
    cells = [c.cell_contents for c in step.__closure__ or ()]
    (optimizer,) = [c for c in cells if isinstance(c, torch.optim.Optimizer)]
    for group in optimizer.param_groups:
        assert all(bool(p.isfinite().all()) for p in group["params"])


def test_the_page_marks_what_is_past_its_limit():
    common = {"workload": "mlp", "low": 1.0, "high": 1.1, "ms": 20.0, "memory": 1.0, "asked": "1"}
    rows = [
        common | {"arm": "kept", "ratio": 1.05, "limit": 1.05},
        common | {"arm": "missed", "ratio": 1.051, "limit": 1.05},
        common | {"arm": "free", "ratio": 2.0, "limit": None},
    ]
    lines = {line.split("|")[2].strip(): line for line in page(rows).splitlines() if "mlp" in line}
    assert lines["kept"].endswith("| yes |")
    assert lines["missed"].endswith("| **no** |")
    assert lines["free"].endswith("|  |")
    assert ARMS[BASE].filters() == []
