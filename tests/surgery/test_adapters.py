"""Configurations of peft train exactly what was chosen."""

from __future__ import annotations

import pytest

from steelyard.steps.roles import by_role
from steelyard.surgery.select import Selection

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def gpt2(layers=2):
    config = transformers.GPT2Config(
        n_layer=layers, n_head=2, n_embd=8, vocab_size=11, n_positions=8, num_labels=2,
        pad_token_id=0,
    )  # fmt: skip
    return transformers.GPT2ForSequenceClassification(config)


def selection(model, *chosen: str, fine=False) -> Selection:
    groups = by_role(model, fine=fine)
    shapes = {k: {n: tuple(p.shape) for n, p in members} for k, members in groups.items()}
    return Selection(
        names=chosen, parameters=0, share=0.0, gain=0.0, budget=0,
        shapes={k: shapes[k] for k in chosen},
        left={k: s for k, s in shapes.items() if k not in chosen},
    )  # fmt: skip


def trained(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def wrapped(layers=2, **options):
    config = {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True} | options
    return peft.get_peft_model(gpt2(layers), peft.LoraConfig(**config))


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({}, ["lora"]),
        ({"modules_to_save": ["score"]}, ["lora", "head"]),
        ({"modules_to_save": ["ln_1", "score"]}, ["lora", "head", "norm"]),
        ({"bias": "all"}, ["lora", "norm", "bias"]),
    ],
)
def test_a_lora_with_what_stands_beside_it(options, groups):
    model = wrapped(**options)
    assert set(by_role(model, fine=False)) == set(groups)
    config = selection(model, *groups).peft_config(lora_alpha=16, fan_in_fan_out=True)
    assert (config.r, config.lora_alpha) == (4, 16)
    again = peft.get_peft_model(gpt2(), config)
    assert trained(again) == trained(model)


def test_without_what_was_not_chosen():
    model = wrapped(modules_to_save=["score"])
    config = selection(model, "lora").peft_config(fan_in_fan_out=True)
    assert trained(peft.get_peft_model(gpt2(), config)) == trained(wrapped())
    assert config.lora_alpha == 8


def test_any_layer_fits_a_deeper_model():
    model = wrapped(modules_to_save=["ln_1"])
    config = selection(model, "lora", "norm").peft_config(any_layer=True, fan_in_fan_out=True)
    deep = peft.get_peft_model(gpt2(5), config)
    assert trained(deep) == trained(wrapped(5, modules_to_save=["ln_1"]))


def test_norms_alone():
    model = gpt2()
    config = selection(model, "norm", "head").peft_config()
    assert isinstance(config, peft.LNTuningConfig)
    found = trained(peft.get_peft_model(gpt2(), config))
    assert len(found) == len(by_role(model)["norm"]) + len(by_role(model)["head"])
    assert all("ln_" in name or "score" in name for name in found)


def test_what_peft_cannot_express_is_refused():
    model = wrapped()
    with pytest.raises(ValueError, match="all of a LoRA's A and B, or none"):
        selection(model, "lora_A", fine=True).peft_config()
    with pytest.raises(ValueError, match="no configuration that trains bias alone"):
        selection(gpt2(), "bias").peft_config()
    with pytest.raises(ValueError, match=r"all biases or none, but '.*ln_1.bias'"):
        selection(wrapped(bias="all"), "lora", "bias").peft_config()
    halves = selection(wrapped(modules_to_save=["mlp.c_fc"]), "lora", "mlp")
    with pytest.raises(ValueError, match="peft trains whole modules, but"):
        halves.peft_config()
