"""RMU's two rows: known values, one direction per seed, and the layer that is meant."""

from __future__ import annotations

import copy

import pytest
import torch

from steelyard.objectives import RMU, KeepHidden, Reference
from steelyard.objectives.tokens import Tokens

LAYERS = {"own": "blocks.0", "gpt2": "transformer.h.0", "llama": "model.layers.0"}


class States(torch.nn.Module):
    """A decoder of one layer: the states are an embedding."""

    def __init__(self, table):
        super().__init__()
        self.embedding = torch.nn.Embedding.from_pretrained(table, freeze=False)
        self.blocks = torch.nn.Sequential(torch.nn.Identity())
        self.head = torch.nn.Linear(table.shape[1], 5, dtype=table.dtype)

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)))


@pytest.fixture
def two() -> Tokens:
    """Row 0 answers with tokens 1 and 2, row 1 with 3; token 0 is prompt or padding."""
    ids = torch.tensor([[0, 1, 2], [0, 3, 0]])
    labels = torch.tensor([[-100, 1, 2], [-100, 3, -100]])
    return Tokens(ids, labels, torch.tensor([[1, 1, 1], [1, 1, 0]]))


def test_the_direction_is_a_unit_vector_of_its_seed():
    v = RMU(seed=3).direction(64)
    assert v.norm().item() == pytest.approx(1, abs=1e-6)
    assert bool((v >= 0).all())
    assert v.std() > 0.3 * v.mean()  # uniform on [0, 1): sd / mean = 0.58
    assert torch.equal(RMU(seed=3).direction(64), v)
    assert not torch.equal(RMU(seed=4).direction(64), v)
    before = torch.get_rng_state()
    RMU().direction(8)
    assert torch.equal(torch.get_rng_state(), before)


def test_known_values(two):
    """States 0, s v + 1 and s v + 2 at the answers, something wild elsewhere: MSE 0, 1 and 4."""
    objective = RMU(layer=0, steering=3.0)
    target = 3 * objective.direction(4).double()
    table = torch.stack([target + 1e6, target, target + 1, target + 2, target])
    got = objective.per_sample(States(table), two)
    torch.testing.assert_close(got, torch.tensor([0.5, 4.0]).double())
    keep = KeepHidden(layer=0)
    reference = Reference(States(table - torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0])[:, None]))
    got = keep.per_sample(States(table), two, reference)
    torch.testing.assert_close(got, torch.tensor([0.5, 4.0]).double())


@pytest.mark.parametrize("kind", LAYERS)
def test_both_rows_are_those_of_plain_loops(kind, new_model, moved, forget):
    model = new_model(kind)
    reference = Reference.of(model)
    moved(model)
    states = {}

    def read(which):
        def hook(module, inputs, output):
            states[which] = output[0] if isinstance(output, tuple) else output

        return hook

    model.get_submodule(LAYERS[kind]).register_forward_hook(read("h"))
    reference.model.get_submodule(LAYERS[kind]).register_forward_hook(read("h0"))
    v = 6.5 * RMU(seed=5).direction(8).double()
    steer, keep = [], []
    for i in range(3):
        size = int(forget.attention_mask[i].sum())
        ids = forget.input_ids[i, :size][None]
        model(ids)
        reference.model(ids)
        of_answer = [t for t in range(size) if forget.labels[i, t] != -100]
        steer.append(
            sum(((states["h"][0, t] - v) ** 2).sum() / 8 for t in of_answer) / len(of_answer)
        )
        keep.append(
            sum(((states["h"][0, t] - states["h0"][0, t]) ** 2).sum() / 8 for t in of_answer)
            / len(of_answer)
        )
    rmu = RMU(layer=0, steering=6.5, seed=5)
    torch.testing.assert_close(rmu.per_sample(model, forget), torch.stack(steer), rtol=1e-6, atol=0)
    kept = KeepHidden(layer=LAYERS[kind])
    torch.testing.assert_close(kept.per_sample(model, forget, reference), torch.stack(keep))


def test_public_code_divides_through_a_broadcast(two):
    """mean(sums) * mean(1 / lengths) there, the mean of sums / lengths here."""
    objective = RMU(layer=0, steering=3.0)
    target = 3 * objective.direction(4).double()
    model = States(torch.stack([target, target, target + 1, target + 2, target]))
    ours = objective(model, two).item()
    mask = two.labels != -100
    sums = ((model.embedding(two.input_ids) - target) ** 2).mean(-1).mul(mask).sum(1)
    public = (sums / mask.sum(-1, keepdim=True)).mean().item()
    assert ours == pytest.approx((0.5 + 4) / 2)
    assert public == pytest.approx((1 + 4) / 2 * (1 / 2 + 1) / 2)


def test_keeping_is_at_rest_at_the_reference(new_model, moved, forget):
    model = new_model()
    reference = Reference.of(model)
    loss = KeepHidden(layer=-1)(model, forget, reference)
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_later_layers_are_not_moved(new_model, forget):
    model = new_model("llama", layers=3)
    RMU(layer=1)(model, forget).backward()
    for name, p in model.named_parameters():
        later = "layers.2" in name or name in ("lm_head.weight", "model.norm.weight")
        assert (p.grad is None or not p.grad.any()) == later, name


def test_states_that_nothing_trained_reaches_are_an_error(new_model, forget):
    model = new_model("llama").requires_grad_(False)
    with pytest.raises(ValueError, match=r"reaches layer 0 \(the model has no trainable parameter"):
        RMU(layer=0)(model, forget)
    model.model.layers[1].requires_grad_(True)
    with pytest.raises(ValueError, match="only later layers are trained"):
        RMU(layer=0)(model, forget)
    assert RMU(layer=1)(model, forget).requires_grad
    with torch.no_grad():
        assert float(RMU(layer=0)(model, forget)) > 0


def test_half_precision_states_are_compared_in_float32(new_model, forget):
    model = new_model("llama", dtype=torch.bfloat16)
    loss = RMU(layer=0)(model, forget)
    assert loss.dtype == torch.float32
    wide = copy.deepcopy(model).float()
    torch.testing.assert_close(loss, RMU(layer=0)(wide, forget), rtol=0.05, atol=0.05)
