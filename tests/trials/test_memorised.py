"""Benchmarks of trials: LUME documents are dealt out without overlap, builds are found again."""

from __future__ import annotations

import json

import pytest

from steelyard.bench.generate import Sizes, generate
from steelyard.bench.lume_data import document
from steelyard.trials import memorised as module
from steelyard.trials.memorised import lume_rows, memorised

SIZES = {"forget": 2, "retain": 3, "non_members": 4, "facts": 4}
RECIPE = {"vocabulary": 300, "width": 16, "layers": 1, "heads": 2, "epochs": 1, "tokens": 400}


@pytest.fixture
def folder(tmp_path):
    """Generated rows as LUME's two files, with one long prompt and one letter that is not ASCII."""
    rows = generate(Sizes(forget=6, retain=6, non_members=1, facts=1), seed=1)
    for name in ("forget", "retain"):
        own = [dict(row) for row in getattr(rows, name)]
        if name == "forget":
            own[0]["input"] = "word " * 500 + own[0]["input"]
            own[-1]["output"] = "\u017d"
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    return tmp_path


def names(rows):
    return {document(row) for row in rows}


def test_documents_are_dealt_out_whole_and_once(folder):
    rows = lume_rows(folder, Sizes(**SIZES), seed=0)
    sets = [names(getattr(rows, name)) for name in ("forget", "retain", "non_members")]
    assert [len(own) for own in sets] == [3 * 2, 3 * 3, 3 * 4]
    assert len(set.union(*sets)) == 3 * 9
    assert len(rows.forget) == 2 * (2 + 6 + 2)
    whole = [*rows.forget, *rows.retain, *rows.non_members]
    assert max(len(row["input"].split()) for row in whole) <= module.WORDS
    assert all(row["output"].isascii() for row in whole)
    assert lume_rows(folder, Sizes(**SIZES), seed=0) == rows
    assert lume_rows(folder, Sizes(**SIZES), seed=1) != rows


def test_too_few_documents_are_told(folder):
    with pytest.raises(ValueError, match="6 documents are left, 7 are asked for"):
        lume_rows(folder, Sizes(**(SIZES | {"retain": 7})), seed=0)
    with pytest.raises(ValueError, match="unknown data 'lumen'"):
        memorised(data="lumen", seed=0, sizes=SIZES)


def test_a_build_is_found_again(folder, tmp_path, monkeypatch):
    given = {"data": "lume", "seed": 0, "sizes": SIZES, "recipe": RECIPE}
    given |= {"cache": str(tmp_path / "cache"), "folder": str(folder)}
    made = memorised(**given)
    assert set(made.manifest["target"]) == {"rows", "steps", "seconds", "loss"}
    assert made.manifest["target"]["rows"] == len(made.forget) + len(made.retain) + 8

    def refuse(*_, **__):
        raise AssertionError("it was trained anew")

    monkeypatch.setattr(module, "train", refuse)
    assert memorised(**given) is made  # in this process
    module._memorised.cache_clear()
    again = memorised(**given)
    assert again.folder == made.folder
    for a, b in zip(made.target.parameters(), again.target.parameters(), strict=True):
        assert a.equal(b)
    with pytest.raises(AssertionError, match="anew"):
        memorised(**(given | {"seed": 1}))


def test_a_pretrained_start_is_trained_further(folder, tmp_path):
    """The small build's own target as the start: its tokenizer and weights are what goes on."""
    given = {"data": "lume", "seed": 0, "sizes": SIZES, "cache": str(tmp_path / "cache")}
    given |= {"folder": str(folder)}
    start = memorised(**given, recipe=RECIPE)
    place = str(start.folder / "reference")
    found = memorised(**given, recipe=RECIPE | {"lr": 1e-5}, start=place)
    assert found.folder != start.folder
    assert found.manifest["start"] == place
    assert found.tokenizer.get_vocab() == start.tokenizer.get_vocab()
    for a, b in zip(start.reference.parameters(), found.target.parameters(), strict=True):
        assert not a.equal(b)
        assert (a - b).abs().max() < 1e-3
    with pytest.raises(ValueError, match="start 'x' is for the data 'lume'"):
        memorised(**given | {"data": "small"}, start="x")
