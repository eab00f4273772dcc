from __future__ import annotations

import json
import random

import pytest

from steelyard.bench.generate import generate
from steelyard.bench.lume_data import (
    check_rows,
    check_sets,
    counts,
    document,
    fingerprint,
    kind,
    read_documents,
    read_rows,
    subset,
)

STORY = '"8f24c511-a319-4a9f-80c2-ca6fac131233"'  # Task 1's ids contain quotation marks


def row(name: str, task: str, text: str = "in", answer: str = "out") -> dict[str, str]:
    return {"id": name, "input": text, "output": answer, "task": task}


def rows(prefix: str = "") -> list[dict[str, str]]:
    """One document of each task, with the rows that LUME makes of it."""
    story = f'"{prefix}{STORY[1:]}'
    return [
        row(f"{story}sc1", "Task1"),
        row(f"{story}qa0", "Task1"),
        row(f"{prefix}b0d1sc1", "Task2"),
        *(row(f"{prefix}b0d1qa{k}", "Task2") for k in range(5)),
        row(f"{prefix}1234sc1", "Task3"),
        row(f"{prefix}1234qa0", "Task3"),
    ]


def write(path, given) -> str:
    path.write_text("\n".join(json.dumps(one) for one in given), encoding="utf-8")  # as LUME's:
    return str(path)  # no final newline


def test_rows_come_back_as_they_were_written(tmp_path):
    given = rows()
    given[0]["input"] = 'a "quoted" naïve\u2028line\nand another'
    read = read_rows(write(tmp_path / "f.jsonl", given))
    assert read == given
    assert document(read[0]) == document(read[1]) == ("Task1", STORY)
    assert [kind(one) for one in read[:3]] == ["sc", "qa", "sc"]
    assert counts(read) == {
        "Task1": {"documents": 1, "sc": 1, "qa": 1},
        "Task2": {"documents": 1, "sc": 1, "qa": 5},
        "Task3": {"documents": 1, "sc": 1, "qa": 1},
    }


def test_the_generated_benchmark_passes_the_checks():
    made = generate(seed=0)
    check_sets(made.forget, made.retain)
    check_sets(made.forget, made.non_members)


def test_numbers_alone_do_not_make_two_documents_one():
    """A story and a biography may share their digits: task and whole id count."""
    check_sets([*rows(), *[]], [{**one, "id": f"9{one['id']}"} for one in rows()])


def without(field: str) -> list[dict[str, str]]:
    given = rows()
    del given[2][field]
    return given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "mine: no rows, the set is empty"),
        (without("output"), 'mine, row 3: "output" is missing, a row needs texts id, input'),
        ([row("a1sc1", "Task1", answer=" ")], "mine, row 1: \"output\" is ' '"),
        ([{**row("a1sc1", "Task1"), "task": 1}], 'mine, row 1: "task" is 1'),
        ([row("a1xx1", "Task1")], "mine, row 1: id 'a1xx1' must end in sc or qa and a digit"),
        ([row("sc1", "Task1")], "mine, row 1: id 'sc1' must end"),
        ([*rows(), rows()[3]], "mine, row 11: id 'b0d1qa0' is there twice"),
    ],
)
def test_bad_rows_are_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        check_rows(given, "mine")
    assert "\n" not in str(caught.value)


def test_documents_in_both_sets_are_refused():
    retain = rows("r")
    retain[0] = rows()[0]  # the story's completion only: the row differs, the document does not
    with pytest.raises(ValueError, match='1 documents are in forget and in retain, as "8f24c'):
        check_sets(rows(), retain)


def test_both_sets_need_the_same_tasks_and_kinds():
    with pytest.raises(ValueError, match="retain has no qa rows of Task3: the aggregate needs"):
        check_sets(rows(), rows("r")[:-1])
    with pytest.raises(ValueError, match="forget has no sc rows of Task1"):
        check_sets(rows()[2:], rows("r"))


def test_subsets_are_small_and_repeatable():
    given = list(generate(seed=0).forget)
    few, more = subset(given, 3, seed=1), subset(given, 7, seed=1)
    assert {(t, c["sc"], c["qa"]) for t, c in counts(few).items()} == {
        (f"Task{k}", 3, 3) for k in (1, 2, 3)
    }
    names = [one["id"] for one in few]
    assert set(names) < {one["id"] for one in more}
    assert names == [one["id"] for one in given if one["id"] in set(names)]  # in their order
    mixed = random.Random(0).sample(given, len(given))
    assert {one["id"] for one in subset(mixed, 3, seed=1)} == set(names)
    assert {one["id"] for one in subset(given, 3, seed=2)} != set(names)
    assert subset(given, 10**6) == given
    with pytest.raises(ValueError, match="rows per task and kind is 0: use at least 1"):
        subset(given, 0)


def test_fingerprints_tell_versions_apart():
    given = rows()
    assert fingerprint(given) == fingerprint(given[::-1])
    assert fingerprint(given) != fingerprint(given[1:])
    assert fingerprint(given) != fingerprint([{**given[0], "output": "Out"}, *given[1:]])


def test_documents_for_the_attack(tmp_path):
    semeval = [{"id": "1", "document": "one"}, {"id": "2", "text": "two"}]
    assert read_documents(write(tmp_path / "a", semeval)) == ["one", "two"]
    assert read_documents(write(tmp_path / "b", rows())) == ["in out"] * 3
    with pytest.raises(ValueError, match='line 1 has no text "document" or "text", and is no'):
        read_documents(write(tmp_path / "c", [{"title": "x"}]))
    with pytest.raises(ValueError, match="no sentence-completion rows"):
        read_documents(write(tmp_path / "d", [row("a1qa0", "Task1")]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows: write one object"),
        ('{"id": ', "line 1: not valid JSON"),
        ('\n["a"]', r"line 2: \['a'\] is not an object"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(tmp_path / "x.jsonl")
    assert "\n" not in str(caught.value)
