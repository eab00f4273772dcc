"""CE and GA: mirror images, per token or per answer."""

from __future__ import annotations

import pytest
import torch

from steelyard.objectives import CE, GA


def test_ascent_is_the_mirror_image(new_model, forget):
    model = new_model()
    for over in ("mean", "sum"):
        up, down = GA(over=over), CE(over=over)
        assert torch.equal(up.per_sample(model, forget), -down.per_sample(model, forget))
        assert torch.equal(up(model, forget), -down(model, forget))


def test_sums_are_means_times_lengths(new_model, forget):
    model = new_model()
    lengths = torch.tensor([4, 2, 6])
    total = CE(over="sum").per_sample(model, forget)
    torch.testing.assert_close(total, CE().per_sample(model, forget) * lengths)


def test_samples_count_alike_where_transformers_counts_tokens(new_model, forget):
    model = new_model("llama")
    theirs = model(
        forget.input_ids, attention_mask=forget.attention_mask, labels=forget.labels
    ).loss
    total = CE(over="sum").per_sample(model, forget).sum()
    torch.testing.assert_close(theirs.double(), total / 12, rtol=1e-5, atol=1e-5)
    assert abs((CE()(model, forget) - theirs).item()) > 1e-3
    one = forget.rows(slice(0, 1))
    alone = model(one.input_ids, attention_mask=one.attention_mask, labels=one.labels).loss
    torch.testing.assert_close(CE()(model, one), alone.double(), rtol=1e-5, atol=1e-5)


def test_other_reductions_are_refused():
    for objective in (CE, GA):
        with pytest.raises(ValueError, match="over='median': use 'mean' or 'sum'"):
            objective(over="median")  # pyright: ignore[reportArgumentType]
