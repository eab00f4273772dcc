from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session")
def properties() -> ModuleType:
    """The contracts as functions: tests/contracts/properties.py."""
    path = Path(__file__).with_name("properties.py")
    spec = importlib.util.spec_from_file_location("steelyard_tests_properties", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)  # tiny tensors: threads only cost
    torch.manual_seed(0)
