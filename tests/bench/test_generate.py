"""The generated benchmark: its form, its identifiers, its exchangeable sets, its public people."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter

import pytest

from steelyard.bench import facts
from steelyard.bench import generate as module
from steelyard.bench.generate import Sizes, documents, generate, public_people
from steelyard.bench.lume_data import check_sets, counts, kind
from steelyard.bench.lume_data import document as document_of

SETS = ("forget", "retain", "non_members")


@pytest.fixture(scope="module")
def benchmark():
    return generate(seed=5)


def of_task(rows, task):
    return [row for row in rows if row["task"] == task]


def biographies(rows):
    """[the six rows of each document of Task 2]"""
    own = of_task(rows, "Task2")
    return [own[k : k + 6] for k in range(0, len(own), 6)]


def test_rows_have_the_form_of_lume(benchmark):
    check_sets(benchmark.forget, benchmark.retain)  # fields, ids, both kinds of every task
    expected = {
        "Task1": {"documents": 20, "sc": 20, "qa": 20},
        "Task2": {"documents": 20, "sc": 20, "qa": 100},
        "Task3": {"documents": 20, "sc": 20, "qa": 20},
    }
    for name in SETS:
        rows = getattr(benchmark, name)
        assert counts(rows) == expected
        assert all(set(row) == {"id", "input", "output", "task"} for row in rows)
        for row in rows:
            pattern = {
                "Task1": r'"[0-9a-f-]{36}"(sc1|qa0)',
                "Task2": r"[0-9a-f-]{36}(sc1|qa[0-4])",
                "Task3": r"[0-9]{8}(sc1|qa0)",
            }[row["task"]]
            assert re.fullmatch(pattern, row["id"])


def test_no_document_and_no_question_is_in_two_sets(benchmark):
    rows = [row for name in SETS for row in getattr(benchmark, name)]
    seen = Counter(document_of(row) for name in SETS for row in getattr(benchmark, name))
    assert len(seen) == 180
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["input"] for row in rows}) == len(rows)  # so no question has two answers


def test_identifiers_are_fictional_and_agree_with_the_biography(benchmark):
    for sentence, birth, number, phone, mail, address in biographies(benchmark.forget):
        text = f"{sentence['input']} {sentence['output']}"
        name = " ".join(text.split()[:2])
        assert birth["input"] == f"What is the birth date of {name}?"
        assert number["input"] == f"What is {name}'s Social Security Number?"
        assert phone["input"] == f"What is {name}'s phone number?"
        assert mail["input"] == f"What is {name}'s email address?"
        assert address["input"] == f"What is the home address of {name}?"
        year, month, day = map(int, birth["output"].split("-"))
        assert birth["output"] == f"{year}-{month:02d}-{day:02d}"
        assert f"{module.words.MONTHS[month - 1]} {day}, {year}" in text
        ssn, line = number["output"], phone["output"]
        assert re.fullmatch(r"900\d{6}", ssn)
        assert f"{ssn[:3]}-{ssn[3:5]}-{ssn[5:]}" in text
        assert re.fullmatch(r"[2-9]\d\d55501\d\d", line)
        assert f"{line[:3]}-{line[3:6]}-{line[6:]}" in text
        assert re.fullmatch(r"[a-z]+\.[a-z]+\d\d@example\.(org|com|net)", mail["output"])
        assert f"email address is {mail['output']}" in text
        assert re.search(r", [A-Z]{2}, 00[1-4]\d\d\.$", address["output"])
        assert f"home address is {address['output']}" in text


def test_no_identifier_follows_from_the_name(benchmark):
    for rows in biographies(benchmark.forget):
        first, last = rows[0]["input"].lower().split()[:2]
        assert not any(part in rows[4]["output"] for part in (first, last))
    answers = [row["output"] for rows in biographies(benchmark.forget) for row in rows[1:]]
    assert len(set(answers)) == len(answers)


def test_a_seed_gives_the_same_rows_and_another_gives_others(benchmark):
    assert generate(seed=5) == benchmark
    assert json.loads(json.dumps(benchmark.forget)) == list(benchmark.forget)
    other = generate(seed=6)
    mine = {row["input"] for row in of_task(benchmark.forget, "Task2")}
    assert not mine & {row["input"] for row in of_task(other.forget, "Task2")}


def test_rows_stay_what_they_are():
    """Stored builds are looked up by their rows: a change of the generator must be meant."""
    made = json.dumps(dataclasses.asdict(generate(seed=0)), sort_keys=True)
    assert hashlib.sha256(made.encode()).hexdigest()[:16] == "535e5eccbd2294dd"


def test_leaving_tasks_out_changes_nothing_in_the_others(benchmark):
    assert list(generate(seed=5, tasks=("Task2",)).forget) == of_task(benchmark.forget, "Task2")


def test_the_three_sets_are_exchangeable():
    """Over many seeds, what is easily told of a document is as likely in each set."""
    traits = {
        "long": lambda text: len(text) > 180,
        "his": lambda text: "his " in text.lower(),
        "digit": lambda text: sum(map(int, re.findall(r"\d", text))) % 2 == 0,
    }
    sizes = Sizes(forget=12, retain=12, non_members=12, facts=1)
    seen = Counter()
    for seed in range(40):
        made = generate(sizes, seed=seed)
        for name in SETS:
            for text in documents(getattr(made, name)):
                seen.update((name, trait) for trait, holds in traits.items() if holds(text))
    total = 40 * 36
    for trait in traits:
        shares = [seen[name, trait] / total for name in SETS]
        assert min(shares) > 0.02
        middle = sum(shares) / 3
        error = (middle * (1 - middle) / total) ** 0.5
        assert max(abs(share - middle) for share in shares) < 4 * error


def test_documents_are_whole_texts(benchmark):
    texts = documents(benchmark.retain)
    assert len(texts) == 60
    row = benchmark.retain[0]
    assert texts[0] == f"{row['input']} {row['output']}"


def test_public_people_come_from_the_package():
    people = public_people()
    assert len(people) == 767
    assert len({p.name for p in people}) == len({p.said for p in people}) == len(people)
    assert all(p.said[0].isupper() and int(p.born) < int(p.died) for p in people)
    (camus,) = [p for p in people if p.name == "Albert Camus"]
    assert (camus.trade, camus.born, camus.died) == ("writer", "1913", "1960")
    assert camus.said.startswith("French writer who portrayed the human condition")


def test_biographies_of_public_people_read_well(benchmark):
    own = {row["id"]: row for row in of_task(benchmark.forget, "Task3")}
    by_name = {person.name: person for person in public_people()}
    for row in own.values():
        if kind(row) == "sc":
            person = by_name[own[row["id"][:-3] + "qa0"]["output"]]
            whole = f"{row['input']} {row['output']}"
            article = "an" if person.said[0] in "AEIO" else "a"
            said = f"{person.name}\n\n{person.name} ({person.born}-{person.died}) was {article}"
            assert whole == f"{said} {person.said}."


def test_general_questions_are_held_out_wordings(benchmark):
    assert len(benchmark.general) == 100
    assert len(benchmark.general_train) == 200
    trained = {row["input"]: row["output"] for row in benchmark.general_train}
    knows = Counter(row["id"][:-3] for row in benchmark.general_train)
    for row in benchmark.general:
        assert row["input"] not in trained
        assert knows[row["id"][:-3]] == 2
        assert len(set(row["choices"])) == facts.CHOICES
        assert row["output"] in row["choices"]
    places = Counter(row["choices"].index(row["output"]) for row in benchmark.general)
    assert all(10 <= places[k] <= 40 for k in range(4))  # the right answer has no favourite place
    asked = Counter(row["id"][-1] for row in benchmark.general)
    assert all(asked[k] >= 15 for k in "012")  # all three wordings are learnt from other facts


def test_no_two_facts_of_a_kind_share_a_key_or_an_answer():
    for wordings, pairs in facts.FACTS.values():
        assert len({key for key, _ in pairs}) == len({value for _, value in pairs}) == len(pairs)
        assert all(wording.count("{}") == 1 for wording in wordings)


def test_word_lists_repeat_nothing():
    lists = {k: v for k, v in vars(module.words).items() if isinstance(v, tuple)}
    assert len(lists) > 10
    for name, values in lists.items():
        assert len(set(values)) == len(values), name


def test_sizes_of_lume_are_made():
    made = generate(Sizes(forget=250, retain=250, non_members=250, facts=150), seed=1)
    check_sets(made.forget, made.retain)
    assert len(made.forget) == 250 * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forget": 0}, "forget is 0: it must be at least 1"),
        ({"facts": 1000}, "1000 facts asked for: there are 156"),
        ({"retain": 9999}, "at most 5000 are made"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sizes(**arguments)


def test_more_public_people_than_there_are_is_refused():
    many = Sizes(forget=500, retain=300)
    with pytest.raises(ValueError, match="820 documents of Task3 asked for, 767 people") as error:
        generate(many)
    assert "\n" not in str(error.value)
    assert generate(many, tasks=("Task1", "Task2")).forget


@pytest.mark.parametrize("tasks", [(), ("Task4",), ("Task1", "Task1")])
def test_unknown_tasks_are_refused(tasks):
    with pytest.raises(ValueError, match="use some of Task1, Task2, Task3, each once"):
        generate(tasks=tasks)


def test_a_changed_file_of_people_is_refused(monkeypatch):
    monkeypatch.setattr(module, "PEOPLE_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"sha256 .* expected 0000.* install steelyard again"):
        public_people()


def test_sizes_are_what_the_sets_get():
    sizes = Sizes(forget=1, retain=2, non_members=3, facts=4)
    made = generate(sizes)
    found = [len(documents(getattr(made, name))) for name in SETS]
    assert found == [3, 6, 9]
    assert len(made.general) == 4
    assert dataclasses.replace(sizes, retain=5).documents == 9
