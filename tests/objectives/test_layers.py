"""Which module a layer's number or name means, and what is read from it."""

from __future__ import annotations

import pytest
import torch

from steelyard.objectives.layers import find_layer, hidden

BLOCKS = {"own": "blocks.1", "gpt2": "transformer.h.1", "llama": "model.layers.1"}


@pytest.mark.parametrize("kind", BLOCKS)
def test_numbers_count_the_blocks(kind, new_model):
    model = new_model(kind, layers=3)
    assert find_layer(model, 1) is model.get_submodule(BLOCKS[kind])
    assert find_layer(model, -2) is find_layer(model, 1)
    assert find_layer(model, BLOCKS[kind]) is find_layer(model, 1)
    with pytest.raises(ValueError, match="layer 3 of 3: use 0 to 2"):
        find_layer(model, 3)
    with pytest.raises(ValueError, match="layer -4 of 3"):
        find_layer(model, -4)


def test_numbers_count_the_largest_list():
    model = torch.nn.Module()
    model.scales = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(5)])
    inner = [torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.Linear(9, 9)) for _ in range(2)]
    model.layers = torch.nn.ModuleList(inner)
    model.after = torch.nn.Sequential(torch.nn.Linear(3, 3))
    assert find_layer(model, 0) is inner[0]
    assert find_layer(model, -1) is inner[1]


def test_numbers_and_names_go_through_peft(new_model):
    peft = pytest.importorskip("peft")
    base = new_model("llama")
    block = base.model.layers[1]
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"]))
    assert find_layer(model, 1) is block
    assert find_layer(model, "model.layers.1") is block
    assert find_layer(model, "layers.1.mlp") is block.mlp


def test_names_that_mean_nothing_or_too_much(new_model):
    model = new_model("llama")
    with pytest.raises(
        ValueError, match=r"no layer 'model.layer.1': did you mean 'model.layers.1'"
    ):
        find_layer(model, "model.layer.1")
    with pytest.raises(ValueError, match=r"'mlp' is the end of .*layers.0.mlp.* write more"):
        find_layer(model, "mlp")
    with pytest.raises(ValueError, match="no list of layers: name one"):
        find_layer(torch.nn.Linear(2, 2), 0)


@pytest.mark.parametrize("kind", BLOCKS)
def test_what_is_read_is_the_residual_stream(kind, new_model, forget):
    model = new_model(kind)
    h = hidden(model, forget, -1)
    assert h.shape == (3, 8, 8)
    norm = {"own": "norm", "gpt2": "transformer.ln_f", "llama": "model.norm"}[kind]
    head = model.head if kind == "own" else model.lm_head
    output = (
        model(forget.input_ids)
        if kind == "own"
        else model(forget.input_ids, attention_mask=forget.attention_mask).logits
    )
    torch.testing.assert_close(head(model.get_submodule(norm)(h)), output)


def test_no_hook_stays_behind(new_model, forget):
    model = new_model("own")
    hidden(model, forget, 0)
    with pytest.raises(ValueError, match=r"returns no \[B, T, d\]"):
        hidden(torch.nn.Sequential(model, torch.nn.Flatten()), forget, "1")
    assert not any(m._forward_hooks for m in model.modules())


def test_blocks_that_return_more_than_the_states(forget):
    class Block(torch.nn.Module):
        def forward(self, h):
            return h + 1, 5 * h  # the states, then a cache

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(24, 4)
            self.blocks = torch.nn.ModuleList([Block()])

        def forward(self, tokens):
            return self.blocks[0](self.table(tokens))[0]

    model = Decoder()
    torch.testing.assert_close(hidden(model, forget, 0), model.table(forget.input_ids) + 1)
