from __future__ import annotations

import random
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from steelyard.runs.checkpoint import load_checkpoint, save_checkpoint
from steelyard.runs.states import bytes_of, plain, random_states, restore_random_states


def test_every_plain_type_comes_back_equal(tmp_path):
    point = namedtuple("point", "x y")
    states = {
        "numbers": [1, -1.5, True, None, 2**80, float("inf"), np.float64(0.1), np.int64(3)],
        "text": "epsilon ε",
        "bytes": b"\x00\xff",
        "tuple": (1, (2.0, "x")),
        "by index": {0: {"m": torch.arange(3)}, 1: {}},
        "subclasses": OrderedDict(p=point(1, 2)),
        "types": [torch.bfloat16, torch.device("cpu")],
        "parameter": nn.Parameter(torch.ones(2)),
        "tensors": [torch.tensor(float("nan")), torch.empty(0), torch.tensor([True])],
    }
    save_checkpoint(tmp_path, 7, run_id="r", model={}, states=states)
    found = load_checkpoint(tmp_path)
    assert (found.step, found.run_id, found.notices) == (7, "r", [])
    back = found.states
    assert back["numbers"] == [1, -1.5, True, None, 2**80, float("inf"), 0.1, 3]
    assert type(back["numbers"][2]) is bool
    for name in ("text", "bytes", "tuple", "types"):
        assert back[name] == states[name]
    assert back["subclasses"] == {"p": (1, 2)}
    assert type(back["subclasses"]) is dict
    assert torch.equal(back["by index"][0]["m"], torch.arange(3))
    assert back["by index"][1] == {}
    assert not back["parameter"].requires_grad
    assert torch.equal(back["parameter"], torch.ones(2))
    nan, empty, flag = back["tensors"]
    assert nan.isnan()
    assert empty.shape == (0,)
    assert flag.dtype == torch.bool


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_model_tensors_come_back_bit_exactly(tmp_path, dtype):
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    model = {
        "plain": torch.randn(5, 3).mul(9).to(dtype),
        "transposed": torch.randn(5, 3).mul(9).to(dtype).t(),
        "channels last": image,
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
    }
    save_checkpoint(tmp_path, 0, run_id="r", model=model, states={})
    found = load_checkpoint(tmp_path).model
    assert found.keys() == model.keys()
    for name, tensor in model.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_training_goes_on_bit_exactly(tmp_path):
    def new():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, amsgrad=True)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def train(model, optimizer, schedule, steps):
        for _ in range(steps):
            model(torch.randn(16, 4) + np.random.rand()).square().mean().backward()  # noqa: NPY002
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    straight = new()
    train(*straight, 3)
    model, optimizer, schedule = straight
    states = {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": random_states(),
    }
    save_checkpoint(tmp_path, 3, run_id="r", model=model.state_dict(), states=states)
    train(*straight, 4)

    resumed = new()
    found = load_checkpoint(tmp_path, run_id="r")
    for part, state in zip(resumed, (found.model, *found.states.values()), strict=False):
        part.load_state_dict(state)
    assert restore_random_states(found.states["random"]) == []
    train(*resumed, 4)
    for a, b in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert straight[2].get_last_lr() == resumed[2].get_last_lr()


def test_tied_tensors_are_saved_once_and_stay_tied(tmp_path):
    model = nn.ModuleDict({"embed": nn.Embedding(100, 16), "head": nn.Linear(16, 100, bias=False)})
    model["head"].weight = model["embed"].weight
    path = save_checkpoint(tmp_path, 1, run_id="r", model=model.state_dict(), states={})
    assert (path / "model.safetensors").stat().st_size < 1.5 * 100 * 16 * 4
    found = load_checkpoint(tmp_path).model
    assert found["head.weight"] is found["embed.weight"]
    assert torch.equal(found["head.weight"], model["embed"].weight)
    model.load_state_dict(found)


def test_overlapping_tensors_keep_their_values(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    model = {"all": base, "row": base[1], "flat": base.view(-1), "t": base.t()}
    save_checkpoint(tmp_path, 1, run_id="r", model=model, states={})
    found = load_checkpoint(tmp_path).model
    assert all(torch.equal(found[name], model[name]) for name in model)


def test_a_view_does_not_save_its_base(tmp_path):
    view = torch.zeros(1_000_000)[:10]
    path = save_checkpoint(tmp_path, 1, run_id="r", model={"v": view}, states={"v": view})
    assert sum(file.stat().st_size for file in path.iterdir()) < 10_000


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({"f": {"hook": [print]}}, r"states\['f'\]\['hook'\]\[0\] is a builtin_function_or_method"),
        ({"x": np.zeros(2)}, r"states\['x'\] is a ndarray"),
        ({"x": {1, 2}}, r"states\['x'\] is a set"),
        ({"x": torch.Generator()}, r"states\['x'\] is a Generator"),
        ({"x": {1.5: 0}}, r"states\['x'\] has the key 1.5"),
        ({"x": torch.eye(2).to_sparse()}, r"states\['x'\] is a sparse tensor"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named(tmp_path, states, says):
    with pytest.raises(ValueError, match=says):
        save_checkpoint(tmp_path / "c", 1, run_id="r", model={}, states=states)
    assert not (tmp_path / "c").exists()


def test_a_model_entry_that_is_no_tensor_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model\['extra'\] is a dict, not a tensor"):
        save_checkpoint(tmp_path, 1, run_id="r", model={"extra": {}}, states={})  # type: ignore


# --- random states -------------------------------------------------------------------------------


def draws() -> list:
    return [
        random.random(),
        random.gauss(0, 1),  # caches a second number
        random.getrandbits(70),
        np.random.rand(),  # noqa: NPY002
        np.random.randn(3).tolist(),  # noqa: NPY002 - three: caches a fourth
        torch.randn(5).tolist(),
        torch.rand(1, dtype=torch.float64).item(),
    ]


def test_random_states_are_bit_exact_through_a_checkpoint(tmp_path):
    draws()
    save_checkpoint(tmp_path, 1, run_id="r", model={}, states={"random": random_states()})
    expected = [draws(), draws()]
    assert [draws(), draws()] != expected
    assert restore_random_states(load_checkpoint(tmp_path).states["random"]) == []
    assert [draws(), draws()] == expected


def test_reading_random_states_draws_nothing():
    first = random_states()
    assert plain(first, "random").keys() == {"python", "numpy", "torch", "cuda"}
    expected = draws()
    restore_random_states(first)
    random_states()
    assert draws() == expected


def test_cuda_states_that_find_no_device_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    states = random_states() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    (notice,) = restore_random_states(states)
    assert notice == "random states of 2 CUDA devices saved, 0 here: draws differ"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_are_bit_exact():
    torch.randn(3, device="cuda")
    states = plain(random_states(), "random")
    expected = torch.randn(100, device="cuda")
    restore_random_states(states)
    assert torch.equal(torch.randn(100, device="cuda"), expected)


def test_size_is_about_right():
    states = {"a": torch.zeros(1000), "b": ["x" * 100, 1, (torch.zeros(10, dtype=torch.uint8),)]}
    assert 4110 < bytes_of(states) < 6000
