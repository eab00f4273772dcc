"""The task vector, walked backwards."""

from __future__ import annotations

import pytest
import torch

from steelyard.objectives import negate


def test_by_hand():
    target = {"w": torch.tensor([1.0, 2.0]), "steps": torch.tensor([7])}
    tuned = {"w": torch.tensor([1.5, 1.0]), "steps": torch.tensor([9])}
    new = negate(target, tuned, 2.0)
    assert new["w"].tolist() == [0.0, 4.0]
    assert new["steps"].tolist() == [7]
    assert target["w"].tolist() == [1.0, 2.0]
    assert new["steps"] is not target["steps"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ends(dtype, new_model, moved):
    target = new_model("llama", dtype=dtype).state_dict()
    tuned = moved(new_model("llama", dtype=dtype)).state_dict()
    for name, w in negate(target, tuned, 0.0).items():
        assert torch.equal(w, target[name])
    for name, w in negate(target, tuned, -1.0).items():  # the other way round: the tuned model
        assert w.dtype == dtype
        torch.testing.assert_close(w, tuned[name])
    for name, w in negate(target, tuned).items():
        middle = (w.double() + tuned[name].double()) / 2
        torch.testing.assert_close(middle, target[name].double(), rtol=1e-2, atol=1e-2)


def test_it_loads(new_model, moved, forget):
    model = new_model("gpt2")  # with tied embeddings
    tuned = moved(new_model("gpt2"))
    start = model.transformer.wte.weight.detach().clone()
    model.load_state_dict(negate(model.state_dict(), tuned.state_dict(), 0.5))
    step = tuned.transformer.wte.weight - start
    torch.testing.assert_close(model.transformer.wte.weight, start - 0.5 * step)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_what_it_refuses():
    w = {"w": torch.zeros(2)}
    with pytest.raises(ValueError, match="'b' is in one state dict only"):
        negate(w, {**w, "b": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"'w' has shapes \[2\] and \[3\]"):
        negate(w, {"w": torch.zeros(3)})
    with pytest.raises(ValueError, match="scale=nan: use a finite number"):
        negate(w, w, float("nan"))
