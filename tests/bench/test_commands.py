"""`steelyard bench audit`: exit codes, the file, and what is said about the number."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest

from steelyard.bench.commands import audit_command
from steelyard.bench.records import AuditConfig

QUICK = ("bench", "audit", "--model", "mlp", "--data", "rows.csv", "--label", "label", "--seeds", 2)
SMALL = (*QUICK, "--canaries", 400, "--steps", 20, "--batch", 80)


def test_a_claim_that_stands(command_line, features_csv, tmp_path):
    done = command_line(*SMALL, "--json", tmp_path / "found.json")
    assert done.code == 0
    assert "Not refuted" in done.out
    assert "no proof" in done.out
    assert "BROKEN" not in done.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["refuted"] is False
    assert [run["config"]["seed"] for run in found["runs"]] == [0, 1]
    assert all(run["bound"]["epsilon"] <= run["claimed_epsilon"] for run in found["runs"])
    for run in found["runs"]:
        assert f"{run['bound']['count']['right']} / {run['bound']['count']['guesses']}" in done.out


def test_a_claim_that_falls_is_exit_code_1_and_says_that_it_was_broken(command_line, features_csv):
    done = command_line(*SMALL, "--epsilon", 1, "--break-noise", 0.05)
    assert done.code == 1
    assert "REFUTED: at confidence 0.95" in done.out
    assert "DELIBERATELY BROKEN" in done.out
    assert "only 0.05 of the claimed noise" in done.out


def test_too_few_canaries_for_the_claim_are_named(command_line, features_csv):
    done = command_line(*QUICK, "--canaries", 50, "--steps", 2, "--batch", 20, "--mode", "input")
    assert done.code == 0
    assert "50 canaries cannot show epsilon 3.00" in done.out


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("--mode", "inptu"), ["'inptu'", "gradient, input"]),
        (("--canaries", 3), ["canaries", "16", "3"]),
        (("--epsilon", 0), ["epsilon", "0"]),
        (("--seeds", 0), ["seeds", "0"]),
        (("--confidence", 95), ["confidence", "95"]),
        (("--break-noise", -1), ["break-noise", "-1"]),
        (("--clip", "flat:inf"), ["flat:inf"]),
        (("--batch", 9999), ["9999", "training samples"]),
        (("--mode", "input", "--canaries", 200), ["400", "216"]),
        (("--json", "nowhere/found.json"), ["found.json"]),
        (("--model", "cnnn"), ["cnnn"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command_line, features_csv, wrong, named):
    done = command_line(*SMALL, *wrong)
    assert done.code == 2
    error = [line for line in done.err.splitlines() if line.startswith("steelyard: ")]
    assert len(error) == 1
    assert all(word in error[0] for word in named), error


def test_the_command_has_the_defaults_of_the_configuration():
    options = inspect.signature(audit_command).parameters
    config = AuditConfig()
    shared = [field.name for field in dataclasses.fields(config)]
    assert {name: options[name].default for name in shared} == dataclasses.asdict(config)
