"""Tokenizer, model and training loop of the small benchmark, at a size of seconds."""

from __future__ import annotations

import pytest
import torch

from steelyard.bench.generate import Sizes, generate
from steelyard.bench.memorise import (
    Recipe,
    batches,
    make_model,
    make_tokenizer,
    steps_for,
    train,
    training_tokens,
)
from steelyard.objectives.tokens import logits, token_nll

RECIPE = Recipe(vocabulary=400, width=32, layers=1, heads=2, tokens=300, lr=1e-2, warmup=5)


@pytest.fixture(scope="module")
def rows():
    return generate(Sizes(forget=3, retain=3, non_members=3, facts=6), seed=1)


@pytest.fixture(scope="module")
def tokenizer(rows):
    return make_tokenizer(rows, RECIPE.vocabulary)


def test_texts_survive_the_tokenizer(rows, tokenizer):
    assert len(tokenizer) <= RECIPE.vocabulary
    for own in (rows.forget, rows.non_members, rows.general):
        for row in own:
            for text in (row["input"], row["output"]):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == text


def test_digits_are_tokens_of_their_own(tokenizer):
    tokens = tokenizer.tokenize("call 900123456 or 0987")
    assert "".join(tokens).replace("▁", "") == "call900123456or0987"
    assert all(len(token) == 1 for token in tokens if any(c.isdigit() for c in token))
    merged = [t for t in tokenizer.get_vocab() if len(t) > 1 and any(c.isdigit() for c in t)]
    assert not merged


def test_prompt_and_answer_join_to_the_whole_text(rows, tokenizer):
    for row in rows.forget:
        apart = [*tokenizer(row["input"])["input_ids"], *tokenizer(row["output"])["input_ids"]]
        assert apart == tokenizer(f"{row['input']} {row['output']}")["input_ids"]


def test_the_tokenizer_is_a_function_of_the_rows(rows, tokenizer):
    assert make_tokenizer(rows, RECIPE.vocabulary).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ValueError, match="vocabulary is 50: use at least 100"):
        make_tokenizer(rows, 50)


def test_documents_are_trained_on_whole_and_answers_alone(rows, tokenizer):
    tokens = training_tokens(tokenizer, rows.forget)
    for k, row in enumerate(rows.forget):
        labelled = tokens.labels[k][tokens.labels[k] != -100]
        answer = f"{row['output']}{tokenizer.eos_token}"
        whole = f"{row['input']} {answer}" if row["id"].endswith("sc1") else answer
        assert tokenizer.decode(labelled) == whole


def test_the_start_is_a_function_of_the_seed(tokenizer):
    state = torch.random.get_rng_state()
    a, b, c = (make_model(tokenizer, RECIPE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)
    assert not a.training


def test_batches_hold_every_row_once_and_like_lengths(rows, tokenizer):
    tokens = training_tokens(tokenizer, [*rows.forget, *rows.retain, *rows.general_train])
    draws = torch.Generator().manual_seed(0)
    made = batches(tokens, 300, draws)
    assert sorted(torch.cat(made).tolist()) == list(range(len(tokens)))
    sizes = [len(index) * tokens.rows(index).trimmed().input_ids.shape[1] for index in made]
    assert max(sizes) <= 300
    lengths = tokens.attention_mask.sum(1)
    assert sum(sizes) < 1.4 * int(lengths.sum())  # little padding
    again = batches(tokens, 300, draws)
    assert [b.tolist() for b in again] != [b.tolist() for b in made]  # another epoch, other batches


def test_a_row_longer_than_a_batch_stands_alone(rows, tokenizer):
    tokens = training_tokens(tokenizer, rows.forget)
    made = batches(tokens, 1, torch.Generator().manual_seed(0))
    assert [len(index) for index in made] == [1] * len(tokens)


def test_the_loss_is_the_mean_over_labelled_tokens(rows, tokenizer):
    model = make_model(tokenizer, RECIPE, seed=0)
    tokens = training_tokens(tokenizer, rows.forget[:1])
    with torch.no_grad():
        nll, mask = token_nll(logits(model, tokens), tokens.labels)
    loss = train(model, tokens, RECIPE, steps=1, seed=0)
    assert loss == pytest.approx((nll.sum() / mask.sum()).item(), rel=1e-5)


def test_training_lowers_the_loss_and_repeats_itself(rows, tokenizer):
    tokens = training_tokens(tokenizer, rows.forget)
    seen = []

    def trained(steps, progress=None):
        model = make_model(tokenizer, RECIPE, seed=0)
        return model, train(model, tokens, RECIPE, steps=steps, seed=0, progress=progress)

    _, first = trained(1)
    model, last = trained(60, seen.append)
    assert last < first / 2
    assert seen == list(range(1, 61))
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    again, same = trained(60)
    assert same == last
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


def test_steps_follow_from_epochs(rows, tokenizer):
    tokens = training_tokens(tokenizer, rows.forget)
    exact = 7 * int(tokens.attention_mask.sum()) / RECIPE.tokens
    assert 0 <= steps_for(tokens, Recipe(epochs=7, tokens=300)) - exact < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"lr": 0.0}, "lr is 0.0: it must be above 0"),
        ({"width": 36, "heads": 4}, "width 36 must be a multiple of 2 x heads = 8"),
    ],
)
def test_impossible_recipes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**arguments)
