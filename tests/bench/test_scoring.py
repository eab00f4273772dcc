from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steelyard.bench import scoring
from steelyard.bench.scoring import document_tokens, evaluation, losses, token_scores
from steelyard.models import Task, gpt
from steelyard.objectives.tokens import Tokens, encode

ROWS = [
    {"input": "Where?", "output": " In Madera."},
    {"input": "Who was it that came", "output": " she"},
    {"input": "?", "output": " A long answer, longer than all of the others here."},
]


def slow_scores(model, tokens: Tokens, row: int) -> list[tuple[float, float, float, bool]]:
    """One row alone, one token after the other, in float64."""
    ids = tokens.input_ids[row][tokens.attention_mask[row] == 1]
    with torch.no_grad():
        z = model(input_ids=ids[None]).logits[0].double()
    found = []
    for t in range(1, len(ids)):
        if tokens.labels[row, t] == -100:
            continue
        p = torch.softmax(z[t - 1], 0)
        mean = float((p * p.log()).sum())
        variance = float((p * (p.log() - mean) ** 2).sum())
        hit = bool(z[t - 1].argmax() == ids[t])
        found.append((float(p[ids[t]].log()), mean, math.sqrt(variance), hit))
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_scores_are_those_of_each_row_alone(tiny_lm, tokenizer, family, batch, monkeypatch):
    monkeypatch.setattr(scoring, "FLOATS", 257 * 7)  # seven positions at a time
    model = tiny_lm(family)
    tokens = encode(tokenizer, ROWS, length=99)
    for row, scores in enumerate(token_scores(model, tokens, batch=batch)):
        expected = np.array(slow_scores(model, tokens, row))
        assert scores.log_p == pytest.approx(expected[:, 0], abs=1e-4)
        assert scores.mean == pytest.approx(expected[:, 1], abs=1e-4)
        assert scores.std == pytest.approx(expected[:, 2], abs=1e-4)
        assert (scores.right == (expected[:, 3] == 1)).all()
        assert scores.loss == pytest.approx(-expected[:, 0].mean(), abs=1e-4)


def test_loss_is_transformers_own(tiny_lm, tokenizer):
    model = tiny_lm("llama")
    tokens = encode(tokenizer, ROWS[:1], length=99)
    with torch.no_grad():
        own = model(input_ids=tokens.input_ids, labels=tokens.labels).loss
    assert losses(model, tokens)[0] == pytest.approx(float(own), abs=1e-5)


def test_our_own_models_are_taken(tokenizer):
    task = Task(kind="language", shape=(64,), classes=0, vocabulary=257)
    model = gpt(task, layers=1, width=16, heads=2)
    tokens = encode(tokenizer, ROWS, length=99)
    one = losses(model, tokens, batch=1)
    assert losses(model, tokens, batch=3) == pytest.approx(one, abs=1e-5)


def test_statistics_of_certain_and_uniform_models_are_finite(knows, tokenizer):
    tokens = encode(tokenizer, ROWS, length=99)
    known = [(row["input"], row["output"]) for row in ROWS]
    for scores in token_scores(knows(tokenizer, known, certainty=1e4), tokens):
        assert scores.loss == 0.0
        assert scores.right.all()
        assert (scores.std == 0.0).all()
    uniform = knows(tokenizer, [], certainty=0.0)
    for scores in token_scores(uniform, tokens):
        assert scores.loss == pytest.approx(math.log(257))
        assert scores.std == pytest.approx(0.0, abs=1e-3)


def test_documents_score_every_token_behind_the_first(tokenizer):
    tokens = document_tokens(tokenizer, ["Hello", "Hi"])
    assert tokens.attention_mask.sum(1).tolist() == [5, 2]
    assert (tokens.labels != -100).sum(1).tolist() == [5, 2]
    assert document_tokens(tokenizer, ["Hello"], length=3).input_ids.shape == (1, 3)
    ended = document_tokens(tokenizer, ["Hello"], end=True)
    assert ended.labels[0, -1] == tokenizer.eos_token_id


def test_the_model_is_left_as_it_was(tiny_lm, tokenizer):
    model = tiny_lm("gpt2").train()
    model.transformer.h[0].eval()
    modes = [m.training for m in model.modules()]
    first = losses(model, encode(tokenizer, ROWS, length=99))
    assert [m.training for m in model.modules()] == modes
    assert (losses(model, encode(tokenizer, ROWS, length=99)) == first).all()  # no dropout

    def broken() -> None:
        with evaluation(model):
            assert not any(m.training for m in model.modules())
            assert not torch.is_grad_enabled()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken()
    assert [m.training for m in model.modules()] == modes


def test_rows_without_a_scored_token_are_named(tiny_lm, tokenizer):
    tokens = encode(tokenizer, ROWS, length=99)
    labels = tokens.labels.clone()
    labels[1] = -100
    with pytest.raises(ValueError, match=r"rows \[1\] have no token to score"):
        token_scores(tiny_lm("gpt2"), Tokens(tokens.input_ids, labels, tokens.attention_mask))
    for batch in (0, -1):
        with pytest.raises(ValueError, match=f"batch must be .* at least 1, found {batch}"):
            token_scores(tiny_lm("gpt2"), tokens, batch=batch)
    with pytest.raises(ValueError, match="no documents"):
        document_tokens(tokenizer, [])
    with pytest.raises(ValueError, match="document 1 has 1 tokens"):
        document_tokens(tokenizer, ["fine", "x"])
