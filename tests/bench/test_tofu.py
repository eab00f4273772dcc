from __future__ import annotations

import math

import numpy as np
import pytest

from steelyard.bench.metrics import option_probability
from steelyard.bench.tofu import Style, forget_quality, truth_ratios, utility

STYLE = Style(new_tokens=24)
ROWS = [
    {"question": "Where?", "answer": "Paris", "perturbed_answer": ["Rome", "Oslo"]},
    {"question": "Who?", "answer": "she did", "perturbed_answer": ["he did", "they"]},
    {"question": "When was it?", "answer": "in May", "perturbed_answer": ["in June", "now"]},
]


def put(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def by_hand(model, tokenizer, prompt: str, answer: str) -> float:
    """CE of the answer behind the prompt, from transformers' own loss."""
    import torch

    start = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([[*start, *tokenizer(f" {answer}")["input_ids"]]])
    labels = ids.clone()
    labels[:, : len(start)] = -100
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("batch", [1, 16])
def test_truth_ratios_by_hand(tiny_lm, tokenizer, batch):
    model = tiny_lm("gpt2")
    rows = [ROWS[0], {**ROWS[1], "paraphrased_answer": "it was she"}, ROWS[2]]
    found = truth_ratios(model, tokenizer, rows, Style(batch=batch))
    for row, ratio in zip(rows, found, strict=True):
        prompt = put(row["question"])
        right = row.get("paraphrased_answer", row["answer"])
        wrong = [by_hand(model, tokenizer, prompt, w) for w in row["perturbed_answer"]]
        expected = math.exp(by_hand(model, tokenizer, prompt, right) - sum(wrong) / len(wrong))
        assert ratio == pytest.approx(expected, rel=1e-3)


def test_the_blank_before_answers_is_the_tokenizers(tiny_lm, tokenizer):
    model = tiny_lm("gpt2")
    asked = (Style(), Style(between=" "), Style(between=""))
    found, blank, glued = (truth_ratios(model, tokenizer, ROWS, style) for style in asked)
    assert (found == blank).all()  # byte-level: the blank belongs to the word behind it
    assert (found != glued).all()


def test_the_ends(knows, tokenizer):
    right = [(put(r["question"]), f" {r['answer']}") for r in ROWS]
    wrong = [(put(r["question"]), f" {r['perturbed_answer'][0]}") for r in ROWS]
    sets = {"retain": ROWS, "real_authors": ROWS, "world_facts": ROWS}
    knowing = utility(knows(tokenizer, right), tokenizer, **sets, style=STYLE)
    assert knowing.utility == pytest.approx(1.0, abs=0.01)
    destroyed = utility(knows(tokenizer, []), tokenizer, **sets, style=STYLE)
    assert destroyed.utility == 0.0  # ROUGE of silence
    assert destroyed.parts["retain"]["rouge"] == 0.0
    assert (truth_ratios(knows(tokenizer, right), tokenizer, ROWS) < 0.1).all()
    assert (truth_ratios(knows(tokenizer, wrong), tokenizer, ROWS) > 1).all()


def test_the_nine_numbers_are_tofus(tiny_lm, tokenizer):
    model = tiny_lm("llama")
    one = utility(
        model,
        tokenizer,
        retain=ROWS[:2],
        real_authors=ROWS[1:],
        world_facts=ROWS,
        style=Style(new_tokens=8),
    )
    losses = [by_hand(model, tokenizer, put(r["question"]), r["answer"]) for r in ROWS]
    assert one.parts["retain"]["probability"] == pytest.approx(
        np.exp(-np.array(losses[:2])).mean(), rel=1e-3
    )
    wrong = [
        [by_hand(model, tokenizer, put(r["question"]), w) for w in r["perturbed_answer"]]
        for r in ROWS
    ]
    assert one.parts["world_facts"]["probability"] == pytest.approx(
        option_probability(losses, wrong).mean(), rel=1e-3
    )
    tr = truth_ratios(model, tokenizer, ROWS[1:])
    assert one.parts["real_authors"]["truth_ratio"] == pytest.approx(np.maximum(0, 1 - tr).mean())


def test_a_model_against_itself_has_forget_quality_one(tiny_lm, tokenizer):
    tr = truth_ratios(tiny_lm("gpt2"), tokenizer, ROWS)
    assert forget_quality(tr, tr).p_value == 1.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the rows: no questions, the set is empty"),
        ([{"question": "Who?", "answer": "x"}], "the rows, question 1: expected texts"),
        ([{**ROWS[0], "perturbed_answer": []}], "the rows, question 1: expected texts"),
        ([{**ROWS[0], "answer": None}], "the rows, question 1: expected texts"),
        ([ROWS[0], {**ROWS[1], "perturbed_answer": ["x"]}], "from 1 to 2 wrong answers per"),
    ],
)
def test_bad_rows_are_refused_in_one_line(tiny_lm, tokenizer, rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        truth_ratios(tiny_lm("gpt2"), tokenizer, rows)
    assert "\n" not in str(caught.value)
