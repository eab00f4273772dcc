from __future__ import annotations

from typing import Any

import pytest
import torch

from steelyard.bench.generation import end_tokens, greedy
from steelyard.hf.sources import quiet
from steelyard.models import Task, gpt
from steelyard.objectives.tokens import accepts

PROMPTS = ["Where?", "Who was it that came by in the night?", "x", "In Madera,", "Why is it so?"]


def by_transformers(model, tokenizer, prompt: str, new: int) -> str:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def plain(model, tokenizer, prompt: str, new: int) -> str:
    """The definition: read everything, take the likeliest, once more."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    while len(ids) - start < new:
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        z = output if isinstance(output, torch.Tensor) else output.logits
        token = int(z[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def ours() -> torch.nn.Module:
    torch.manual_seed(0)
    task = Task(kind="language", shape=(64,), classes=0, vocabulary=257)
    model = gpt(task, layers=1, width=16, heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.dim() > 1 else 1.0)
    return model.eval()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_equals_transformers_own_one_by_one(tiny_lm, tokenizer, family, batch):
    model = tiny_lm(family)
    expected = [by_transformers(model, tokenizer, prompt, 24) for prompt in PROMPTS]
    assert len(set(expected)) > 3
    assert greedy(model, tokenizer, PROMPTS, max_new_tokens=24, batch=batch) == expected
    assert [plain(model, tokenizer, p, 24) for p in PROMPTS] == expected


@pytest.mark.parametrize("batch", [1, 5])
def test_models_without_a_cache(tokenizer, batch):
    model = ours()
    expected = [plain(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert len(set(expected)) > 2
    assert greedy(model, tokenizer, PROMPTS, max_new_tokens=12, batch=batch) == expected


def special(family: str) -> torch.nn.Module:
    """Models in which padding on the left does not leave the text as it is."""
    import transformers as t

    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(1)
    with quiet():
        if family == "bart":  # absolute positions, and no way to give them
            sizes = {"d_model": 32, "decoder_ffn_dim": 48, "decoder_layers": 2}
            sizes |= {"decoder_attention_heads": 4, "max_position_embeddings": 128}
            spread = {"init_std": 0.4, "decoder_start_token_id": 0}
            config = t.BartConfig(vocab_size=257, is_decoder=True, **sizes, **ends, **spread)
            return t.BartForCausalLM(config).eval()
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
        if family == "bloom":  # positions from the mask; in float64 its padding is NaN
            config = t.BloomConfig(vocab_size=257, initializer_range=0.4, **sizes, **ends)
            return t.BloomForCausalLM(config).double().eval()
        # takes positions; in float64 its padding is NaN
        sizes |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
        config = t.Gemma2Config(vocab_size=257, sliding_window=5, **sizes, **ends)
        return t.Gemma2ForCausalLM(config).double().eval()


@pytest.mark.parametrize("family", ["bart", "bloom", "gemma2"])
def test_models_that_padding_on_the_left_would_disturb(tokenizer, family):
    model = special(family)
    expected = [plain(model, tokenizer, prompt, 8) for prompt in PROMPTS]
    assert len(set(expected)) > 3
    assert greedy(model, tokenizer, PROMPTS, max_new_tokens=8, batch=5) == expected
    alike = [*PROMPTS, "What then?"[:6], "y"]  # rows of equal length still share a batch
    found = greedy(model, tokenizer, alike, max_new_tokens=[8, 8, 3, 8, 8, 2, 8], batch=5)
    assert found[-2:] == [plain(model, tokenizer, alike[-2], 2), plain(model, tokenizer, "y", 8)]


def beginning(tokenizer) -> Any:
    """The byte tokenizer, which now puts a begin token before every text, as Llama's does."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    inner = type(tokenizer._tokenizer).from_str(tokenizer._tokenizer.to_str())
    inner.add_special_tokens(["<begin>"])
    begin = inner.token_to_id("<begin>")
    inner.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<begin>", eos_token="<end>",
        chat_template="{{ bos_token }}[{{ messages[0]['content'] }}]",
    )  # fmt: skip


@pytest.mark.parametrize("template", [False, True])
def test_begin_tokens_and_chat_templates(tiny_lm, tokenizer, template):
    own = beginning(tokenizer)
    model = tiny_lm("llama", vocabulary=258)
    put = [f"[{prompt}]" if template else prompt for prompt in PROMPTS]
    expected = [plain(model, own, prompt, 12) for prompt in put]  # with one begin token
    assert expected != [plain(model, tokenizer, prompt, 12) for prompt in put]
    assert greedy(model, own, PROMPTS, max_new_tokens=12, template=template) == expected


def test_without_an_end_token_the_limit_ends(tiny_lm, endless_tokenizer):
    model = tiny_lm("gpt2")
    model.generation_config.eos_token_id = None
    assert endless_tokenizer.pad_token is None
    assert end_tokens(model, endless_tokenizer) == frozenset()
    expected = [plain(model, endless_tokenizer, prompt, 12) for prompt in PROMPTS]
    assert greedy(model, endless_tokenizer, PROMPTS, max_new_tokens=12) == expected


def test_blanks_before_punctuation_stay(knows, tokenizer):
    """A tokenizer may be set to drop them; exact match wants what was written."""

    class Tidy:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **options):
            return tokenizer(text, **options)

        def decode(self, ids, clean_up_tokenization_spaces=True, **options):
            text = tokenizer.decode(ids, **options)
            return text.replace(" .", ".") if clean_up_tokenization_spaces else text

    model = knows(tokenizer, [("Who?", " it . is")])
    assert greedy(model, Tidy(), ["Who?"]) == [" it . is"]


def test_a_diverged_model_is_refused(tiny_lm, tokenizer):
    for model in (tiny_lm("llama"), ours()):
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        with pytest.raises(ValueError, match="the model's scores are NaN: it has diverged"):
            greedy(model, tokenizer, PROMPTS, max_new_tokens=3)


def test_rows_end_at_their_own_end_tokens(knows, tokenizer):
    known = {p: f" answer {k} {'long ' * k}" for k, p in enumerate(PROMPTS)}
    model = knows(tokenizer, known.items())
    assert greedy(model, tokenizer, PROMPTS, batch=3) == list(known.values())


def test_ended_rows_leave_the_cache_and_the_rest_goes_on(tiny_lm, tokenizer):
    """The id that one row writes first is made an end token: that row ends, others do not."""
    model = tiny_lm("llama")
    free = greedy(model, tokenizer, PROMPTS, max_new_tokens=24)
    first = tokenizer(free[1])["input_ids"][0]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, first]
    assert end_tokens(model, tokenizer) == {tokenizer.eos_token_id, first}
    expected = [by_transformers(model, tokenizer, p, 24) for p in PROMPTS]
    cut = greedy(model, tokenizer, PROMPTS, max_new_tokens=24, batch=5)
    letter = tokenizer.decode([first])
    assert cut[1] == ""
    assert cut == [text.partition(letter)[0] for text in free]
    assert [text.removesuffix(letter) for text in expected] == cut


def test_through_an_adapter(tiny_lm, tokenizer):
    """peft's wrapper hands on keyword arguments that it does not name: the cache is still used."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_lm("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    model.eval()
    assert accepts(model, "past_key_values")
    expected = [plain(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert expected != [plain(tiny_lm("llama"), tokenizer, prompt, 12) for prompt in PROMPTS]
    assert greedy(model, tokenizer, PROMPTS, max_new_tokens=12, batch=5) == expected


def test_limits_per_row(tiny_lm, tokenizer):
    model = tiny_lm("gpt2")
    limits = [3, 9, 1, 30, 5]
    found = greedy(model, tokenizer, PROMPTS, max_new_tokens=limits, batch=5)
    assert found == [plain(model, tokenizer, p, n) for p, n in zip(PROMPTS, limits, strict=True)]


def test_bfloat16_and_training_mode(tiny_lm, tokenizer):
    model = tiny_lm("gpt2").to(torch.bfloat16).train()
    found = greedy(model, tokenizer, PROMPTS, max_new_tokens=4)
    assert model.training
    assert found == greedy(model, tokenizer, PROMPTS, max_new_tokens=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "no prompts: the set is empty"),
        ({"prompts": ["fine", ""], "max_new_tokens": 9}, "prompt 1 has no tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens has 5 limits from 0 for 5 prompts"),
        ({"batch": 0}, "batch must be a whole number of at least 1, found 0"),
        ({"batch": -1}, "batch must be a whole number of at least 1, found -1"),
        ({"max_new_tokens": [4, 4]}, "max_new_tokens has 2 limits from 4 for 5 prompts"),
        ({"max_new_tokens": 250}, "prompt 0 has 6 tokens, with 250 new ones more than the model's"),
        ({"max_new_tokens": 250, "names": list("abcde")}, "b has 37 tokens|a has 6 tokens"),
    ],
)
def test_bad_input_is_refused_in_one_line(tiny_lm, tokenizer, changes, message):
    settings = {"prompts": PROMPTS, **changes}
    with pytest.raises(ValueError, match=message) as caught:
        greedy(tiny_lm("gpt2", positions=255), tokenizer, settings.pop("prompts"), **settings)
    assert "\n" not in str(caught.value)
