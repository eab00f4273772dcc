"""Real architectures with small random weights: the rows equal autograd's, sample by sample.

Transformers' models in evaluation and training mode (dropout on) with SDPA attention, whole and as
LoRA; a ResNet with GroupNorm; the packaged MiniLM and SmolLM2 (slow). The truth is taken from the
same forward pass, one `autograd.grad` per sample, so both sides see the same dropout masks.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.models import Task
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

V, B = 50, 5
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
SDPA = {"attn_implementation": "sdpa"}


def continued(model: nn.Module, tokens: Tensor) -> Tensor:  # [B]
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


def padded(model: nn.Module, tokens: Tensor) -> Tensor:  # [B], the ends masked
    mask = torch.ones_like(tokens)
    mask[1, 6:] = mask[3, 4:] = 0
    labels = torch.arange(len(tokens)) % 2
    logits = model(input_ids=tokens, attention_mask=mask).logits
    return F.cross_entropy(logits, labels, reduction="none")


def classified(model: nn.Module, pixels: Tensor) -> Tensor:  # [B]
    found = model(pixels)
    logits = found if isinstance(found, Tensor) else found.logits
    return F.cross_entropy(logits, torch.arange(len(pixels)) % 2, reduction="none")


def translated(model: nn.Module, tokens: Tensor) -> Tensor:  # [B]
    found = model(input_ids=tokens, decoder_input_ids=tokens[:, :5])
    return F.cross_entropy(found.logits.transpose(1, 2), tokens[:, 1:6], reduction="none").mean(1)


def language(kind: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=V, bos_token_id=0, eos_token_id=1, pad_token_id=0, **options, **SDPA
        )
        return getattr(transformers, f"{kind}ForCausalLM")(config)

    return make


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32,
        bos_token_id=0, eos_token_id=1, **SDPA,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)  # tied, positions [1, T]


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=V, num_attention_heads=2, max_position_embeddings=32, **SIZE, **SDPA
    )
    return transformers.BertForSequenceClassification(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_attention_heads=2, hidden_dropout_prob=0.1, **SIZE, **SDPA
    )
    return transformers.ViTForImageClassification(config)  # bare class token and positions


def t5(**options: Any) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        decoder_start_token_id=0, **options,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)  # one table of biases for all layers


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.GroupNorm(2, c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.GroupNorm(2, c_out),
        )  # fmt: skip
        self.short = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.body(x) + self.short(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8), nn.ReLU(inplace=True),
        Residual(8, 8, 1), Residual(8, 12, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 2),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def tokens() -> Tensor:
    return torch.randint(2, V, (B, 9))


def pixels() -> Tensor:
    return torch.randn(B, 3, 8, 8)


Losses = Callable[[nn.Module, Tensor], Tensor]
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Losses]] = {
    "gpt2": (gpt2, tokens, continued),
    "llama": (language("Llama", tie_word_embeddings=True, **SIZE, **HEADS), tokens, continued),
    "qwen2": (
        language("Qwen2", **SIZE, num_attention_heads=4, num_key_value_heads=2),
        tokens,
        continued,
    ),
    "qwen3": (language("Qwen3", **SIZE, **HEADS), tokens, continued),
    "bert": (bert, tokens, padded),
    "vit": (vit, pixels, classified),
    "t5": (t5, tokens, translated),
    "t5 gated": (
        lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        tokens,
        translated,
    ),
    "resnet": (resnet, pixels, classified),
}


def norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def clipped(losses: Tensor, parameters: Sequence[Tensor], bound: float) -> list[Tensor]:
    """sum_i min(1, R / ||g_i||) g_i with one backward pass for each sample."""
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for loss in losses:
        row = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, row, strict=True)
        ]
        weight = min(1.0, bound / norm(found))
        for into, g in zip(total, found, strict=True):
            into += weight * g.double()
    return total


def assert_exact(
    model: nn.Module, batch: Tensor, losses: Losses, *, steps: int = 4, tolerance: float = 1e-6
) -> PerSample:
    """Errors are relative to the clipped sum as a whole. The last step is beyond the proof."""
    bound = 0.5 * norm(
        torch.autograd.grad(losses(model, batch)[0], trainable(model), allow_unused=True)
    )  # type: ignore[arg-type]
    rows = PerSample(model, FlatClip(bound), expected_batch=1, strict=True)
    for _ in range(steps):
        each = losses(model, batch)
        truth = clipped(each, rows.parameters, bound)
        rows.backward(each)
        got = [t.double() for t in rows.take().tensors]
        error = norm([a - b for a, b in zip(got, truth, strict=True)]) / norm(truth)
        assert error < tolerance
    assert rows.engine == "book-keeping"
    return rows


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def moved(model: nn.Module) -> nn.Module:
    """Away from zeros and ones, so that every gradient counts."""
    with torch.no_grad():
        for p in trainable(model):
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name, mode):
    torch.manual_seed(0)
    build, batch, losses = MODELS[name]
    assert_exact(moved(build()).train(mode == "train"), batch(), losses)


# which linear layers get adapters; of the ResNet, the last one
TARGETS: dict[str, Any] = {"gpt2": ["c_attn", "c_proj", "c_fc"], "resnet": ["7"]}


@pytest.mark.parametrize("name", MODELS)
def test_low_rank_adapters(name):
    torch.manual_seed(0)
    build, batch, losses = MODELS[name]
    base = build()
    config = peft.LoraConfig(
        r=2, target_modules=TARGETS.get(name, "all-linear"), init_lora_weights=False,
        lora_dropout=0.1, fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    model = peft.get_peft_model(base, config)
    assert 0 < len(trainable(model)) < len(list(model.parameters()))
    assert_exact(moved(model.train()), batch(), losses)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "lora_only"}], ids=str)
def test_other_adapters(options):
    """DoRA's magnitude is a bare parameter, and it uses the weights of other modules."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options
    )
    build = language("Qwen2", **SIZE, num_attention_heads=4, num_key_value_heads=2)
    assert_exact(moved(peft.get_peft_model(build(), config)), tokens(), continued, steps=6)


def test_an_embedding_with_adapters():
    """LoRA on an embedding: bare parameters, used through a function."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["wte"], init_lora_weights=False)
    config_gpt2 = gpt2()
    config_gpt2.config.tie_word_embeddings = False
    assert_exact(moved(peft.get_peft_model(config_gpt2, config)), tokens(), continued, steps=6)


@pytest.mark.parametrize("groups", ["all", "layer"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_micro_batches_of_real_models(name, groups):
    """Sums of one batch and of its parts; ragged parts, one of a single sample."""
    torch.manual_seed(0)
    build, batch, losses = MODELS[name]
    model, data = moved(build()).eval(), batch()
    rows = PerSample(model, FlatClip(0.5), expected_batch=1, groups=groups, strict=True)
    rows.backward(losses(model, data))
    whole = rows.take().tensors
    for part in data.split([3, 1, 1]):
        rows.backward(losses(model, part))
    pieces = rows.take().tensors
    error = norm([a - b for a, b in zip(whole, pieces, strict=True)]) / norm(whole)
    assert error < 1e-6


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit", "t5"])
def test_activation_checkpointing(name):
    torch.manual_seed(0)
    build, batch, losses = MODELS[name]
    model = moved(build()).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_exact(model, batch(), losses)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_packaged_models(name, adapter):
    """The real ones, whole and with LoRA, on real words."""
    sources = pytest.importorskip("steelyard.hf.sources")
    models = pytest.importorskip("steelyard.hf.models")
    if importlib.util.find_spec(sources.PACKAGED[name][0]) is None:
        pytest.skip(f"{name} is not installed: `steelyard data get {name}`")
    kind = "text" if name == "minilm" else "language"
    model, words = models.load_hf(name, Task(kind=kind, classes=2, shape=(16,)), adapter)
    texts = ["The capital of France is Paris.", "A man eats a piece of bread in the kitchen."]
    ids = models.encode(words, texts, 16) if name == "minilm" else words(
        [text * 3 for text in texts], return_tensors="pt", truncation=True, max_length=16
    )["input_ids"]  # fmt: skip

    def spoken(model: nn.Module, ids: Tensor) -> Tensor:  # [B]
        logits = model(ids)
        return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)

    losses = classified if name == "minilm" else spoken
    assert_exact(moved(model.train()), ids, losses, steps=2, tolerance=5e-6)
