from __future__ import annotations

import pytest
import torch

from steelyard.bench.metrics import rouge_l
from steelyard.bench.muse import in_context, knowmem, privacy_leak, verbmem
from steelyard.bench.scoring import document_tokens

TEXTS = [
    {"prompt": "In the morning the", "gt": " river was quiet and the boats lay still"},
    {"prompt": "Madera is a city", "gt": " of four young women who never met"},
]
QUESTIONS = [
    {"question": "Where did they meet?", "answer": "In Madera"},
    {"question": "Who was first?", "answer": "Odilia"},
]
EXAMPLES = [{"question": "What is it?", "answer": "a test"}]


def test_verbatim_memory(knows, tokenizer):
    pairs = [(row["prompt"], row["gt"]) for row in TEXTS]
    assert verbmem(knows(tokenizer, pairs), tokenizer, TEXTS) == 1.0
    assert verbmem(knows(tokenizer, []), tokenizer, TEXTS) == 0.0
    half = [pairs[0], (pairs[1][0], " of four")]
    expected = (1 + rouge_l(TEXTS[1]["gt"], "of four").f1) / 2
    assert verbmem(knows(tokenizer, half), tokenizer, TEXTS) == pytest.approx(expected)
    # F1, not recall: what is said beyond the truth costs
    long = [(p, f"{gt} and so on and so on") for p, gt in pairs]
    assert 0.6 < verbmem(knows(tokenizer, long), tokenizer, TEXTS) < 0.9


def test_no_more_tokens_than_asked(knows, tokenizer):
    pairs = [(row["prompt"], row["gt"]) for row in TEXTS]
    found = verbmem(knows(tokenizer, pairs), tokenizer, TEXTS, new_tokens=9)
    assert found == 1.0  # of the truth no more than that counts either
    other = [(p, gt[:5]) for p, gt in pairs]
    found = verbmem(knows(tokenizer, other), tokenizer, TEXTS, new_tokens=9)
    expected = [rouge_l(row["gt"][:9], row["gt"][:5], stem=False).f1 for row in TEXTS]
    assert 0 < expected[1] < 1
    assert found == pytest.approx(sum(expected) / 2)


def test_words_are_not_stemmed(knows, tokenizer):
    row = {"prompt": "There were two", "gt": " running cats"}
    model = knows(tokenizer, [(row["prompt"], " runs cats")])
    assert verbmem(model, tokenizer, [row]) == 0.5  # stemmed it would be 1


def test_knowledge_behind_examples(knows, tokenizer):
    prompt = in_context(EXAMPLES, QUESTIONS[0]["question"])
    assert prompt == (
        "Question: What is it?\nAnswer: a test\n\nQuestion: Where did they meet?\nAnswer: "
    )
    asked = [(in_context(EXAMPLES, q["question"]), q["answer"]) for q in QUESTIONS]
    model = knows(tokenizer, asked)
    assert knowmem(model, tokenizer, QUESTIONS, examples=EXAMPLES) == 1.0
    assert knowmem(model, tokenizer, QUESTIONS) == 0.0  # another prompt
    # what is written behind the answer, a further example, does not count
    goes_on = [(p, f"{a}\n\nQuestion: Who?") for p, a in asked]
    assert knowmem(knows(tokenizer, goes_on), tokenizer, QUESTIONS, examples=EXAMPLES) == 1.0


def test_leak_of_a_model_that_remembers(tiny_lm, tokenizer):
    members = [row["prompt"] + row["gt"] for row in TEXTS]
    strangers = ["The lamp was out, and nobody came.", "Sherry lived by the old mill for long."]
    model, fresh = tiny_lm("gpt2"), tiny_lm("gpt2")
    tokens = document_tokens(tokenizer, members)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, labels=tokens.labels
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = privacy_leak(model, tokenizer, members, strangers)
    assert (found.priv_leak, found.auc, found.reference) == (-100.0, 1.0, 0.5)
    assert privacy_leak(model, tokenizer, strangers, members).priv_leak == 100.0
    own = privacy_leak(fresh, tokenizer, strangers, members, retrained=fresh)
    assert (own.priv_leak, own.auc) == (0.0, own.reference)  # the retrained model against itself


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: verbmem(m, t, []), "no rows with prompt and gt: the set is empty"),
        (lambda m, t: verbmem(m, t, [{"prompt": "x"}]), 'row 1: "gt" is missing, expected a text'),
        (lambda m, t: knowmem(m, t, [{"question": "x", "answer": 1}]), 'row 1: "answer" is 1'),
        (lambda m, t: privacy_leak(m, t, [], ["some text"]), "no members: the set is empty"),
        (lambda m, t: privacy_leak(m, t, ["some"], ["some"]), "documents are members and non-mem"),
    ],
)
def test_bad_input_is_refused(tiny_lm, tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_lm("gpt2"), tokenizer)
