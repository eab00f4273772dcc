"""`steelyard bench lume`: the table, the JSON, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoTokenizer

from steelyard.bench.choices import choice_accuracy, read_questions
from steelyard.bench.generate import Sizes, generate
from steelyard.bench.lume import evaluate, read_rows
from steelyard.bench.lume_commands import lume_command, register
from steelyard.hf.sources import quiet
from steelyard.runs.language_model import load

FILES = ("--forget", "forget.jsonl", "--retain", "retain.jsonl", "--device", "cpu")
SMALL = (*FILES, "--rows", "1", "--new-tokens", "4")
ATTACK = ("--members", "forget.jsonl", "--non-members", "non_members.jsonl")


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_lm, tokenizer) -> Path:
    """A folder with a model, its tokenizer, and the files of a generated benchmark."""
    monkeypatch.chdir(tmp_path)
    with quiet():
        tiny_lm("llama", positions=1024).save_pretrained("model")
    tokenizer.save_pretrained("model")
    made = generate(Sizes(forget=2, retain=2, non_members=2, facts=8))
    for field in dataclasses.fields(made):
        lines = (json.dumps(row) for row in getattr(made, field.name))
        (tmp_path / f"{field.name}.jsonl").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def bench_lume(here, capsys) -> Callable[..., str]:
    """`bench_lume("model", ...)`: what it writes to standard output."""
    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)

    def run(*arguments: str) -> str:
        app(["lume", *arguments], standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_the_table_and_its_sentences(bench_lume):
    out = bench_lume("model", *SMALL, *ATTACK, "--questions", "general.jsonl")
    assert all(task in out for task in ("Task1", "Task2", "Task3"))
    assert "aggregate 0.000: 1 is ideal" in out
    assert "membership inference (loss, 6 members, 6 non-members): AUC" in out
    assert "utility, choice by likelihood (stands for MMLU)" in out
    assert "final score" in out
    short = bench_lume("model", *SMALL)
    assert "no final score: it also needs --members, --non-members, and a utility" in short


def test_json_is_what_evaluate_finds(bench_lume, here):
    out = bench_lume("model", *SMALL, *ATTACK, "--mmlu", "0.3", "--seed", "2", "--json")
    found = json.loads(out)
    assert found["name"] == "model"
    assert found["settings"]["seed"] == 2
    model, tokenizer = load("model", "cpu")
    read = {name: read_rows(here / f"{name}.jsonl") for name in ("forget", "retain")}
    own = evaluate(model, tokenizer, **read, rows=1, new_tokens=4, seed=2)
    assert found["scores"] == own.scores
    assert found["final"] == pytest.approx((found["aggregate"] + found["mia"]["score"] + 0.3) / 3)


def test_options_follow_their_questions_as_the_tokenizer_wants_it(bench_lume, here):
    """Bytes count the blank to the word behind it, so it is put in front of the options."""
    out = bench_lume("model", *SMALL, "--questions", "general.jsonl", "--json")
    found = json.loads(out)
    assert found["settings"]["between"] == " "
    model, tokenizer = load("model", "cpu")
    questions = read_questions(here / "general.jsonl")
    expected = choice_accuracy(model, tokenizer, questions, between=" ")
    assert found["utility"]["accuracy"] == expected


def without_tokenizer(here: Path) -> None:
    for file in (here / "model").glob("tokenizer*"):
        file.unlink()


def other_tokenizer(here: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(here / "model")
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(here / "model")


def overlapping(here: Path) -> None:
    (here / "retain.jsonl").write_bytes((here / "forget.jsonl").read_bytes())


def missing_field(here: Path) -> None:
    rows = [json.loads(line) for line in (here / "forget.jsonl").open()]
    del rows[4]["output"]
    (here / "forget.jsonl").write_text("\n".join(map(json.dumps, rows)))


def nothing(here: Path) -> None:
    """All is as it should be."""


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (without_tokenizer, (), "cannot load model 'model': no tokenizer beside the weights"),
        (other_tokenizer, (), "the tokenizer has 258 tokens, the model 257: they differ"),
        (overlapping, (), "documents are in forget and in retain"),
        (missing_field, (), 'forget.jsonl, row 5: "output" is missing'),
        (lambda here: (here / "retain.jsonl").write_text(""), (), "retain.jsonl has no rows"),
        (nothing, ("--members", "forget.jsonl"), "--members and --non-members go together"),
        (nothing, ("--mmlu", ".5", "--questions", "general.jsonl"), "two measures of utility"),
        (nothing, (*ATTACK, "--attack", "lose"), r"unknown attack \['lose'\]"),
        (nothing, ("--new-tokens", "9999"), "more than the model's context of 1024"),
        (nothing, ("--batch", "-1"), "batch must be a whole number of at least 1, found -1"),
        (nothing, ("--mmlu", "49.5"), "the utility is 49.5"),
        (nothing, ("--device", "gpu"), "unknown device 'gpu'"),
    ],
)
def test_bad_input_is_refused_in_one_line(here, bench_lume, spoil, arguments, message):
    spoil(here)
    with pytest.raises(ValueError, match=message) as caught:
        bench_lume("model", *SMALL, *arguments)
    assert "\n" not in str(caught.value)


def test_defaults_are_those_of_evaluate():
    command: Any = inspect.signature(lume_command).parameters
    own = inspect.signature(evaluate).parameters
    for name in ("attack", "mmlu", "rows", "seed", "new_tokens", "batch", "members"):
        assert command[name].default == own[name].default, name


@pytest.fixture
def adapter(here) -> Path:
    """The folder of a LoRA for the model, with numbers of its own, and the model's tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained("model")
        config = LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        get_peft_model(model, config).save_pretrained("adapter")
        AutoTokenizer.from_pretrained("model").save_pretrained("adapter")
    return here / "adapter"


def test_an_adapter_is_merged_into_its_model(bench_lume, adapter):
    from peft import AutoPeftModelForCausalLM

    with quiet():
        expected = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
    merged, _ = load("adapter", "cpu")
    plain, _ = load("model", "cpu")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        found, told, without = (m(ids).logits for m in (merged, expected, plain))
    torch.testing.assert_close(found, told, rtol=1e-4, atol=1e-4)
    assert (found - without).abs().max() > 0.01
    assert "LUME: adapter" in bench_lume("adapter", *SMALL)


def test_an_adapter_that_cannot_be_read_is_one_line(adapter):
    path = adapter / "adapter_config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"base_model_name_or_path": "nowhere/to/be/found"}))
    with pytest.raises(ValueError, match="model folder 'nowhere/to/be/found' does not exist"):
        load("adapter", "cpu")
    path.write_text(json.dumps(told | {"base_model_name_or_path": ""}))
    with pytest.raises(ValueError, match="'adapter' names no model: fill in base_model_name_or"):
        load("adapter", "cpu")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="'adapter' has no weights"):
        load("adapter", "cpu")
