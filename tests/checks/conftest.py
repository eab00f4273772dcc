from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)  # tiny tensors: threads only cost
    torch.manual_seed(0)
