"""Where the parameters go, and that they come back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steelyard.steps.displacements import Displacements


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def backward(net: nn.Module) -> None:
    net(torch.randn(6, 4)).square().mean().backward()


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, 0.1),
    "momentum": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda ps: torch.optim.AdamW(ps, 0.1),
    "muon": lambda ps: torch.optim.Muon(ps, 0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_real_step_and_the_state_advances_once(net, name):
    twin = copy.deepcopy(net)
    optimizer, plain = (OPTIMIZERS[name](n.parameters()) for n in (net, twin))
    for _ in range(2):
        torch.manual_seed(1)
        backward(net)
        torch.manual_seed(1)
        backward(twin)
        before = weights(net)
        moved = Displacements.from_step(optimizer)
        plain.step()
        assert same(weights(net), weights(twin))  # at x = 1, bit for bit
        for w, p, d in zip(before, net.parameters(), moved._directions["step"], strict=True):
            assert torch.equal(p.detach() - w, d)
    assert str(optimizer.state_dict()) == str(plain.state_dict())
    assert moved.names == ["step"]
    assert moved.size == 1
    assert moved.moving == [True]


def test_places_along_groups(net):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    first, second = net.parameters()
    backward(net)
    old = weights(net)
    moved = Displacements.from_step(optimizer, {"one": [first], "two": [second]})
    new = weights(net)
    with moved.at([-2.0, 0.5]):
        assert torch.allclose(first, old[0] - 2 * (new[0] - old[0]))
        assert torch.allclose(second, old[1] + 0.5 * (new[1] - old[1]))
    assert same(weights(net), new)
    with moved.at([0, 0]):
        assert same(weights(net), old)  # x = 0 is exact
    moved.commit([0.0, 1.0])
    assert torch.equal(first, old[0])
    assert torch.allclose(second, new[1])
    expected = [float((n - o).norm()) for n, o in zip(new, old, strict=True)]
    assert np.allclose(moved.norms, expected)


def test_comes_back_bit_for_bit_from_errors_and_from_anywhere(net):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    backward(net)
    grads = [p.grad.clone() for p in net.parameters()]
    moved = Displacements.from_step(optimizer)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.7)  # neither x = 0 nor x = 1
    here = weights(net)
    with pytest.raises(KeyError), moved.at([3.3]):  # noqa: PT012
        assert not same(weights(net), here)
        raise KeyError
    assert same(weights(net), here)
    assert same([p.grad for p in net.parameters()], grads)
    for bad in ([1.0, 2.0], [float("nan")]):
        with pytest.raises(ValueError, match="x must be 1 finite numbers"), moved.at(bad):
            pass
    assert same(weights(net), here)


def test_a_step_that_is_not_the_optimizers_own(net):
    calls = []

    def step():
        calls.append(torch.is_grad_enabled())
        with torch.no_grad():
            next(net.parameters()).add_(1)

    moved = Displacements.from_step(torch.optim.SGD(net.parameters(), 0.1), step=step)
    assert calls == [True]  # closures need gradients
    assert moved.norms[0] == pytest.approx(20**0.5)


def test_a_zero_direction_is_visible(net):
    first, second = net.parameters()
    backward(net)
    first.grad = None
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    moved = Displacements.from_step(optimizer, {"one": [first], "two": [second]})
    assert moved.moving == [False, True]
    assert moved.norms[0] == 0


def test_frozen_parameters_do_not_take_part(net):
    first, second = net.parameters()
    first.requires_grad_(False)
    backward(net)
    moved = Displacements.from_step(torch.optim.SGD(net.parameters(), 0.1))
    assert [id(p) for p in moved.parameters] == [id(second)]


def test_half_precision_is_rounded_once():
    p = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    d = torch.tensor([2**-9, 0.25])
    moved = Displacements([p], {"d": [d], "e": [d]})
    with moved.at([2.0, 2.0]):  # 2^-7 together; each alone is lost
        assert p.tolist() == [1 + 2**-7, 3.0]
    assert p.tolist() == [1.0, 2.0]


def test_gradients_and_named_directions(net):
    backward(net)
    grads = [p.grad for p in net.parameters()]
    down = Displacements.from_gradient(list(net.parameters()), grads, scale=0.5)
    old = weights(net)
    assert down.names == ["gradient"]
    with down.at([1.0]):
        for p, w, g in zip(net.parameters(), old, grads, strict=True):
            assert torch.allclose(p, w - 0.5 * g)
    two = Displacements.from_gradient(list(net.parameters()), {"a": grads, "b": [None, grads[1]]})
    assert two.norms[0] > two.norms[1]
    with pytest.raises(ValueError, match="direction 'd' has 1 tensors for 2 parameters"):
        Displacements(list(net.parameters()), {"d": [None]})
    with pytest.raises(ValueError, match="no direction"):
        Displacements(list(net.parameters()), {})


def test_task_vectors_move_a_live_model():
    def make(seed):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
        made[2].weight = made[0].weight  # tied
        return made

    base, one, two = make(0), make(1), make(2)
    old = copy.deepcopy(base.state_dict())
    tasks = Displacements.from_task_vectors(
        base.state_dict(), {"one": one.state_dict(), "two": two.state_dict()}
    )
    assert tasks.names == ["one", "two"]
    assert len(tasks.parameters) == len(old) - 2  # the tied weight once, no integer counter
    with tasks.at([0.25, 0.5]):
        w, a, b = old["0.weight"], one[0].weight, two[0].weight
        assert torch.allclose(base[0].weight, w + 0.25 * (a - w) + 0.5 * (b - w))
    assert all(torch.equal(v, old[k]) for k, v in base.state_dict().items())
    with pytest.raises(ValueError, match=r"task 't' has nothing for '0.weight', the base has"):
        Displacements.from_task_vectors(base.state_dict(), {"t": {}})


def test_groups_that_do_not_fit_are_refused_before_the_step(net):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    first, second = net.parameters()
    backward(net)
    before = weights(net)
    for groups, words in (
        ({"one": [first]}, r"1 parameters of the optimizer are in no group.*\[3, 5\]"),
        ({"one": [first, second], "two": [second]}, r"'two'.*\[3, 5\] that is in 'one' too"),
        ({"one": [first, second, nn.Parameter(torch.ones(7))]}, r"\[7\] that is not in the opt"),
    ):
        with pytest.raises(ValueError, match=words):
            Displacements.from_step(optimizer, groups)
    with pytest.raises(ValueError, match="no trainable parameter"):
        Displacements.from_step(torch.optim.SGD([torch.ones(2)], 0.1))
    assert same(weights(net), before)
