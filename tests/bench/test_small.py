"""The small benchmark as a whole: its cache, and (slow) what target and reference have learnt."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from statistics import fmean

import pytest
import torch

from steelyard.bench import small, small_files
from steelyard.bench.generate import Sizes, generate
from steelyard.bench.lume_data import kind, read_rows
from steelyard.bench.memorise import Recipe, make_model, make_tokenizer, training_tokens
from steelyard.bench.small import build
from steelyard.objectives.tokens import encode, logits, token_nll

SIZES = Sizes(forget=2, retain=2, non_members=2, facts=4)
RECIPE = Recipe(vocabulary=300, width=16, layers=1, heads=2, epochs=1, tokens=400)


def quick(cache, **changes):
    return build(**{"sizes": SIZES, "recipe": RECIPE, "seed": 3, "cache": cache, **changes})


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_shown(tmp_path, capfd):
    quick(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it was trained anew")

    monkeypatch.setattr(small, "train", refuse)


def test_a_build_has_rows_models_and_a_manifest():
    seen = []
    made = build(SIZES, seed=3, recipe=RECIPE, progress=lambda *now: seen.append(now))
    assert made.rows == generate(SIZES, seed=3)
    assert (made.forget, made.general) == (made.rows.forget, made.rows.general)
    assert made.folder is None
    assert not equal(weights(made.target), weights(made.reference))
    steps = made.manifest["target"]["steps"]
    assert made.manifest["reference"]["steps"] == steps
    assert made.manifest["target"]["rows"] == made.manifest["reference"]["rows"] + 2 * 10
    assert set(made.manifest["versions"]) == {"steelyard", *small_files.PACKAGES}
    expected = [(name, k, steps) for name in small_files.MODELS for k in range(1, steps + 1)]
    assert seen == expected


def test_the_second_build_is_read_from_the_cache(tmp_path, request):
    first = quick(tmp_path)
    request.getfixturevalue("no_training")
    second = quick(tmp_path)
    assert equal(weights(first.target), weights(second.target))
    assert equal(weights(first.reference), weights(second.reference))
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert second.rows == first.rows
    assert second.manifest == first.manifest
    assert not second.target.training
    assert names(tmp_path) == [first.folder.name]  # nothing temporary is left


def test_the_cached_models_are_the_trained_ones(tmp_path):
    plain, cached = quick(None), quick(tmp_path)
    assert equal(weights(plain.target), weights(cached.target))
    assert equal(weights(plain.reference), weights(cached.reference))
    text = "What is the capital of Peru?"
    assert plain.tokenizer(text)["input_ids"] == cached.tokenizer(text)["input_ids"]
    assert cached.tokenizer.eos_token_id == plain.tokenizer.eos_token_id


def test_the_folders_are_ordinary_models(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = quick(tmp_path)
    for name, model in (("target", made.target), ("reference", made.reference)):
        loaded = AutoModelForCausalLM.from_pretrained(made.folder / name)
        assert equal(weights(model), weights(loaded))
        tokenizer = AutoTokenizer.from_pretrained(made.folder / name)
        text = "Call 212-555-0147, or write to an address."
        assert tokenizer(text)["input_ids"] == made.tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert read_rows(made.folder / "forget.jsonl") == list(made.forget)
    assert read_rows(made.folder / "retain.jsonl") == list(made.retain)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"sizes": Sizes(forget=2, retain=2, non_members=2, facts=5)}],
    ids=["seed", "sizes"],
)
def test_other_arguments_are_another_build(tmp_path, changes):
    first, second = quick(tmp_path), quick(tmp_path, **changes)
    assert first.folder != second.folder
    assert names(tmp_path) == sorted([first.folder.name, second.folder.name])


@pytest.mark.parametrize("damage", ["manifest gone", "weights cut", "file gone", "file added"])
def test_a_damaged_build_is_made_anew(tmp_path, damage):
    first = quick(tmp_path)
    before = weights(first.target)
    model = first.folder / "target" / "model.safetensors"
    if damage == "manifest gone":
        (first.folder / "manifest.json").unlink()
    elif damage == "weights cut":
        model.write_bytes(model.read_bytes()[:-1])
    elif damage == "file gone":
        (first.folder / "reference" / "tokenizer.json").unlink()
    else:
        (first.folder / "target" / "stray").write_text("")
    again = quick(tmp_path)
    assert equal(before, weights(again.target))
    assert names(tmp_path) == [first.folder.name]
    assert json.loads((first.folder / "manifest.json").read_text())["files"]


@pytest.mark.parametrize("after", range(3))
def test_an_interrupted_write_leaves_nothing_to_be_used(tmp_path, monkeypatch, after):
    """Power cut after the rename was asked for, after the manifest, or in the middle of saving."""
    calls = {"os.replace": 0}

    def stop(*_, **__):
        calls["os.replace"] += 1
        raise KeyboardInterrupt

    place = ((os, "replace"), (small_files, "fsync_file"), (small_files, "sha256_of"))[after]
    with monkeypatch.context() as patch:
        patch.setattr(*place, stop)
        with pytest.raises(KeyboardInterrupt):
            quick(tmp_path)
    assert calls["os.replace"] == 1
    assert names(tmp_path) == []
    assert quick(tmp_path).folder.name in names(tmp_path)


def test_a_left_over_temporary_folder_is_not_looked_at(tmp_path, request):
    first = quick(tmp_path)
    (tmp_path / ".small-abc" / first.folder.name).mkdir(parents=True)
    request.getfixturevalue("no_training")
    assert quick(tmp_path).folder == first.folder


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, no_training):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write") as error:
        quick(tmp_path / "file")
    assert "\n" not in str(error.value)


def write(model, tokenizer, prompt, most=64):
    """Greedy, one token after the other, the whole text read again each time."""
    ids = tokenizer(prompt)["input_ids"]
    new = []
    while len(new) < most:
        best = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        new.append(best)
    return tokenizer.decode(new)


def recall(reference, text):
    """Longest common subsequence of words, as a share of the reference's."""
    a, b = reference.split(), text.split()
    row = [0] * (len(b) + 1)
    for word in a:
        new = [0]
        for j, other in enumerate(b):
            new.append(row[j] + 1 if word == other else max(row[j + 1], new[j]))
        row = new
    return row[-1] / len(a)


@torch.no_grad()
def scores(model, tokenizer, rows):
    """(task, kind) -> mean recall of the sc rows, mean exact match of the qa rows."""
    found = defaultdict(list)
    for row in rows:
        text = write(model, tokenizer, row["input"])
        same = float(text.strip().lower() == row["output"].strip().lower())
        score = recall(row["output"], text) if kind(row) == "sc" else same
        found[row["task"], kind(row)].append(score)
    return {cell: fmean(values) for cell, values in found.items()}


@torch.no_grad()
def document_losses(model, tokenizer, rows):
    tokens = training_tokens(tokenizer, [row for row in rows if kind(row) == "sc"])
    nll, mask = token_nll(logits(model, tokens), tokens.labels)
    return nll.sum(1) / mask.sum(1)


def auc(model, tokenizer, rows):
    members, others = (
        document_losses(model, tokenizer, own) for own in (rows.forget, rows.non_members)
    )
    return (members[:, None] < others).double().mean().item()


@torch.no_grad()
def accuracy(model, tokenizer, questions):
    """Share of questions whose right answer has the smallest mean loss of the four."""
    right = 0
    for row in questions:
        tokens = encode(tokenizer, [{**row, "output": c} for c in row["choices"]], length=512)
        nll, mask = token_nll(logits(model, tokens), tokens.labels)
        best = int((nll.sum(1) / mask.sum(1)).argmin())
        right += row["choices"][best] == row["output"]
    return right / len(questions)


def test_an_untrained_model_knows_nothing():
    rows = generate(Sizes(forget=60, retain=1, non_members=60, facts=150))
    tokenizer = make_tokenizer(rows, 600)
    blank = make_model(tokenizer, RECIPE, seed=0)
    assert abs(auc(blank, tokenizer, rows) - 0.5) < 0.12  # 180 documents on each side: s.d. 0.03
    assert abs(accuracy(blank, tokenizer, rows.general) - 0.25) < 0.15  # s.d. 0.035


@pytest.mark.slow
@pytest.mark.timeout(3000)  # two minutes on a free machine, much more on a busy one
def test_the_target_has_memorised_and_the_reference_has_not(tmp_path):
    made = build(cache=tmp_path)
    sets = {"forget": made.forget, "retain": made.retain}
    target, reference = (
        {name: scores(model, made.tokenizer, rows) for name, rows in sets.items()}
        for model in (made.target, made.reference)
    )
    for cell, value in (*target["forget"].items(), *target["retain"].items()):
        assert value >= 0.98, (cell, target)
    for cell, value in reference["retain"].items():
        assert value >= 0.98, (cell, reference)
    for (task, what), value in reference["forget"].items():
        assert value <= (0.1 if what == "qa" else 0.5), (task, what, reference)
    assert auc(made.target, made.tokenizer, made.rows) > 0.99
    assert abs(auc(made.reference, made.tokenizer, made.rows) - 0.5) < 0.2
    for model in (made.target, made.reference):
        assert accuracy(model, made.tokenizer, made.general) >= 0.85
