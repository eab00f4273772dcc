from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steelyard.hf.models import Logits, encode, load_hf, save_hf
from steelyard.hf.sources import PACKAGED, quiet
from steelyard.models import Task

TEXT = Task(kind="text", classes=3, shape=(8,))
LANGUAGE = Task(kind="language", shape=(8,))
IMAGE = Task(kind="image", classes=3, shape=(12, 12, 1))
CASES = [
    (family, task, adapter)
    for adapter in ("lora", "full")
    for family, task in [
        ("bert", TEXT),
        ("llama", TEXT),
        ("llama", LANGUAGE),
        ("gpt2", TEXT),
        ("vit", IMAGE),
    ]
]


@pytest.mark.parametrize(("family", "task", "adapter"), CASES)
def test_a_sample_s_logits_depend_on_that_sample_only(folder, family, task, adapter, batch):
    module, _ = load_hf(folder[family], task, adapter)
    module, x = module.double(), batch(task)
    x = x.double() if task.kind == "image" else x
    changed = x.clone()
    changed[1] = batch(task, 5)[4]
    before, after = module(x), module(changed)
    assert torch.allclose(before[[0, 2]], after[[0, 2]], rtol=0, atol=1e-12)
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("adapter", ["lora", "bias"])
def test_what_is_not_pretrained_is_a_function_of_the_seed(folder, adapter):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_hf(folder["gpt2"], TEXT, adapter, seed=1)[0].state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = load_hf(folder["gpt2"], TEXT, adapter, seed=1)[0].state_dict()
    other = load_hf(folder["gpt2"], TEXT, adapter, seed=2)[0].state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    changed = {key for key in first if not torch.equal(first[key], other[key])}
    assert all("score" in key or "lora_A" in key for key in changed)
    assert any("score" in key for key in changed)


def test_is_quiet_and_leaves_logging_as_it_was(folder, capfd):
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as theirs

    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    theirs.add_handler(handler)
    theirs.set_verbosity(logging.WARNING)
    state = theirs.is_progress_bar_enabled(), are_progress_bars_disabled()
    module, words = load_hf(folder["gpt2"], TEXT)  # a new head, no padding token, Conv1D
    module(encode(words, ["good film", ""], 8))
    theirs.remove_handler(handler)
    assert records == []
    assert capfd.readouterr() == ("", "")
    assert theirs.get_verbosity() == logging.WARNING
    assert state == (theirs.is_progress_bar_enabled(), are_progress_bars_disabled())


def test_attention_skips_padding_but_never_everything():
    class Model(nn.Module):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=attention_mask)

    tokens = torch.tensor([[5, 6, 0], [0, 0, 0]])
    assert Logits(Model(), kind="text", pad=0)(tokens).tolist() == [[1, 1, 0], [1, 0, 0]]


def test_encode_cuts_pads_on_the_right_and_takes_nothing(tokenizer):
    words = tokenizer(pad=True)
    words.padding_side = "left"
    ids = encode(words, ["good film", "a very very very bad dull film", ""], 4)
    assert ids.dtype == torch.int64
    assert ids.tolist()[0][2:] == [0, 0]
    assert (ids[1] != 0).all()
    assert ids.tolist()[2] == [0, 0, 0, 0]
    assert encode(words, [], 4).shape == (0, 4)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_padding_does_not_change_a_text_and_an_empty_text_is_finite(folder, family):
    module, words = load_hf(folder[family], TEXT, "full")
    short = module(encode(words, ["a good film", ""], 4))
    long = module(encode(words, ["a good film", ""], 8))
    assert torch.isfinite(short).all()
    torch.testing.assert_close(short, long)


def test_padding_does_not_change_the_language_logits_before_it(folder):
    module, words = load_hf(folder["llama"], LANGUAGE, "full")
    short, long = (module(encode(words, ["a good film"], n))[:, :3] for n in (4, 8))
    torch.testing.assert_close(short, long)


def test_images_are_fitted_to_the_model(folder):
    module, _ = load_hf(folder["vit"], IMAGE, "head")
    grey = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(module(grey), module(grey.expand(-1, 3, -1, -1)))
    assert module(torch.randn(2, 3, 40, 24)).shape == (2, 3)


@pytest.mark.parametrize(("family", "task"), [("bert", TEXT), ("gpt2", TEXT), ("llama", LANGUAGE)])
def test_a_saved_adapter_loads_again_by_peft(folder, tmp_path, family, task, batch):
    import peft

    module, words = load_hf(folder[family], task, "lora")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    save_hf(module, tmp_path, words)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".json", ".safetensors", ".md"}
    auto, options = peft.AutoPeftModelForCausalLM, {}
    if task.kind == "text":
        auto, options = (
            peft.AutoPeftModelForSequenceClassification,
            {"num_labels": 3, "ignore_mismatched_sizes": True},
        )
    with quiet():
        again = auto.from_pretrained(tmp_path, dtype=torch.float32, **options)
    again.config.pad_token_id = words.pad_token_id
    loaded = Logits(again.eval(), kind=task.kind, pad=words.pad_token_id)
    torch.testing.assert_close(loaded(batch(task)), module(batch(task)))


def test_a_saved_model_loads_again(folder, tmp_path, batch):
    module, words = load_hf(folder["bert"], TEXT, "bias")
    save_hf(module, tmp_path, words)
    again, _ = load_hf(str(tmp_path), TEXT, "head", seed=9)  # another seed: the head is not new
    torch.testing.assert_close(again(batch(TEXT)), module(batch(TEXT)))


def test_a_head_for_other_classes_is_new_and_seeded(folder, batch):
    task = Task(kind="text", classes=5, shape=(8,))
    a, b, c = (load_hf(folder["bert"], task, "head", seed=s)[0](batch(TEXT)) for s in (0, 0, 1))
    assert a.shape == (3, 5)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_importing_loads_no_hugging_face_library():
    code = (
        "import sys, steelyard.hf.models\n"
        "bad = {'transformers', 'peft', 'huggingface_hub', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(repr(bad) if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def packaged(name: str) -> None:
    package = PACKAGED[name][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} is not installed: `steelyard data get {name}`")


def test_minilm(trainable):
    packaged("minilm")
    module, words = load_hf("minilm", Task(kind="text", classes=2, shape=(16,)), "lora")
    assert trainable(module) == 6 * 2 * 2 * 8 * 384 + 2 * 384 + 2
    texts = ["A man is eating food.", "A man eats a piece of bread.", "The sky is blue today."]
    ids = encode(words, texts, 16)
    assert module(ids).shape == (3, 2)
    with torch.no_grad():  # the published model: mean pooling knows which two sentences are close
        states = module.hf.get_base_model().bert(ids, attention_mask=(ids != 0).long())[0]
    pooled = (states * (ids != 0).unsqueeze(-1)).sum(1)
    near, far = torch.cosine_similarity(pooled[:1], pooled[1:])
    assert near > 0.7
    assert far < 0.3


@pytest.mark.slow
def test_smollm2_speaks_and_saves(tmp_path, trainable):
    packaged("smollm2")
    module, words = load_hf("smollm2", Task(kind="language", shape=(16,)), "lora")
    assert trainable(module) == 30 * 8 * ((576 + 576) + (576 + 192))
    ids = words("The capital of France is", return_tensors="pt")["input_ids"]
    assert words.decode(module(ids)[0, -1].argmax()).strip() == "Paris"
    module.hf.get_base_model().save_pretrained(tmp_path)  # refused as "quantised" if not rebuilt
    assert (tmp_path / "model.safetensors").stat().st_size > 5e8
