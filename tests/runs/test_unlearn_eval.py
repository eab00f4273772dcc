"""What an unlearning run looks at: losses, lengths, and modes that are put back."""

from __future__ import annotations

import pytest
import torch

from steelyard.hf.sources import quiet
from steelyard.objectives import Tokens, encode
from steelyard.runs.unlearn_config import UnlearnConfig
from steelyard.runs.unlearn_eval import encoded, mean_loss, without_dropout

IDS = torch.arange(3, 15).view(2, 6)


@pytest.fixture
def opt():
    """A tiny model with dropout in functions, not modules: layers and embeddings ask themselves
    whether they are in training."""
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=32,
        word_embed_proj_dim=16, max_position_embeddings=16, dropout=0.5, attention_dropout=0.5,
        layerdrop=0.5,
    )  # fmt: skip
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.OPTForCausalLM(config)


def modes(model) -> list[bool]:
    return [module.training for module in model.modules()]


def rates(model) -> list[tuple[str, float]]:
    return [
        (name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if "drop" in name and isinstance(value, float)
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_without_dropout_there_is_none_and_all_is_put_back(opt, checkpointing, training):
    recomputed = []
    with torch.no_grad():
        expected = opt.eval()(IDS).logits
    if checkpointing:
        opt.gradient_checkpointing_enable()
        for layer in opt.model.decoder.layers:
            inner = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = lambda *a, inner=inner, **k: (
                recomputed.append(1),
                inner(*a, **k),
            )[1]
    opt.train(training)
    opt.lm_head.eval()
    before, own = modes(opt), rates(opt)
    assert 0.5 in [rate for _, rate in own]
    with without_dropout(opt):
        logits = opt(IDS, use_cache=False).logits
        logits.sum().backward()
    torch.testing.assert_close(logits.detach(), expected, rtol=0, atol=1e-6)
    assert len(recomputed) == (3 if checkpointing else 0)
    assert opt.model.decoder.layers[0].fc1.weight.grad.abs().sum() > 0
    assert (modes(opt), rates(opt)) == (before, own)


def test_the_mean_is_over_tokens_however_many_rows_are_in_memory(memorised):
    model, tokenizer, forget, _ = memorised
    tokens = encode(tokenizer, forget, length=48)
    whole = mean_loss(model().eval(), tokens, 10)
    with torch.no_grad():
        log_p = model().eval()(tokens.input_ids).logits[:, :-1].log_softmax(-1)
    labels = tokens.labels[:, 1:]
    own = [
        log_p[b, t, label]
        for b, row in enumerate(labels.tolist())
        for t, label in enumerate(row)
        if label >= 0
    ]
    assert whole == pytest.approx(-float(torch.stack(own).mean()), rel=1e-4)
    assert mean_loss(model().eval(), tokens, 10, 3) == pytest.approx(whole, rel=1e-5)
    assert mean_loss(model().eval(), tokens, 5) != pytest.approx(whole, rel=1e-5)


def test_rows_that_are_too_long_say_what_would_do(memorised):
    _, tokenizer, forget, _ = memorised
    config = UnlearnConfig(model="m", forget="f", retain="r", length=16)
    rows = [*forget[:2], {"input": "a", "output": "9" * 20}, {"input": "a", "output": "9" * 30}]
    assert isinstance(encoded(tokenizer, rows[:2], config), Tokens)
    with pytest.raises(
        ValueError, match=r"^forget set: row 2 has 23 tokens, more than 16: .* --length 23$"
    ):
        encoded(tokenizer, rows[:3], config)
    told = r"^retain set: row 3 has 33 tokens, more than 16, the longest of 2 .*: .* --length 33$"
    with pytest.raises(ValueError, match=told):
        encoded(tokenizer, rows, config, "retain")
