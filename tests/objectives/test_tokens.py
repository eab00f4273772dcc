"""Rows to ids and back: masks, ends, cuts, and errors that name the row."""

from __future__ import annotations

import pytest
import torch

from steelyard.objectives.tokens import (
    Pair,
    Tokens,
    answer_lengths,
    encode,
    forward,
    logits,
    prompt_ids,
    token_nll,
)

A, B, C, D = 3, 4, 5, 6  # ids of the words a to d
END, BEGIN, UNKNOWN = 1, 0, 2


def test_prompts_are_masked_and_answers_end(tokenizer):
    rows = [{"input": "a b", "output": "c"}, {"input": "a", "output": "c d b"}]
    tokens = encode(tokenizer, rows, length=8)
    assert tokens.input_ids.tolist() == [[A, B, C, END, 0], [A, C, D, B, END]]
    assert tokens.labels.tolist() == [[-100, -100, C, END, -100], [-100, C, D, B, END]]
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert all(t.dtype == torch.int64 for t in (tokens.input_ids, tokens.labels))
    assert len(tokens) == 2


def test_without_end_and_with_text_between(tokenizer):
    rows = [{"input": "a", "output": "b"}]
    assert encode(tokenizer, rows, length=8, end=False).input_ids.tolist() == [[A, B]]
    between = encode(tokenizer, rows, length=8, between="d ")
    assert between.input_ids.tolist() == [[A, D, B, END]]
    assert between.labels.tolist() == [[-100, D, B, END]]


def test_the_begin_token_comes_where_the_tokenizer_has_the_habit(new_tokenizer):
    rows = [{"input": "a", "output": "b"}]
    assert encode(new_tokenizer(begins=True), rows, length=8).input_ids.tolist() == [
        [BEGIN, A, B, END]
    ]
    assert prompt_ids(new_tokenizer(begins=False), "a") == [A]


def test_an_empty_prompt_needs_a_begin_token(new_tokenizer):
    row = [{"input": "", "output": "b"}]
    tokens = encode(new_tokenizer(begins=True), row, length=8)
    assert tokens.labels.tolist() == [[-100, B, END]]
    with pytest.raises(ValueError, match="row 0: no answer token can be predicted"):
        encode(new_tokenizer(begins=False), row, length=8, end=False)


def test_a_chat_template_frames_the_prompt(new_tokenizer):
    template = "{% for m in messages %}q {{ m.content }} {% endfor %}"
    template += "{% if add_generation_prompt %}r{% endif %}"
    chat = new_tokenizer(begins=True, chat_template=template)
    q, r = 3 + "abcdefghijklmnopqrst".index("q"), 3 + "abcdefghijklmnopqrst".index("r")
    tokens = encode(chat, [{"input": "a", "output": "b"}], length=8, template=True)
    assert tokens.input_ids.tolist() == [[q, A, r, B, END]]
    assert tokens.labels.tolist() == [[-100, -100, -100, B, END]]
    with pytest.raises(ValueError, match="no chat template"):
        prompt_ids(new_tokenizer(), "a", template=True)


def test_cutting_shortens_the_answer_from_its_end(tokenizer):
    rows = [{"input": "a b", "output": "c d c d"}]
    assert encode(tokenizer, rows, length=7).input_ids.shape == (1, 7)
    cut = encode(tokenizer, rows, length=4, cut=True)
    assert cut.input_ids.tolist() == [[A, B, C, D]]
    assert cut.labels.tolist() == [[-100, -100, C, D]]
    with pytest.raises(ValueError, match=r"row 0: no answer token .* leave no room in 2"):
        encode(tokenizer, rows, length=2, cut=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "a b c", "output": "d a b"}, r"row 1 \(id x7\) has 7 tokens, more than 6"),
        ({"input": "a"}, r'row 1 \(id x7\): "output" is missing'),
        ({"output": "a"}, r'row 1 \(id x7\): "input" is missing'),
        ({"input": "a", "output": None}, r'row 1 \(id x7\): "output" is None'),
        ({"input": "a", "output": ""}, r"row 1 \(id x7\): the answer '' has no tokens"),
        ({"input": "a", "output": "  "}, r"row 1 \(id x7\): the answer '  ' has no tokens"),
    ],
)
def test_errors_name_the_row(tokenizer, row, message):
    rows = [{"id": "x6", "input": "a", "output": "b"}, {"id": "x7", **row}]
    with pytest.raises(ValueError, match=message):
        encode(tokenizer, rows, length=6, end=True)


def test_an_answer_of_nothing_is_an_error_also_with_text_between(tokenizer):
    with pytest.raises(ValueError, match="has no tokens"):
        encode(tokenizer, [{"input": "a", "output": ""}], length=9, between="d ")


def test_no_rows_and_no_end_are_errors(tokenizer, new_tokenizer):
    with pytest.raises(ValueError, match="no rows to encode: the set is empty"):
        encode(tokenizer, [], length=8)
    endless = new_tokenizer(eos_token=None)
    with pytest.raises(ValueError, match="the tokenizer has no end token"):
        encode(endless, [{"input": "a", "output": "b"}], length=8)
    assert len(encode(endless, [{"input": "a", "output": "b"}], length=8, end=False)) == 1


def test_tokens_refuse_what_is_no_right_padded_batch(forget):
    ids, labels, mask = forget.input_ids, forget.labels, forget.attention_mask
    with pytest.raises(ValueError, match=r"labels has shape \[3, 7\]"):
        Tokens(ids, labels[:, 1:], mask)
    with pytest.raises(ValueError, match="input_ids has shape"):
        Tokens(ids[0], labels[0], mask[0])
    with pytest.raises(ValueError, match=r"attention_mask is torch\.bool: use int64"):
        Tokens(ids, labels, mask.bool())
    with pytest.raises(ValueError, match="pad on the right"):
        Tokens(ids.flip(1), labels.flip(1), mask.flip(1))
    with pytest.raises(ValueError, match="labels name tokens of the padding"):
        Tokens(ids, labels.where(mask == 1, 5), mask)
    shifted = labels.roll(-1, 1).where(labels != -100, -100)  # the last of an answer: its padding
    with pytest.raises(ValueError, match="not the tokens in their place: do not shift them"):
        Tokens(ids, shifted.where(shifted != -100, labels), mask)
    with pytest.raises(ValueError, match="0 along a whole row"):
        Tokens(ids, torch.full_like(labels, -100), torch.zeros_like(mask))


def test_rows_and_trimming(forget):
    one = forget.rows(slice(1, 2))
    assert one.input_ids.shape == (1, 8)
    assert one.trimmed().input_ids.tolist() == [forget.input_ids[1, :3].tolist()]
    assert one.trimmed().labels.tolist() == [forget.labels[1, :3].tolist()]
    picked = forget.rows(torch.tensor([2, 0]))
    assert torch.equal(picked.labels, forget.labels[[2, 0]])
    assert len(forget.rows(slice(0, 0)).trimmed()) == 0
    assert forget.to("cpu").device.type == "cpu"


def test_a_pair_has_one_of_each(forget, pair):
    with pytest.raises(ValueError, match="2 chosen rows beside 3 rejected ones"):
        Pair(pair.chosen.rows(slice(0, 2)), forget)
    two = pair.rows(slice(1, 3)).to("cpu")
    assert len(two) == 2
    assert torch.equal(two.chosen.labels, pair.chosen.labels[1:])
    assert torch.equal(two.rejected.labels, pair.rejected.labels[1:])


def test_token_nll_by_hand():
    """Three words: z = log of the probabilities, so NLL_t = -log p of the next label."""
    p = torch.tensor([[[0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]]])
    labels = torch.tensor([[-100, -100, 2, 0]])
    nll, mask = token_nll(p.log(), labels)
    assert mask.tolist() == [[False, True, True]]
    torch.testing.assert_close(nll, -torch.tensor([[1.0, 0.8, 0.25]]).log())
    assert answer_lengths(mask).tolist() == [2]


def test_masked_places_carry_no_gradient():
    z = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[-100, -100, 3, 4, -100], [6, -100, -100, 1, 2]])
    nll, mask = token_nll(z, labels)
    nll.sum().backward()
    assert z.grad is not None
    reached = z.grad.abs().sum(-1) > 0
    assert torch.equal(reached[:, :-1], mask)  # a label in column 0 has nothing in front of it
    assert not reached[:, -1].any()


def test_rows_without_labels_are_named():
    mask = torch.tensor([[True], [False], [True], [False]])
    with pytest.raises(ValueError, match=r"no answer tokens in rows \[1, 3\] of 4"):
        answer_lengths(mask)


@pytest.mark.parametrize("kind", ["own", "gpt2", "llama"])
def test_logits_are_those_of_unpadded_rows(kind, new_model, forget):
    model = new_model(kind)
    z = logits(model, forget)
    assert z.shape == (3, 8, 24)
    alone = logits(model, forget.rows(slice(1, 2)).trimmed())
    torch.testing.assert_close(z[1:2, :3], alone)


def test_half_precision_models_give_float32(new_model, forget):
    assert logits(new_model("llama", dtype=torch.bfloat16), forget).dtype == torch.float32
    assert logits(new_model("llama", dtype=torch.float64), forget).dtype == torch.float64


def test_masks_reach_models_through_wrappers(new_model, forget):
    """The mask is handed on through peft and torch.nn wrappers, and no cache is built."""
    peft = pytest.importorskip("peft")
    seen = {}

    def look(module, args, kwargs):
        seen.update(kwargs)

    for wrap in (
        lambda m: m,
        torch.nn.DataParallel,
        lambda m: peft.get_peft_model(m, peft.LoraConfig(target_modules=["q_proj"])),
    ):
        inner = new_model("llama")
        handle = inner.model.register_forward_pre_hook(look, with_kwargs=True)
        seen.clear()
        forward(wrap(inner), forget)
        assert torch.equal(seen["attention_mask"], forget.attention_mask)
        assert seen["use_cache"] is False
        handle.remove()
    wrapped = peft.get_peft_model(new_model("own"), peft.LoraConfig(target_modules=["qkv"]))
    assert forward(wrapped, forget).shape == (3, 8, 24)
