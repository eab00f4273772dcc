from __future__ import annotations

import pytest
import torch

from steelyard.bench.generation import end_tokens, greedy
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
