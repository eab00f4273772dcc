"""One table for all objectives: equal to plain loops, blind to padding, fit for every model."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from steelyard import FlatClip, PerSample
from steelyard.objectives import OBJECTIVES, KeepHidden, Reference

LAYERED = ("rmu", "keephidden")
TWINS = {name: name for name in OBJECTIVES if name not in LAYERED} | {
    "idkdpo": "dpo",
    "altpo": "dpo",
}


def make(name):
    return OBJECTIVES[name](layer=0) if name in LAYERED else OBJECTIVES[name]()


def inputs(objective, forget, pair):
    return pair if objective.needs_pair else forget


def gradient(loss, model):
    # what RMU never reaches has none
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def close(left, right, tolerance=1e-10):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.fixture
def unlearnt(new_model, moved):
    """(model, reference) of a kind, p unlike p0."""

    def build(kind="own", **options):
        model = new_model(kind, **options)
        return moved(copy.deepcopy(model)), Reference.of(model)

    return build


@pytest.mark.parametrize("name", TWINS)
def test_the_step_is_that_of_plain_loops(name, unlearnt, forget, pair, slow):
    model, reference = unlearnt()
    twin = copy.deepcopy(model)
    objective, loops = make(name), getattr(slow, TWINS[name])
    tokens = inputs(objective, forget, pair)
    for _ in range(8):
        fast = objective(model, tokens, reference)
        plain = loops(twin, reference.model, tokens)
        torch.testing.assert_close(fast, plain, atol=1e-10, rtol=1e-10)
        ours, theirs = gradient(fast, model), gradient(plain, twin)
        close(ours, theirs, 1e-8)
        with torch.no_grad():
            for p, g in zip(model.parameters(), ours, strict=True):
                p -= 0.01 * g
            for p, g in zip(twin.parameters(), theirs, strict=True):
                p -= 0.01 * g


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kind", ["own", "gpt2", "llama"])
def test_padding_and_company_change_nothing(name, kind, unlearnt, forget, pair, padded):
    model, reference = unlearnt(kind)
    objective = make(name)
    tokens = inputs(objective, forget, pair)
    whole = objective.per_sample(model, tokens, reference)
    assert whole.shape == (3,)
    assert whole.unique().numel() == 3
    torch.testing.assert_close(objective(model, tokens, reference), whole.mean())
    alone = [objective.per_sample(model, tokens.rows(slice(i, i + 1)), reference) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), whole, atol=1e-10, rtol=1e-10)
    more = objective.per_sample(model, padded(tokens, 4), reference)
    torch.testing.assert_close(more, whole, atol=1e-10, rtol=1e-10)
    close(gradient(more.mean(), model), gradient(whole.mean(), model))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_checkpointing_changes_nothing(name, unlearnt, forget, pair):
    model, reference = unlearnt("llama")
    objective = make(name)
    tokens = inputs(objective, forget, pair)
    plain = gradient(objective(model, tokens, reference), model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    close(gradient(objective(model, tokens, reference), model), plain)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_disabled_adapter_is_as_good_as_a_frozen_copy(name, new_model, forget, pair):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    base = new_model("llama")
    frozen = Reference.of(base)
    model = peft.get_peft_model(base, config).double()
    objective = make(name)
    tokens = inputs(objective, forget, pair)
    losses = [objective(model, tokens, p0) for p0 in (Reference.of(model), frozen)]
    torch.testing.assert_close(losses[0], losses[1], atol=0, rtol=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 8
    a, b = (torch.autograd.grad(loss, trained, allow_unused=True) for loss in losses)
    for left, right in zip(a, b, strict=True):
        assert (left is None) == (right is None)
        assert left is None or torch.equal(left, right)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_per_sample_losses_are_rows_for_clipping(name, new_model, forget, pair):
    """The objectives' own [B] losses under the one-pass engine, the reference an adapter away."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(new_model("llama"), config).double()
    reference = Reference.of(model)
    objective = OBJECTIVES[name](layer=1) if name in LAYERED else make(name)
    tokens = inputs(objective, forget, pair)
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = [torch.zeros_like(p) for p in trained]
    for i in range(3):
        loss = objective(model, tokens.rows(slice(i, i + 1)), reference)
        row = torch.autograd.grad(loss, trained)
        norm = torch.stack([g.norm() for g in row]).norm()
        for total, g in zip(expected, row, strict=True):
            total += g * min(1.0, 0.1 / float(norm)) / 3
    with PerSample(model, FlatClip(0.1), expected_batch=3) as rows:
        rows.backward(objective.per_sample(model, tokens, reference))
        close(rows.take().tensors, expected, 1e-7)


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if o.needs_reference])
def test_a_missing_reference_is_an_error(name, new_model, forget, pair):
    objective = make(name)
    tokens = inputs(objective, forget, pair)
    with pytest.raises(ValueError, match=r"none was given: pass Reference.of\(model\)"):
        objective(new_model(), tokens)
    with pytest.raises(ValueError, match="found GPT"):
        objective(new_model(), tokens, new_model())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_wrong_kind_of_tokens_is_an_error(name, unlearnt, forget, pair):
    model, reference = unlearnt()
    objective = make(name)
    wrong = forget if objective.needs_pair else pair
    with pytest.raises(ValueError, match="this objective takes"):
        objective(model, wrong, reference)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_without_answer_is_an_error_that_names_it(name, unlearnt, forget, pair):
    model, reference = unlearnt()
    objective = make(name)
    labels = forget.labels.clone()
    labels[1] = -100
    silent = dataclasses.replace(forget, labels=labels)
    tokens = dataclasses.replace(pair, chosen=silent) if objective.needs_pair else silent
    with pytest.raises(ValueError, match=r"no answer tokens in rows \[1\] of 3"):
        objective(model, tokens, reference)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_values(name):
    objective = make(name)
    assert objective == make(name)
    assert hash(objective) == hash(make(name))
    if fields := dataclasses.fields(objective):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(objective, fields[0].name, 1)


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if o.needs_reference])
def test_other_vocabularies_are_an_error(name, new_model, forget, pair):
    if name in ("npo", "dpo", "idkdpo", "altpo") or name == "keephidden":
        return  # they compare likelihoods or states, not vocabularies
    model = new_model("llama")
    reference = Reference.of(model)
    model.resize_token_embeddings(30)
    with pytest.raises(ValueError, match="30 tokens and the reference 24"):
        make(name)(model, inputs(make(name), forget, pair), reference)


def test_the_names_are_lower_case_and_complete():
    assert all(name == cls.__name__.lower() for name, cls in OBJECTIVES.items())
    assert KeepHidden in OBJECTIVES.values()
