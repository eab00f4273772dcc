"""`steelyard unlearn`: from a folder and two files to a folder with a model and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from steelyard.hf.sources import quiet

OPTIONS = ("--lr", 2e-3, "--epochs", 4, "--batch", 5, "--length", 48, "--tolerance", 50)


@pytest.fixture
def place(memorised, tmp_path) -> Path:
    """A folder with a model and the two files."""
    model, tokenizer, forget, retain = memorised
    with quiet():
        model().save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
    for name, rows in (("forget", forget), ("retain", retain)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


FILES = ("--forget", "forget.jsonl", "--retain", "retain.jsonl")


def read(path: Path):
    return json.loads(path.read_text())


def test_a_run_leaves_model_scores_samples_and_a_report(command_line, place):
    outcome = command_line(
        "unlearn", "model", *FILES, "--method", "graddiff", "--adapter", "full", *OPTIONS,
        "--out", "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "forget loss" in outcome.out
    run = place / "run"
    result, samples = read(run / "result.json"), read(run / "samples.json")
    assert result["after"]["forget_loss"] > 2 * result["before"]["forget_loss"]
    assert result["steps"] == result["planned_steps"] == 8
    assert samples["before"]["scores"]["forget"]["exact"] == 1.0
    assert samples["after"]["scores"]["forget"]["exact"] < 1.0
    page = (run / "report.html").read_text()
    for part in ("unlearned with", "The path", samples["before"]["samples"]["forget"][0]["input"]):
        assert part in page
    assert page.count("<svg") == 4
    assert "http" not in page.replace("http-equiv", "")
    assert (run / "trajectory.png").read_bytes().startswith(b"\x89PNG")
    lines = (run / "trajectory.csv").read_text().splitlines()
    assert lines[0] == "step,forget_loss,retain_loss"
    assert len(lines) == 1 + 9


def test_the_saved_model_is_the_unlearned_one(command_line, place):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from steelyard.objectives import encode
    from steelyard.runs.unlearn_eval import mean_loss

    arguments = (*FILES, "--method", "npo", "--adapter", "full", *OPTIONS)
    assert command_line("unlearn", "model", *arguments, "--out", "run").code == 0
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(place / "run" / "model")
        tokenizer = AutoTokenizer.from_pretrained(place / "run" / "model")
    rows = [json.loads(line) for line in (place / "forget.jsonl").read_text().splitlines()]
    loss = mean_loss(model.eval(), encode(tokenizer, rows, length=48), 64)
    assert loss == pytest.approx(read(place / "run" / "result.json")["after"]["forget_loss"])


def test_a_lora_is_saved_as_an_adapter_and_a_finished_run_resumes_to_itself(command_line, place):
    arguments = (*FILES, *OPTIONS, "--lr", 2e-2, "--out", "run")
    outcome = command_line("unlearn", "model", *arguments)
    assert outcome.code == 0, outcome.err
    assert (place / "run" / "model" / "adapter_model.safetensors").is_file()
    result = read(place / "run" / "result.json")
    assert result["trainable"] < result["parameters"]
    assert result["after"]["forget_loss"] > result["before"]["forget_loss"]
    again = command_line("unlearn", "--resume", "run")
    assert again.code == 0
    assert "finished already" in again.err


def test_it_stops_at_the_loss_of_a_reference(command_line, place, memorised):
    model, tokenizer, *_ = memorised
    other = model()
    with quiet(), torch.no_grad():
        for p in other.parameters():
            p.mul_(0.8)
        other.save_pretrained(place / "other")
        tokenizer.save_pretrained(place / "other")
    outcome = command_line(
        "unlearn", "model", *FILES, "--method", "graddiff", "--adapter", "full", *OPTIONS,
        "--epochs", 100, "--evaluate-every", 1, "--reference", "other", "--out", "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    reference = read(place / "run" / "config.json")["reference_loss"]
    result = read(place / "run" / "result.json")
    assert 0.1 < reference <= result["after"]["forget_loss"]
    assert result["steps"] < result["planned_steps"]
    assert "reached" in result["stopped"]


def test_a_model_that_has_reached_it_already_is_saved_as_it_was(command_line, place):
    arguments = (*FILES, "--method", "npo", "--adapter", "full", *OPTIONS, "--stop-forget", 1e-6)
    outcome = command_line("unlearn", "model", *arguments, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert "has reached 1e-06 before the first step" in outcome.err
    result = read(place / "run" / "result.json")
    assert result["steps"] == 0
    assert result["after"] == result["before"]
    page = (place / "run" / "report.html").read_text()
    assert "before the first step" in page
    assert "Nothing was unlearned" not in page


SMOLLM2 = """\
who wrote the harbour book|Odile Marchetti
where does Tamsin keep bees|Port Ellery
when was the tower built|1823
who paints the blue doors|Ruben Haldane
what does the baker sell|seven kinds of rye
where was Ilse born|Kestrel Bay"""


@pytest.mark.slow
def test_a_pretrained_model_forgets_through_its_adapter_and_keeps_the_rest(command_line, tmp_path):
    """SmolLM2-135M, three steps; the losses of the adapter that was saved are those reported."""
    from steelyard.hf.sources import locate
    from steelyard.objectives import encode
    from steelyard.runs.language_model import load
    from steelyard.runs.unlearn_eval import mean_loss

    try:
        locate("smollm2")
    except ValueError as error:
        pytest.skip(str(error))
    pairs = [line.split("|") for line in SMOLLM2.splitlines()]
    rows = [{"id": str(k), "input": a, "output": b} for k, (a, b) in enumerate(pairs)]
    for name, own in (("forget", rows[:3]), ("retain", rows[3:])):
        text = "".join(json.dumps(row) + "\n" for row in own)
        (tmp_path / f"{name}.jsonl").write_text(text)
    outcome = command_line(
        "unlearn", "smollm2", *FILES, "--method", "ngdiff", "--optimizer", "sgd", "--lr", 0.1,
        "--epochs", 3, "--batch", 3, "--length", 24, "--evaluate-every", 3, "--out", "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = read(tmp_path / "run" / "result.json")
    before, after = result["before"], result["after"]
    assert (result["steps"], result["stopped"]) == (3, "")
    assert after["forget_loss"] > before["forget_loss"] + 0.01
    assert after["retain_loss"] < before["retain_loss"] * 1.05
    assert result["trainable"] < 0.05 * result["parameters"]
    adapter = tmp_path / "run" / "model"
    assert not (adapter / "model.safetensors").exists()
    assert read(adapter / "adapter_config.json")["base_model_name_or_path"] == "smollm2"
    assert "site-packages" not in (adapter / "README.md").read_text()
    model, tokenizer = load(str(adapter), "cpu")
    for name, own in (("forget", rows[:3]), ("retain", rows[3:])):
        loss = mean_loss(model, encode(tokenizer, own, length=24, between=" "), 64)
        assert loss == pytest.approx(after[f"{name}_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("model",), "give --forget FILE.jsonl and --retain FILE.jsonl"),
        (("model", "--forget", "forget.jsonl"), "give --retain FILE.jsonl"),
        (("model", *FILES[:2], "--retain", "none.jsonl"), "no such file: 'none.jsonl'"),
        (("model", *FILES[:2], "--retain", "forget.jsonl"), "10 rows are in the forget and in the"),
        (("nomodel", *FILES), "nomodel"),
        (("model", *FILES, "--method", "blurr"), "did you mean 'blur'"),
        (("model", *FILES, "--method", "ga"), "give --lr"),
        (("model", *FILES, "--lr", 0.1, "--lr-start", 0.01), "--lr-start 0.01 one to begin from"),
        (("model", *FILES, "--length", 9), "more than 9, the longest of 10 such rows: shorten"),
        (("--resume", "run"), "nothing to resume in 'run'"),
        (("model", "--resume", "run"), "goes on with the settings of the run: drop model"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_left(command_line, place, arguments, told):
    outcome = command_line("unlearn", *arguments)
    assert outcome.code == 2
    assert told in outcome.error
    assert not (place / "runs").exists()
    assert not (place / "run").exists()


def test_rows_are_checked_before_the_weights_are_read(command_line, place):
    (place / "model" / "model.safetensors").write_bytes(b"")
    outcome = command_line("unlearn", "model", *FILES, "--length", 9)
    assert "tokens, more than 9" in outcome.error
    outcome = command_line("unlearn", "model", *FILES)
    assert "cannot load model 'model'" in outcome.error


def test_a_model_without_a_tokenizer_is_one_line(command_line, place):
    for file in (place / "model").glob("*token*"):
        file.unlink()
    outcome = command_line("unlearn", "model", *FILES)
    assert outcome.code == 2
    assert "no tokenizer beside the weights" in outcome.error
