"""What a run leaves behind, for every kind of data and model; all private."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from steelyard.runs import recipes
from steelyard.runs.config import TrainConfig
from steelyard.runs.events import read_events

QUICK = ("--accountant", "rdp", "--steps", 3)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of 120 grey images of two classes, dark and light."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for kind, base in (("dark", 0), ("light", 130)):
        folder = tmp_path / "photos" / kind
        folder.mkdir(parents=True)
        for i in range(60):
            pixels = (rng.integers(0, 120, (16, 16)) + base).astype("uint8")
            image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def check_private(folder: Path, score: str = "accuracy") -> None:
    """A whole private run: nothing missing, nothing un-noised in the logs."""
    result, ledger = read(folder / "result.json"), read(folder / "ledger.json")
    events = read_events(folder / "events.jsonl")
    assert result["private"] is True
    assert 2.9 < result["epsilon"] <= 3.0
    assert ledger["epsilon"] == result["epsilon"]
    assert ledger["steps"] == result["steps"] == 3
    assert ledger["unprotected"] == []
    assert math.isfinite(result[f"test_{score}"])
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "finish"
    assert kinds.count("train") == 3
    assert all(event["loss"] is None for event in events if event["kind"] == "train")
    known = {"samples_per_s", "lr", "epsilon", "loss", "time", "kind", "step"}
    assert all(event.keys() <= known for event in events if event["kind"] == "train")
    weights = load_file(folder / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not list(folder.glob("*.tmp"))
    config = read(folder / "config.json")
    assert TrainConfig.from_dict(config).to_dict().items() <= config.items()


def test_features_with_mlp(command_line, features_csv, tmp_path):
    outcome = command_line("train", "--data", features_csv, *QUICK, "--out", "run")
    assert outcome.code == 0, outcome.err
    check_private(tmp_path / "run")
    config = read(tmp_path / "run" / "config.json")
    assert config["model"] == "mlp"
    assert config["command"].startswith("steelyard train --data")
    assert "log(1 + |x|)" in str(read(tmp_path / "run" / "ledger.json")["public"])
    assert "run/report.html" in outcome.err


def test_images_with_cnn(command_line, photos, tmp_path):
    outcome = command_line("train", "--data", photos, *QUICK, "--out", "run")
    assert outcome.code == 0, outcome.err
    check_private(tmp_path / "run")
    assert read(tmp_path / "run" / "config.json")["model"] == "cnn"


def test_text_with_gpt_on_bytes(command_line, tmp_path):
    lines = [json.dumps({"text": f"to be or not to be, that is question {i}"}) for i in range(40)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines) + "\n")
    options = ("--length", 16, "--micro-batch", 8)
    outcome = command_line("train", "--data", "lines.jsonl", *options, *QUICK, "--out", "run")
    assert outcome.code == 0, outcome.err
    check_private(tmp_path / "run", score="perplexity")
    assert read(tmp_path / "run" / "config.json")["model"] == "gpt"
    assert "chunk of 16 tokens" in str(read(tmp_path / "run" / "ledger.json")["assumptions"])
    assert "perplexity" in outcome.out


@pytest.mark.parametrize("adapter", ["lora", "bias"])
def test_text_with_a_pretrained_encoder(adapter, command_line, pretrained, reviews, tmp_path):
    model = ("--model", pretrained("bert"), "--adapter", adapter, "--length", 8)
    outcome = command_line("train", "--data", reviews, *model, *QUICK, "--out", "run")
    assert outcome.code == 0, outcome.err
    check_private(tmp_path / "run")
    result = read(tmp_path / "run" / "result.json")
    assert 0 < result["trainable"] < result["parameters"]
    start = read_events(tmp_path / "run" / "events.jsonl")[0]
    assert start["engine"] == "book-keeping"


def test_batchnorm_is_refused_then_replaced(command_line, pretrained, photos, tmp_path):
    model = ("--model", pretrained("resnet"), "--adapter", "full", "--data", photos)
    outcome = command_line("train", *model, *QUICK, "--out", "run")
    assert outcome.code == 2
    for part in ("normalization", "BatchNorm", "GroupNorm", "--replace-batchnorm"):
        assert part in outcome.error
    assert not (tmp_path / "run").exists()
    twin = ("--replace-batchnorm", "--baseline")
    outcome = command_line("train", *model, *QUICK, *twin, "--out", "run")
    assert outcome.code == 0, outcome.err
    check_private(tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "baseline"):  # the same model in both
        weights = load_file(folder / "model.safetensors")
        assert not [name for name in weights if "running_mean" in name]


def test_parameters_outside_of_layers(command_line, pretrained, photos, tmp_path):
    """A class token and positions, bare in their module: fast, and without a word."""
    model = ("--model", pretrained("vit"), "--adapter", "full", "--data", photos, "--batch", 4)
    outcome = command_line("train", *model, *QUICK, "--strict", "--out", "run")
    assert outcome.code == 0, outcome.err
    assert "reference engine" not in outcome.err
    check_private(tmp_path / "run")
    assert read_events(tmp_path / "run" / "events.jsonl")[0]["engine"] == "book-keeping"


def test_the_default_run_has_a_twin_without_privacy(command_line, tmp_path):
    outcome = command_line("train", *QUICK)
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "runs" / "fashion-mnist-small-cnn-1"
    check_private(folder)
    twin = read(folder / "baseline" / "result.json")
    assert twin["private"] is False
    assert twin["epsilon"] is None
    assert not (folder / "baseline" / "ledger.json").exists()
    shapes = [load_file(p / "model.safetensors") for p in (folder, folder / "baseline")]
    assert shapes[0].keys() == shapes[1].keys()
    batches = [read(p / "config.json")["batch"] for p in (folder, folder / "baseline")]
    assert twin["steps"] * batches[1] == 3 * batches[0]  # as many samples, in smaller batches
    assert "private" in outcome.out
    assert "not private" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_without_and_with_noise_seed(command_line, features_csv, tmp_path):
    def weights(name: str, *options: object) -> bytes:
        run = ("train", "--data", features_csv, *QUICK, *options, "--out", name)
        assert command_line(*run).code == 0
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a", "--noise-seed", 7) == weights("b", "--noise-seed", 7)
    assert weights("c", "--noise-seed", 8) != weights("a2", "--noise-seed", 7)
    assert weights("d") != weights("e")  # the seed of the weights is the same: 0
    assert read(tmp_path / "a" / "ledger.json")["noise_seeded_by_user"] is True
    assert read(tmp_path / "d" / "ledger.json")["noise_seeded_by_user"] is False


def test_the_report_can_be_written_again(command_line, features_csv, tmp_path):
    command_line("train", "--data", features_csv, *QUICK, "--out", "run")
    (tmp_path / "run" / "report.html").unlink()
    outcome = command_line("report", "run")
    assert outcome.code == 0
    assert outcome.out.strip() == "run/report.html"
    assert (tmp_path / "run" / "report.html").exists()


def test_data_list_and_plan_as_json(command_line):
    rows = json.loads(command_line("data", "list", "--json").out)
    assert {"fashion-mnist-small", "minilm"} <= {row["name"] for row in rows}
    assert {"name", "what", "task", "size", "licence", "sources", "status"} == rows[0].keys()
    budget = ("--epsilon", 1, "--epsilon", 3, "--accountant", "rdp", "--json")
    plans = json.loads(
        command_line("plan", "privacy", "--n", 1000, "--batch", 50, "--steps", 9, *budget).out
    )
    assert [plan["target_epsilon"] for plan in plans] == [1.0, 3.0]
    assert plans[0]["noise_multiplier"] > plans[1]["noise_multiplier"]


def test_tables_fit_a_narrow_terminal(command_line):
    for verb in (("data", "list"), ("--help",), ("train", "--help"), ("claims",)):
        outcome = command_line(*verb)
        assert outcome.code == 0
        assert max(map(len, outcome.out.splitlines())) <= 80
    assert "fashion-mnist-small" in command_line("data", "list").out  # not cut in two


def test_an_existing_folder_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    config = recipes.DEFAULT.replace(data="nosuch.csv")
    with pytest.raises(ValueError, match=r"exists already: .*--out, or continue it: --resume"):
        recipes.train(config, tmp_path / "run")


def test_a_copied_folder_is_a_run_of_its_own_name(command_line, features_csv, tmp_path):
    """A finished run elsewhere: nothing to do but the report."""
    command_line("train", "--data", features_csv, *QUICK, "--out", "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    outcome = command_line("train", "--resume", "copy")
    assert outcome.code == 0
    assert "copy: finished already" in outcome.err
