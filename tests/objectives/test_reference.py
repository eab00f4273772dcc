"""p0 stays what the model was, in evaluation mode, without leaving a trace on the model."""

from __future__ import annotations

import pytest
import torch

from steelyard import FlatClip, PerSample
from steelyard.objectives import CE, NPO, Reference
from steelyard.objectives.tokens import logits

peft = pytest.importorskip("peft")


def adapted(base, **options):
    config = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | options
    return peft.get_peft_model(base, peft.LoraConfig(**config)).double()


def flags(model):
    return {name: p.requires_grad for name, p in model.named_parameters()}


def modes(model):
    return {name: m.training for name, m in model.named_modules()}


@pytest.mark.parametrize("kind", ["own", "gpt2", "llama"])
def test_a_frozen_copy_does_not_follow(kind, new_model, moved, forget):
    model = new_model(kind)
    before = logits(model.eval(), forget)
    reference = Reference.of(model)
    moved(model)
    assert torch.equal(reference.logits(forget), before)
    assert not torch.allclose(logits(model, forget), before, atol=1e-2)
    assert not any(flags(reference.model).values())
    assert all(flags(model).values())


def test_a_disabled_adapter_is_the_base_and_costs_no_copy(new_model, forget):
    base = new_model("llama")
    before = logits(base, forget).detach()
    model = adapted(base)
    reference = Reference.of(model)
    assert reference.adapter_off
    assert reference.model is model
    assert torch.equal(reference.logits(forget), before)
    assert not torch.allclose(logits(model, forget), before, atol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_no_dropout_in_the_reference_whatever_the_mode(kind, new_model, forget):
    model = new_model(kind, dropout=0.5).train()
    for reference in (Reference.of(model), Reference(model)):
        once, again = reference.logits(forget), reference.logits(forget)
        assert torch.equal(once, again)
        assert not once.requires_grad
        assert not reference.hidden(forget, 0).requires_grad
    assert not torch.equal(logits(model, forget), logits(model, forget))


def test_modes_and_flags_are_put_back(new_model, forget):
    model = adapted(new_model("llama", dropout=0.5)).train()
    model.base_model.model.model.layers[0].eval()  # a user's mixture
    frozen = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight"
    model.get_parameter(frozen).requires_grad_(False)  # peft alone would unfreeze it
    reference = Reference.of(model)
    for ask in (lambda: reference.logits(forget), lambda: reference.hidden(forget, 0)):
        was = flags(model), modes(model)
        assert ask().grad_fn is None
        assert (flags(model), modes(model)) == was
    assert not flags(model)[frozen]
    assert logits(model, forget).requires_grad


def test_they_are_put_back_after_an_error_too(new_model, forget):
    model = adapted(new_model("llama", dropout=0.5)).train()
    reference = Reference.of(model)
    was = flags(model), modes(model)
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        reference.hidden(forget, "nowhere")
    assert (flags(model), modes(model)) == was
    assert model.get_model_status().enabled is True


def test_a_base_trained_beside_the_adapter_is_refused(new_model):
    model = adapted(new_model("llama"))
    model.base_model.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"lm_head.weight' is trained and no adapter disables it"):
        Reference.of(model)
    assert flags(model)["base_model.model.lm_head.weight"]
    copied = Reference.frozen(model)
    assert copied.model is not model


def test_whole_modules_saved_by_the_adapter_are_disabled_with_it(new_model, moved, forget):
    base = new_model("llama")
    before = logits(base, forget).detach()
    model = adapted(base, modules_to_save=["lm_head"])
    reference = Reference.of(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1
    assert torch.equal(reference.logits(forget), before)


def test_the_frozen_copy_of_a_peft_model_keeps_what_the_adapter_learnt(new_model, forget):
    model = adapted(new_model("llama"))
    before = logits(model, forget).detach()
    frozen = Reference.frozen(model)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * p.requires_grad
    assert torch.equal(frozen.logits(forget), before)


def test_wrappers_are_looked_through(new_model, forget):
    model = adapted(new_model("llama"))
    assert Reference.of(torch.nn.DataParallel(model)).model is model


def test_a_copy_made_while_rows_listen_stays_apart(new_model, forget):
    """Hooks of the one-pass engine travel with a deep copy; the reference must not feed them."""
    model = new_model("own")
    before = logits(model, forget).detach()
    with PerSample(model, FlatClip(1.0), expected_batch=3) as rows:
        reference = Reference.of(model)
        rows.backward(NPO().per_sample(model, forget, reference))
        first = [t.clone() for t in rows.take().tensors]
        rows.backward(NPO().per_sample(model, forget, Reference(new_model("own"))))
        second = rows.take().tensors
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(reference.logits(forget), before)


def test_a_step_between_two_questions_moves_the_model_only(new_model, forget):
    model = adapted(new_model("llama"))
    reference = Reference.of(model)
    p0 = reference.logits(forget)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (NPO()(model, forget, reference) + CE()(model, forget)).backward()
        optimizer.step()
    assert torch.equal(reference.logits(forget), p0)
    assert not torch.allclose(logits(model, forget), p0, atol=1e-3)
