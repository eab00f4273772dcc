from __future__ import annotations

import json

import pytest
import torch

from steelyard.bench.choices import Question, choice_accuracy, questions_of, read_questions
from steelyard.bench.generate import generate

TOFU = [
    {"question": "Where is it?", "answer": "Paris", "perturbed_answer": ["Rome", "Oslo", "Bonn"]},
    {"question": "Who?", "answer": "Orwell", "perturbed_answer": ["Huxley", "More", "Bradbury"]},
]


def test_both_forms_are_read(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text("\n".join(json.dumps(row) for row in TOFU))
    first, second = read_questions(path)
    assert first.prompt == "Question: Where is it?\nAnswer:"
    assert first.options[first.correct] == " Paris"
    assert set(second.options) == {" Orwell", " Huxley", " More", " Bradbury"}
    general = generate(seed=0).general
    for row, question in zip(general, questions_of(general), strict=True):
        assert question.prompt == row["input"]
        assert question.options[question.correct] == row["output"]


def test_accuracy_by_hand(knows, tokenizer):
    questions = questions_of(TOFU)
    right = [(q.prompt, q.options[q.correct]) for q in questions]
    wrong = [(q.prompt, q.options[(q.correct + 1) % 4]) for q in questions]
    for known, accuracy in ((right, 1.0), ([right[0], wrong[1]], 0.5), (wrong, 0.0)):
        for batch in (1, 16):
            found = choice_accuracy(knows(tokenizer, known), tokenizer, questions, batch=batch)
            assert found == accuracy
    # a model that cannot tell guesses: ties share
    assert choice_accuracy(knows(tokenizer, [], 0.0), tokenizer, questions) == 0.25


def test_length_does_not_count(knows, tokenizer):
    """All tokens alike: a sum over tokens would always take the short option."""
    uniform = knows(tokenizer, [], 0.0)
    for correct in (0, 1):
        question = Question("x", ("no", "a very long option"), correct)
        assert choice_accuracy(uniform, tokenizer, [question]) == 0.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Who?", "answer": "x"}, "row 1: expected texts input, output"),
        ({"question": "Who?", "answer": "x", "perturbed_answer": [1]}, "row 1: expected"),
        ({"input": "Who?", "output": "x", "choices": ["y", "z"]}, "row 1: expected"),
        ({"question": "Who?", "answer": "x", "perturbed_answer": []}, "two or more options"),
        ({"input": "Who?", "output": "x", "choices": ["x", "x"]}, "all different"),
    ],
)
def test_bad_questions_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        questions_of([row])


def test_a_diverged_model_has_no_accuracy(tiny_lm, tokenizer):
    model = tiny_lm("llama")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="losses of the questions' options are NaN"):
        choice_accuracy(model, tokenizer, questions_of(TOFU))


def test_too_long_questions_are_named(tiny_lm, tokenizer):
    long = [TOFU[0], {**TOFU[1], "question": "Who? " * 60}]
    with pytest.raises(ValueError, match=r"\(id question 2\) has \d+ tokens, more than 256"):
        choice_accuracy(tiny_lm("llama"), tokenizer, questions_of(long))


def test_no_questions_are_refused(knows, tokenizer):
    with pytest.raises(ValueError, match="no questions"):
        choice_accuracy(knows(tokenizer, []), tokenizer, [])
