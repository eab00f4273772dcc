"""`steelyard select`: the table, the files, a larger model, and one line for what is wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest

from steelyard.runs import selection
from steelyard.surgery.influence import influence

COMMON = ("--fits", 3, "--batch", 32, "--every", 0, "--device", "cpu")


@pytest.fixture
def mlp(command_line, features_csv):
    def run(*more: object):
        return command_line("select", "mlp", "--data", features_csv, *COMMON, *more)

    return run


def test_the_table_the_choice_and_the_warning(mlp):
    outcome = mlp("--budget", "60%")
    assert outcome.code == 0, outcome.err
    for part in ("groups of mlp", "head", "bias", "yes", "3/3", "The front", "% + "):
        assert part in outcome.out
    assert "Under 1," in outcome.out
    assert "of the model; predicted gain" in outcome.out
    assert "No configuration of peft: not a Hugging Face model." in outcome.out
    assert "the choice is not private" in outcome.err
    assert "forward passes of 32 samples" in outcome.err


def test_json_and_files(mlp, tmp_path):
    outcome = mlp("--budget", "600", "--json", "--out", "chosen", "--full")
    record = json.loads(outcome.out)
    assert record == json.loads((tmp_path / "chosen" / "selection.json").read_text())
    density = [row["gain_per_parameter"] for row in record["groups"] if row["gain"] is not None]
    assert density == sorted(density, reverse=True)
    assert sum(row["parameters"] for row in record["groups"]) == record["parameters"]
    assert record["budget"] == 600
    assert record["chosen"]["parameters"] <= 600
    assert record["parameter_names"]
    assert record["model"] == "mlp"
    assert record["note"] == selection.PRIVACY
    assert (tmp_path / "chosen" / "front.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "chosen" / "front.csv").read_text().splitlines()
    assert len(lines) == 1 + len(record["front"])
    again = mlp("--out", "chosen")
    assert again.code == 2
    assert "exists already" in again.error


def test_groups_by_pattern_and_nothing_that_fits(mlp):
    outcome = mlp("--groups", "*.bias,*.weight", "--budget", "3")
    assert outcome.code == 0, outcome.err
    assert "*.bias" in outcome.out
    assert "nothing fits; the densest group takes" in outcome.out


def test_the_model_trains_between_fits_unless_told_otherwise(
    command_line, features_csv, monkeypatch
):
    asked = []

    def noted(*args, **options):
        asked.append(options["every"])
        return influence(*args, **{**options, "every": None})

    monkeypatch.setattr(selection, "influence", noted)
    for more in ((), ("--every", 0), ("--every", 9)):
        given = ("--data", features_csv, "--fits", 3, "--batch", 32, *more)
        assert command_line("select", "mlp", *given).code == 0
    assert asked == [4, None, 9]


def test_the_choice_depends_on_the_seed_alone(mlp):
    one, again, other = (mlp("--json", "--seed", seed).out for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("mlp --budget lots", ["'lots'", "1%"]),
        ("mlp --budget 0", ["--budget 0", "1,"]),
        ("mlp --budget 101%", ["101%", "at most"]),
        ("cn", ["'cn'", "use 'mlp'"]),
        ("mlp --groups haed.*", ["--groups haed.*", "matched no"]),
        ("mlp --optimizer adm", ["'adm'", "did you mean 'adam'"]),
        ("mlp --transfer-to cn", ["'cn'"]),
        ("mlp --batch 5000", ["5000", "training samples"]),
        ("mlp --fits 2", ["--fits", "'2'"]),
        ("mlp --every 0 --lr 1e-30", ["no group had three fits that were believed", "--lr"]),
    ],
)
def test_wrong_input_is_one_line(command_line, features_csv, typed, named):
    name, *more = typed.split()
    outcome = command_line("select", name, "--data", features_csv, *COMMON[4:], *more)
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("steelyard: ")
    for part in named:
        assert part in last


def test_a_pretrained_model_and_a_larger_one(command_line, reviews, pretrained, tmp_path):
    small = pretrained("bert")
    given = ("--data", reviews, *COMMON, "--length", 8, "--lr", 0.01, "--groups", "coarse")
    outcome = command_line(
        "select", small, *given, "--transfer-to", small, "--budget", "50%", "--json",
        "--out", "chosen",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["adapter"] == "full"
    assert record["transfer"]["chosen"] == record["chosen"]  # the same sizes
    assert {"head", "norm", "bias"} <= {row["group"] for row in record["groups"]}
    assert record["peft"] is None
    assert "use apply(model)" in record["peft_reason"]


def test_a_choice_that_peft_has(command_line, reviews, pretrained, tmp_path, monkeypatch):
    def believed(*args, **options):  # the tiny model's LoRA is lost in rounding
        found = influence(*args, **options)
        return dataclasses.replace(found, values=dict.fromkeys(found.values, (0.1,) * 3))

    monkeypatch.setattr(selection, "influence", believed)
    given = ("--data", reviews, *COMMON, "--length", 8, "--adapter", "lora", "--budget", "100%")
    lora = command_line("select", pretrained("bert"), *given, "--out", "l")
    assert lora.code == 0, lora.err
    assert "peft can express the choice: LoraConfig" in lora.out
    config = json.loads((tmp_path / "l" / "adapter_config.json").read_text())
    assert config["r"] == 8
