"""Roles of the parameters of models of many makes; patterns; tied weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steelyard.models import Task, build
from steelyard.steps.roles import ROLES, by_pattern, by_role


def names(groups):
    return {role: [name for name, _ in members] for role, members in groups.items()}


def leaves(groups):
    """Role -> the last two parts of its parameters' names, each once."""
    return {
        role: sorted({".".join(name.split(".")[-2:]) for name, _ in members})
        for role, members in groups.items()
    }


def assert_partition(model, groups):
    """Every trainable parameter in exactly one group, under its first name."""
    listed = [(name, p) for members in groups.values() for name, p in members]
    assert len({id(p) for _, p in listed}) == len(listed)
    expected = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name: id(p) for name, p in listed} == {n: id(p) for n, p in expected.items()}


def hugging_face(family: str, **changes):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "vocab_size": 11} | changes  # fmt: skip
    gpt2 = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 11, "n_positions": 8}
    t5 = {"d_model": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "d_kv": 4, "vocab_size": 11}
    image = {name: n for name, n in small.items() if name != "vocab_size"}
    kind, config, options = {
        "gpt2": ("GPT2LMHeadModel", "GPT2Config", gpt2),
        "llama": ("LlamaForCausalLM", "LlamaConfig", small),
        "bert": ("BertForSequenceClassification", "BertConfig", small),
        "bert masked": ("BertForMaskedLM", "BertConfig", small),
        "bert alone": ("BertModel", "BertConfig", small),
        "vit": ("ViTForImageClassification", "ViTConfig",
                image | {"image_size": 8, "patch_size": 4}),
        "t5": ("T5ForConditionalGeneration", "T5Config", t5),
        "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", small),
        "mixtral": ("MixtralForCausalLM", "MixtralConfig",
                    small | {"num_key_value_heads": 1, "num_local_experts": 2}),
    }[family]  # fmt: skip
    return getattr(transformers, kind)(getattr(transformers, config)(**options))


FAMILIES = {
    "gpt2": {
        "embedding": ["wpe.weight", "wte.weight"],  # the head is tied to wte
        "attention.qkv": ["c_attn.weight"],
        "attention.o": ["c_proj.weight"],
        "mlp.in": ["c_fc.weight"],
        "mlp.out": ["c_proj.weight"],
    },
    "llama": {
        "embedding": ["embed_tokens.weight"],
        "head": ["lm_head.weight"],
        "norm": ["input_layernorm.weight", "norm.weight", "post_attention_layernorm.weight"],
        "attention.q": ["q_proj.weight"],
        "attention.k": ["k_proj.weight"],
        "attention.v": ["v_proj.weight"],
        "attention.o": ["o_proj.weight"],
        "mlp.in": ["gate_proj.weight", "up_proj.weight"],
        "mlp.out": ["down_proj.weight"],
    },
    "bert": {
        "head": ["classifier.bias", "classifier.weight"],
        "norm": ["LayerNorm.bias", "LayerNorm.weight"],
        "bias": ["dense.bias", "key.bias", "query.bias", "value.bias"],
        "attention.q": ["query.weight"],
        "attention.k": ["key.weight"],
        "attention.v": ["value.weight"],
        "attention.o": ["dense.weight"],
        "mlp.in": ["dense.weight"],
        "mlp.out": ["dense.weight"],
        "other": ["dense.weight"],  # the pooler
    },
    "bert masked": {"other": None, "attention.q": ["query.weight"]},
    "bert alone": {"head": None, "other": ["dense.weight"]},
    "vit": {
        "embedding": ["embeddings.cls_token", "embeddings.position_embeddings",
                      "projection.weight"],
        "head": ["classifier.bias", "classifier.weight"],
        "attention.o": ["o_proj.weight"],
        "mlp.in": ["fc1.weight"],
        "mlp.out": ["fc2.weight"],
        "other": None,
    },
    "t5": {
        "embedding": ["relative_attention_bias.weight", "shared.weight"],
        "head": None,
        "bias": None,
        "attention.q": ["q.weight"],
        "attention.o": ["o.weight"],
        "mlp.in": ["wi.weight"],
        "mlp.out": ["wo.weight"],
        "other": None,
    },
    "neox": {"attention.qkv": ["query_key_value.weight"], "attention.o": ["dense.weight"],
             "mlp.in": ["dense_h_to_4h.weight"], "mlp.out": ["dense_4h_to_h.weight"],
             "other": None},
    "mixtral": {"mlp.in": ["experts.gate_up_proj"], "mlp.out": ["experts.down_proj"],
                "other": ["gate.weight"]},  # the router
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_of_hugging_face_models(family):
    model = hugging_face(family)
    groups = by_role(model)
    assert_partition(model, groups)
    assert list(groups) == [role for role in ROLES if role in groups]
    found = leaves(groups)
    for role, expected in FAMILIES[family].items():
        assert found.get(role) == expected, role


def test_attention_and_mlp_of_gpt2_are_told_apart():
    found = names(by_role(hugging_face("gpt2")))
    assert all(".attn." in name for name in found["attention.o"])
    assert all(".mlp." in name for name in found["mlp.out"])
    assert len(found["attention.o"]) == len(found["mlp.out"]) == 2


def test_bert_puts_its_three_dense_layers_apart():
    found = names(by_role(hugging_face("bert")))
    assert all("attention.output.dense" in name for name in found["attention.o"])
    assert all("intermediate.dense" in name for name in found["mlp.in"])
    assert all(".output.dense" in n and "attention" not in n for n in found["mlp.out"])
    assert found["other"] == ["bert.pooler.dense.weight"]


def test_low_rank_updates():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(hugging_face("llama"), config)
    groups = by_role(model)
    assert_partition(model, groups)
    assert list(groups) == ["lora_A", "lora_B", "head"]
    assert len(groups["lora_A"]) == len(groups["lora_B"]) == 4
    assert all(p.shape[0] == 2 for _, p in groups["lora_A"])
    assert list(by_role(model, fine=False)) == ["lora", "head"]
    assert len(by_role(model, fine=False)["lora"]) == 8
    config.modules_to_save = ["down_proj"]
    model = peft.get_peft_model(hugging_face("llama"), config)
    assert list(by_role(model)) == ["lora_A", "lora_B", "mlp.out"]


def test_coarse_roles():
    model = hugging_face("llama")
    fine, coarse = by_role(model), by_role(model, fine=False)
    assert_partition(model, coarse)
    assert list(coarse) == ["embedding", "head", "norm", "attention", "mlp"]
    assert len(coarse["attention"]) == sum(len(fine[f"attention.{x}"]) for x in "qkvo")


IMAGE = Task(kind="image", shape=(28, 28, 1), classes=10)
TEXT = Task(kind="language", shape=(8,), classes=11, vocabulary=11)


@pytest.mark.parametrize(("name", "task"), [("vit", IMAGE), ("gpt", TEXT)])
def test_the_librarys_own_transformers(name, task):
    model = build(name, task, seed=0)
    groups = by_role(model)
    assert_partition(model, groups)
    assert set(groups) == {"embedding", "head", "norm", "bias", "attention.qkv", "attention.o",
                           "mlp.in", "mlp.out"}  # fmt: skip


def test_plain_networks():
    for name in ("cnn", "mlp"):
        model = build(name, IMAGE, seed=0)
        groups = by_role(model)
        assert_partition(model, groups)
        assert set(groups) == {"head", "bias", "other"}
        assert [n for n, _ in groups["head"]] == [n for n, _ in model.named_parameters()][-2:]
    assert names(by_role(nn.Linear(3, 2))) == {"head": ["weight", "bias"]}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    assert names(by_role(Net())) == {
        "head": ["fc2.weight", "fc2.bias"],
        "norm": ["bn.weight", "bn.bias"],
        "bias": ["conv1.bias", "fc1.bias"],
        "other": ["conv1.weight", "fc1.weight"],
    }


def test_torch_transformer_and_an_mlp_of_a_sequential():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    found = leaves(by_role(nn.TransformerEncoder(layer, 2)))
    assert found["attention.qkv"] == ["self_attn.in_proj_weight"]
    assert found["mlp.in"] == ["linear1.weight"]
    assert "head" not in found
    assert leaves(by_role(layer))["mlp.out"] == ["linear2.weight"]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2), nn.Dropout())
            self.head = nn.Linear(2, 2)

    assert names(by_role(Block()))["mlp.in"] == ["mlp.0.weight"]
    assert names(by_role(Block()))["mlp.out"] == ["mlp.2.weight"]


def test_tied_frozen_and_wrapped():
    model = build("gpt", TEXT, seed=0)
    model.head.weight = model.token.weight
    groups = by_role(model)
    assert_partition(model, groups)
    assert "head" not in groups
    assert "token.weight" in names(groups)["embedding"]
    model.blocks.requires_grad_(False)
    assert set(by_role(model)) == {"embedding", "norm"}
    assert_partition(model, by_role(model))
    normed = nn.ModuleDict({"attn": nn.ModuleDict({"q_proj": nn.Linear(3, 3)})})
    torch.nn.utils.parametrizations.weight_norm(normed["attn"]["q_proj"])
    assert_partition(normed, by_role(normed))
    assert len(names(by_role(normed))["attention.q"]) == 2
    assert names(by_role(normed))["bias"] == ["attn.q_proj.bias"]


def test_patterns():
    model = build("gpt", TEXT, seed=0)
    groups = by_pattern(model, ["blocks.0", "*.bias", "head"])
    assert_partition(model, groups)
    assert list(groups) == ["blocks.0", "*.bias", "head", "other"]
    assert all(n.startswith("blocks.0.") for n in names(groups)["blocks.0"])
    assert any(n.endswith("bias") for n in names(groups)["blocks.0"])
    assert all(n.endswith("bias") for n in names(groups)["*.bias"])
    two = by_pattern(model, {"ends": ["token", "head"], "middle": "blocks"})
    assert names(two)["ends"] == ["token.weight", "head.weight"]
    assert list(two) == ["ends", "middle", "other"]
    model.head.weight = model.token.weight
    assert names(by_pattern(model, ["head"]))["head"] == ["token.weight"]


def test_a_pattern_without_a_parameter_is_refused():
    model = build("gpt", TEXT, seed=0)
    with pytest.raises(ValueError, match=r"matched no .*'heads'; did you mean 'head.weight'"):
        by_pattern(model, ["heads"])
    with pytest.raises(ValueError, match=r"matched no \(further\) parameter: '\*.bias'"):
        by_pattern(model, {"all": "*", "bias": "*.bias"})
