"""The cases of the exactness table that need transformers or peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .case import B, Case, Net
from .cases import EXPLICIT
from .nets import D, numbers, plain

VOCABULARY, LENGTH = 20, 6


def words() -> Tensor:
    return torch.randint(1, VOCABULARY, (B, LENGTH))


def logits(hf: nn.Module) -> nn.Module:
    return Net(lambda m, x: m.hf(input_ids=x).logits, hf=hf)


def llama_norm() -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return nn.Sequential(nn.Linear(D, D), LlamaRMSNorm(D), nn.Linear(D, 3))


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(8, D), nn.Tanh(), Conv1D(3, 8))


def low_rank(**options: Any) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=2, target_modules=["0", "3"], init_lora_weights=False, **options)
    return inject_adapter_in_model(config, plain())


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=8, n_embd=8, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return logits(GPT2LMHeadModel(config))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return logits(LlamaForCausalLM(config))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return logits(BertForSequenceClassification(config))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=8, intermediate_size=12,
        num_hidden_layers=2, num_attention_heads=2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    hf = ViTForImageClassification(config)
    return Net(lambda m, x: m.hf(pixel_values=x).logits, hf=hf)


CASES_HF = [
    Case(name="RMSNorm (Llama's)", model=llama_norm, input=numbers(5, D), quick=False),
    Case(name="Conv1D (transformers)", model=conv1d, input=numbers(5, D), quick=False),
    Case(name="LoRA (peft)", model=low_rank, input=numbers(D), quick=False),
    Case(name="DoRA (peft)", model=lambda: low_rank(use_dora=True), input=numbers(D), quick=False),
    Case(name="GPT-2", model=gpt2, input=words, quick=False, note=EXPLICIT),
    Case(name="Llama", model=llama, input=words, quick=False),
    Case(name="BERT", model=bert, input=words, quick=False, note=EXPLICIT),
    Case(name="ViT (transformers)", model=vit, input=numbers(1, 8, 8), quick=False),
]
