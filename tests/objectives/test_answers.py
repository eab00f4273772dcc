"""Positions that count, and the mean over each sample's own."""

from __future__ import annotations

import pytest
import torch

from steelyard.objectives.answers import labels_at, logits_at, mean_over, places
from steelyard.objectives.tokens import Tokens


@pytest.fixture
def tokens():
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    labels = torch.tensor([[3, -100, 5, 6], [-100, 8, -100, -100]])
    return Tokens(ids, labels, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))


def test_answers_are_predicted_one_place_to_their_left(tokens):
    mask = places(tokens, "answer")
    assert mask.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert labels_at(tokens, mask).tolist() == [5, 6, 8]


def test_all_is_everything_but_padding(tokens):
    assert torch.equal(places(tokens, "all"), tokens.attention_mask == 1)
    with pytest.raises(ValueError, match="unknown positions 'prompt'"):
        places(tokens, "prompt")  # pyright: ignore[reportArgumentType]


def test_means_weigh_samples_alike(tokens):
    mask = places(tokens, "answer")
    values = torch.tensor([1.0, 3.0, 10.0], requires_grad=True)
    means = mean_over(values, mask)
    assert means.tolist() == [2.0, 10.0]
    means.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.5, 1.0]


def test_a_model_that_returns_something_else_is_named(tokens):
    with pytest.raises(ValueError, match=r"returns logits \[2, 8\] for tokens \[2, 4\]"):
        logits_at(
            torch.nn.Sequential(torch.nn.Embedding(9, 2), torch.nn.Flatten()),
            tokens,
            places(tokens, "all"),
        )
