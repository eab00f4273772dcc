"""Relative position biases: the model computes what it would compute alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

transformers = pytest.importorskip("transformers")
SIZE = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}


class Old(nn.Module):
    """As in transformers 4: the mask is added to a bias that the module made itself, only."""

    def __init__(self):
        super().__init__()
        self.relative_attention_bias, self.has_relative_attention_bias = nn.Embedding(9, 2), True
        self.q, self.v = nn.Linear(4, 4), nn.Linear(4, 4)

    def compute_bias(self, query_length: int, key_length: int, device=None) -> Tensor:
        there = torch.arange(key_length, device=device) - torch.arange(query_length)[:, None]
        return self.relative_attention_bias(there.clamp(-4, 4) + 4).permute(2, 0, 1)[None]

    def forward(self, hidden_states: Tensor, mask=None, position_bias=None) -> Tensor:
        B, T, _ = hidden_states.shape
        q, v = (f(hidden_states).view(B, T, 2, 2).transpose(1, 2) for f in (self.q, self.v))
        if position_bias is None:
            position_bias = self.compute_bias(T, T, device=q.device)
            if mask is not None:
                causal_mask = mask[:, :, :, :T]
                position_bias = position_bias + causal_mask
        scores = (q @ q.transpose(2, 3) + position_bias).softmax(-1)
        return (scores @ v).transpose(1, 2).reshape(B, T, 4)


def test_a_mask_that_belongs_to_the_bias_is_kept():
    model = Old().double()
    plain, data = copy.deepcopy(model), torch.randn(5, 6, 4).double()
    mask = torch.full((6, 6), float("-inf")).triu(1)[None, None].double()
    rows = PerSample(model, FlatClip(1e9), expected_batch=1, strict=True)
    for _ in range(3):
        expected = plain(data, mask=mask)
        found = model(data, mask=mask)
        torch.testing.assert_close(found, expected)
        rows.backward(found.square().sum((1, 2)))
        truth = torch.autograd.grad(expected.square().sum(), list(plain.parameters()))
        torch.testing.assert_close(list(rows.take().tensors), list(truth))


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5", "LongT5"])
def test_the_family(kind):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZE, decoder_start_token_id=0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    plain, tokens = copy.deepcopy(model), torch.randint(2, 50, (3, 9))
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    rows = PerSample(model, FlatClip(), expected_batch=1)
    batch = {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": tokens[:, :5]}
    for _ in range(2):
        found = model(**batch).logits
        torch.testing.assert_close(found, plain(**batch).logits)
        rows.backward(found.square().mean((1, 2)))
