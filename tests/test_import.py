"""What an import costs, told by what it loads: clocks lie on a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("transformers", "peft", "datasets", "matplotlib", "pymoo", "dp_accounting", "PIL")


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    code += "\nimport sys, json\nprint(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_search_sees_a_heavy_module():
    assert {"torch", "numpy"} <= loaded_after("import torch")


def test_import_steelyard_loads_nothing_heavy():
    loaded = loaded_after("import steelyard")
    assert "steelyard" in loaded
    assert not loaded & {*HEAVY, "torch", "numpy", "scipy", "rich"}


def test_every_public_name_loads_torch_and_nothing_else_heavy():
    loaded = loaded_after(
        "import steelyard\nfor name in steelyard.__all__: getattr(steelyard, name)"
    )
    assert "torch" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    "module", ["cli", "data", "plans.privacy", "runs.ledger", "report.read", "runs.plan_lr"]
)
def test_what_needs_no_torch_loads_none(module):
    assert not loaded_after(f"import steelyard.{module}") & {*HEAVY, "torch"}


def test_planning_on_the_command_line_loads_no_torch():
    code = """
import sys
from steelyard.cli import main
sys.argv = ["steelyard", "plan", "privacy", "--n", "1000", "--batch", "100", "--steps", "5",
            "--epsilon", "2", "--accountant", "rdp"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""
    loaded = loaded_after(code)
    assert "dp_accounting" in loaded  # it did plan
    assert not loaded & {"torch", "transformers", "matplotlib"}
