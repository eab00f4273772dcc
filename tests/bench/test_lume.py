from __future__ import annotations

import dataclasses
import json
from statistics import fmean

import pytest

from steelyard.bench import lume
from steelyard.bench.choices import Question, questions_of
from steelyard.bench.generate import Benchmark, Sizes, generate
from steelyard.bench.lume import LumeResult, evaluate, read_documents, score_rows
from steelyard.bench.metrics import lume_aggregate, rouge_l

SIZES = Sizes(forget=2, retain=2, non_members=2, facts=8)


@pytest.fixture(scope="module")
def made() -> Benchmark:
    return generate(SIZES, seed=3)


def known(*sets) -> list[tuple[str, str]]:
    return [(row["input"], row["output"]) for rows in sets for row in rows]


def documents(rows) -> list[str]:
    return [f"{r['input']} {r['output']}" for r in rows if r["id"][-3:-1] == "sc"]


def test_a_memorised_model_scores_nothing(knows, tokenizer, made):
    model = knows(tokenizer, known(made.forget, made.retain))
    found = evaluate(model, tokenizer, made.forget, made.retain, mmlu=0.495)
    for sets in found.scores.values():
        for measures in sets.values():
            assert measures == {"regurgitation": 1.0, "knowledge": 1.0}
    assert found.aggregate == 0.0
    assert found.texts["forget"] == {row["id"]: row["output"] for row in made.forget}
    assert (found.mia, found.final) == (None, None)  # final needs the attack


def test_doing_nothing_is_worth_165(knows, tokenizer, made):
    """R = E = 1 and an attack that always wins."""
    whole = [(text[:1], text[1:]) for text in documents(made.forget)]
    model = knows(tokenizer, known(made.forget, made.retain) + whole)
    found = evaluate(
        model,
        tokenizer,
        made.forget,
        made.retain,
        members=documents(made.forget),
        non_members=documents(made.non_members),
        mmlu=0.495,
    )
    assert found.mia is not None
    assert (found.mia["auc"], found.mia["score"]) == (1.0, 0.0)
    assert found.final == pytest.approx(0.165)


def test_a_model_that_answers_retain_only_is_ideal(knows, tokenizer, made):
    model = knows(tokenizer, known(made.retain))
    members, strangers = documents(made.forget), documents(made.non_members)
    found = evaluate(
        model,
        tokenizer,
        made.forget,
        made.retain,
        members=[*members, strangers[0] + " "],  # what it knows of both is the same: nothing
        non_members=strangers,
        mmlu=questions_of(made.general),
    )
    assert found.aggregate == 1.0
    assert set(found.twelve.values()) == {1.0}
    assert len(found.twelve) == 12
    assert found.mia is not None
    assert found.mia["auc"] == 0.5
    assert found.utility is not None
    assert found.utility["questions"] == 8
    assert "stands for MMLU" in found.utility["what"]
    assert found.final == pytest.approx((1 + 1 + found.utility["accuracy"]) / 3)


def test_scores_are_means_per_task_and_kind(made):
    """Not pooled: Task 2 has five times as many qa rows."""
    sets = {"forget": made.forget, "retain": made.retain}
    written = {
        name: [row["output"][: 20 + 7 * k] for k, row in enumerate(rows)]
        for name, rows in sets.items()
    }
    found = score_rows(sets, written)
    for name, rows in sets.items():
        for task in ("Task1", "Task2", "Task3"):
            pairs = [
                (row, text)
                for row, text in zip(rows, written[name], strict=True)
                if row["task"] == task
            ]
            said = [rouge_l(r["output"], t).recall for r, t in pairs if r["id"].endswith("sc1")]
            same = [float(r["output"] == t) for r, t in pairs if "qa" in r["id"][-3:]]
            assert found[task][name]["regurgitation"] == pytest.approx(fmean(said))
            assert found[task][name]["knowledge"] == pytest.approx(fmean(same))
    mixed = {name: (rows[::-1], written[name][::-1]) for name, rows in sets.items()}
    again = score_rows({k: v[0] for k, v in mixed.items()}, {k: v[1] for k, v in mixed.items()})
    for task, name in ((t, s) for t in found for s in found[t]):
        assert again[task][name] == pytest.approx(found[task][name])


def test_results_do_not_depend_on_batch_or_order(tiny_lm, tokenizer, made):
    model = tiny_lm("llama", positions=1024)
    options = {"rows": 1, "new_tokens": 16, "members": documents(made.forget)}
    options |= {"non_members": documents(made.non_members), "mmlu": questions_of(made.general[:3])}

    def run(forget, retain, batch) -> LumeResult:
        return evaluate(model, tokenizer, forget, retain, batch=batch, **options)

    one = run(made.forget, made.retain, 1)
    other = run(made.forget[::-1], made.retain[::-1], 7)
    assert other.scores == one.scores
    assert other.texts["forget"] == one.texts["forget"]
    assert other.utility == one.utility
    assert other.mia == one.mia


def test_the_result_says_what_it_was_made_from(tiny_lm, tokenizer, made):
    model = tiny_lm("gpt2", positions=1024)
    found = evaluate(
        model, tokenizer, made.forget, made.retain, rows=1, seed=5, new_tokens=4, batch=3, mmlu=0.3
    )
    assert found.counts["forget"]["Task2"] == {"documents": 2, "sc": 1, "qa": 1} or (
        found.counts["forget"]["Task2"] == {"documents": 1, "sc": 1, "qa": 1}
    )
    read = json.loads(found.to_json())
    assert read["settings"] == {
        "rows": 1,
        "seed": 5,
        "new_tokens": 4,
        "batch": 3,
        "template": False,
        "between": "",
    }
    assert read["model"]["class"] == "GPT2LMHeadModel"
    assert read["model"]["dtype"] == "float32"
    assert {"torch", "transformers", "rouge-score", "steelyard"} <= set(read["environment"])
    assert len(read["data"]["forget"]) == 64
    assert read["utility"] == {"what": "MMLU, as given", "accuracy": 0.3, "questions": None}
    assert "texts" not in read
    terms = [1 - v for s in found.scores.values() for v in s["forget"].values()]
    kept = [v for s in found.scores.values() for v in s["retain"].values()]
    assert found.aggregate == lume_aggregate([1 - t for t in terms], kept)


def test_short_limits_of_questions_do_not_change_exact_match(knows, tokenizer, made):
    """A text that goes on behind the right answer is a miss, as with 256 tokens."""
    rambling = [(p, f"{a}{' and so on' * 5}") for p, a in known(made.forget)]
    found = evaluate(
        knows(tokenizer, rambling + known(made.retain)), tokenizer, made.forget, made.retain
    )
    for sets in found.scores.values():
        assert sets["forget"] == {"regurgitation": 1.0, "knowledge": 0.0}


BAD = [
    (lambda b: {"tokenizer": None}, "came without a tokenizer"),
    (lambda b: {"forget": ()}, "forget: no rows, the set is empty"),
    (lambda b: {"retain": b.forget}, "documents are in forget and in retain"),
    (lambda b: {"members": ["one text"]}, "members and non_members go together"),
    (lambda b: {"members": ["one text"], "non_members": ["one text"]}, "members and non-members"),
    (lambda b: {"mmlu": 49.5}, "the utility is 49.5"),
    (lambda b: {"rows": 0}, "rows per task and kind is 0"),
    (lambda b: {"new_tokens": 5000}, r"row .* has \d+ tokens, with .* more than the model's"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input_is_refused_in_one_line(tiny_lm, tokenizer, made, changes, message):
    small = dataclasses.replace(made, forget=made.forget[:], retain=made.retain[:])
    given = {"tokenizer": tokenizer, "forget": small.forget, "retain": small.retain}
    given |= {"rows": 1, "new_tokens": 1} | changes(made)
    model = tiny_lm("gpt2", positions=1024)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(model, given.pop("tokenizer"), given.pop("forget"), given.pop("retain"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": ["x"], "non_members": ["some text"]}, "member 0 has 1 tokens"),
        ({"members": ["one text"], "non_members": ["one text"]}, "members and non-members"),
        ({"attack": "lose"}, "unknown attack"),
        ({"attack": "reference"}, "needs reference_model"),
        ({"mmlu": []}, "no questions: the set is empty"),
        ({"mmlu": [Question("Who?" * 400, ("a", "b"), 0)]}, "more than 1024"),
    ],
)
def test_quick_checks_come_before_the_long_part(
    tiny_lm, tokenizer, made, monkeypatch, changes, message
):
    def refuse(*_, **__):
        raise AssertionError("it generates already")

    monkeypatch.setattr(lume, "greedy", refuse)
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_lm("gpt2", positions=1024), tokenizer, made.forget, made.retain, **changes)


def test_json_holds_no_nan(tiny_lm, tokenizer, made):
    model = tiny_lm("gpt2", positions=1024)
    found = evaluate(model, tokenizer, made.forget, made.retain, rows=1, new_tokens=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(found, aggregate=float("nan")).to_json()


def test_attack_documents_of_generated_rows(tmp_path, made):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in made.forget))
    assert read_documents(path) == documents(made.forget)
