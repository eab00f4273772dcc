from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from steelyard.bench import attacks
from steelyard.bench.attacks import ATTACKS, attack_scores, gradient_norms, membership
from steelyard.bench.metrics import membership_auc
from steelyard.bench.scoring import TokenScores, document_tokens

LOG_P = np.array([-1.0, -4.0, -2.0, -3.0, -0.5])
HAND = TokenScores(LOG_P, np.full(5, -2.0), np.array([1.0, 2.0, 1.0, 0.5, 0.0]), np.ones(5, bool))
TEXTS = ["Madera is a city.", "A short one.", "Gisella and Yalonda were friends for a long time."]


def test_scores_by_hand():
    assert attacks.loss(HAND) == pytest.approx(10.5 / 5)
    assert attacks.min_k(HAND) == pytest.approx((4 + 3) / 2)  # the lowest two of five
    assert attacks.min_k(HAND, 0.1) == 4.0  # at least one
    assert attacks.min_k(HAND, 1.0) == pytest.approx(attacks.loss(HAND))
    # z: 1, -1, 0, -2 and 1.5 over the floor 1e-3
    assert attacks.min_k_plus_plus(HAND) == pytest.approx((2 + 1) / 2)
    assert attacks.min_k_plus_plus(HAND, 1.0) == pytest.approx(-(1 - 1 + 0 - 2 + 1500) / 5)
    text = "a text, a text, a text"
    assert attacks.zlib_ratio(HAND, text) == pytest.approx(2.1 / len(zlib.compress(text.encode())))
    other = TokenScores(LOG_P - 1, HAND.mean, HAND.std, HAND.right)
    assert attacks.reference(HAND, other) == pytest.approx(-1.0)  # knows it better


def test_one_pass_gives_all_attacks_whatever_the_batch(tiny_lm, tokenizer):
    model, other = tiny_lm("llama"), tiny_lm("llama", seed=1)
    one = attack_scores(model, tokenizer, TEXTS, attacks=ATTACKS, reference_model=other, batch=1)
    many = attack_scores(model, tokenizer, TEXTS, attacks=ATTACKS, reference_model=other, batch=3)
    assert tuple(one) == ATTACKS
    for name in ATTACKS:
        assert one[name].shape == (3,)
        assert many[name] == pytest.approx(one[name], rel=1e-4), name
    assert one["reference"] == pytest.approx(
        one["loss"] - attack_scores(other, tokenizer, TEXTS)["loss"], abs=1e-5
    )


def test_gradient_norm_is_the_mean_over_parameters(tiny_lm, tokenizer):
    model = tiny_lm("gpt2")
    tokens = document_tokens(tokenizer, TEXTS)
    model.transformer.wpe.weight.grad = torch.ones_like(model.transformer.wpe.weight)
    found = gradient_norms(model, tokens)
    assert (model.transformer.wpe.weight.grad == 1).all()  # untouched
    for row, text in enumerate(TEXTS):
        model.zero_grad()
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
        norms = [p.grad.norm() for p in model.parameters()]
        assert found[row] == pytest.approx(float(torch.stack(norms).mean()), rel=1e-4)
    frozen = tiny_lm("gpt2").requires_grad_(False)
    with pytest.raises(ValueError, match="needs trainable parameters"):
        gradient_norms(frozen, tokens)


def test_members_score_low_and_strangers_high(tiny_lm, tokenizer):
    """A model trained on three texts tells them from three others, by every attack."""
    model, before = tiny_lm("gpt2"), tiny_lm("gpt2")
    strangers = [
        "Odilia is a town.",
        "The small box.",
        "Sherry and Lindsey lived by the river once.",
    ]
    tokens = document_tokens(tokenizer, TEXTS)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, labels=tokens.labels
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    options = {"attacks": ATTACKS, "reference_model": before}
    low = attack_scores(model, tokenizer, TEXTS, **options)
    high = attack_scores(model, tokenizer, strangers, **options)
    for name in ATTACKS:
        assert membership_auc(low[name], high[name]) == 1.0, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ["mink"]}, r"unknown attack \['mink'\]: choose of loss, zlib"),
        ({"attacks": []}, "unknown attack none"),
        ({"attacks": ["reference"]}, "needs reference_model"),
        ({"texts": []}, "no documents: the set is empty"),
        ({"texts": ["a", "fine"]}, "document 0 has 1 tokens"),
        ({"k": 0.0}, "k is 0.0: the share of tokens"),
    ],
)
def test_bad_input_is_refused_in_one_line(tiny_lm, tokenizer, changes, message):
    settings = {"texts": TEXTS, **changes}
    with pytest.raises(ValueError, match=message) as caught:
        attack_scores(tiny_lm("gpt2"), tokenizer, settings.pop("texts"), **settings)
    assert "\n" not in str(caught.value)


def test_long_documents_are_cut_at_the_context(tiny_lm, tokenizer):
    model = tiny_lm("gpt2", positions=8)
    found = attack_scores(model, tokenizer, TEXTS)["loss"]
    assert found == pytest.approx(attack_scores(model, tokenizer, [t[:8] for t in TEXTS])["loss"])


def test_zlib_divides_by_what_was_scored(tiny_lm, tokenizer):
    """The bytes of a cut text's tail do not count: its losses do not either."""
    model = tiny_lm("gpt2")
    texts = [*TEXTS, TEXTS[0][:12]]  # the last one ends just there
    found = attack_scores(model, tokenizer, texts, length=12)
    for text, ce, ratio in zip(texts, found["loss"], found["zlib"], strict=True):
        assert ratio == pytest.approx(ce / len(zlib.compress(text[:12].encode())))


def test_membership_says_what_it_was_made_from(tiny_lm, tokenizer):
    model = tiny_lm("gpt2")
    found = membership(model, tokenizer, TEXTS[:2], TEXTS[2:], attack="min_k", length=14)
    low = attack_scores(model, tokenizer, TEXTS[:2], length=14)["min_k"]
    high = attack_scores(model, tokenizer, TEXTS[2:], length=14)["min_k"]
    expected = {"attack": "min_k", "auc": membership_auc(low, high)}
    assert found == {**expected, "members": 2, "non_members": 1, "cut": 2}
    for call, message in (
        (lambda: membership(model, tokenizer, TEXTS, TEXTS[:1]), "1 documents are members and non"),
        (lambda: membership(model, tokenizer, TEXTS, ["x"]), "non-member 0 has 1 tokens"),
        (lambda: membership(model, tokenizer, [], TEXTS), "no members: the set is empty"),
        (lambda: membership(model, tokenizer, TEXTS, ["so"], attack="reference"), "needs refer"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
