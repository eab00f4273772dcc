"""Between backward and step: the table in attach's docstring, and what users do around it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.filters.attach import attach, is_private
from steelyard.filters.chain import chain
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

B = 4


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))


def losses(net: nn.Module, n: int = B) -> Tensor:  # [n]
    return net(torch.randn(n, 3)).square().sum(1)


def setup(sigma: float = 0.0, lr: float = 0.1, **options: Any):
    net = model()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    attached = attach(optimizer, rows, Gaussian(sigma, seed=0), **options)
    return net, rows, optimizer, attached


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- the optimizer's own step is untouched, whichever it is ---------------------------------------

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd foreach": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, foreach=True),
    "sgd fused": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, fused=True),
    "sgd maximise": lambda ps: torch.optim.SGD(ps, lr=0.1, maximize=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.1),
    "adamw foreach": lambda ps: torch.optim.AdamW(ps, lr=0.1, foreach=True, amsgrad=True),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, lr=0.1, fused=True),
    "muon": lambda ps: torch.optim.Muon(ps, lr=0.1),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1),
    "tensor lr": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(0.1)),
    "two groups": lambda ps: torch.optim.SGD(
        [{"params": [p], "lr": lr} for p, lr in zip(ps, (0.0, 0.1), strict=True)]
    ),
}


@pytest.mark.parametrize("zero", ["none", "zeros", "forgotten"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_steps_on_exactly_the_released_gradient(name, zero):
    net = model()
    twin = copy.deepcopy(net)
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    one, other = (OPTIMIZERS[name](m.parameters()) for m in (net, twin))
    attach(one, rows, Gaussian(0.8, seed=3))
    shadow, mechanism = PerSample(twin, FlatClip(0.5), expected_batch=B), Gaussian(0.8, seed=3)
    for _ in range(4):
        x = torch.randn(B, 3)
        rows.backward(net(x).square().sum(1))
        one.step()
        shadow.backward(twin(x).square().sum(1))
        released = mechanism.privatise(shadow.take())
        for p, q, tensor in zip(net.parameters(), twin.parameters(), released.tensors, strict=True):
            assert p.grad is not None
            assert torch.equal(p.grad, tensor)
            q.grad = tensor
        other.step()
        assert same(weights(net), weights(twin))
        if zero != "forgotten":
            one.zero_grad(set_to_none=zero == "none")


def test_a_learning_rate_schedule_and_a_disabled_scaler_change_nothing():
    """Nothing needs loss scaling here; a loop that carries a disabled scaler works."""
    net, rows, optimizer, _ = setup(lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    before = weights(net)
    for step in range(3):
        rows.backward(scaler.scale(losses(net)))  # type: ignore[arg-type]
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        assert same(before, weights(net)) == (step == 0)  # the warm-up's first rate is 0


def test_parameters_of_lower_precision_get_gradients_of_their_own_dtype():
    net = model().bfloat16()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer, rows, Gaussian(1.0))
    rows.backward(net(torch.randn(B, 3).bfloat16()).float().square().sum(1))
    optimizer.step()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in net.parameters())


def test_an_optimizer_that_holds_only_some_of_the_parameters():
    net = model()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.SGD([net[0].weight], lr=0.1)
    attach(optimizer, rows, Gaussian(1.0))
    before = weights(net)
    rows.backward(losses(net))
    optimizer.step()
    assert [torch.equal(a, b) for a, b in zip(before, weights(net), strict=True)] == [False, True]


# -- steps that must not happen ---------------------------------------------------------------


def test_a_step_without_a_backward_raises_and_changes_nothing():
    net, rows, optimizer, _ = setup(sigma=1.0)
    before = weights(net)
    with pytest.raises(RuntimeError, match=r"without rows\.backward"):
        optimizer.step()
    rows.backward(losses(net))
    optimizer.step()
    after = weights(net)
    with pytest.raises(RuntimeError, match=r"without rows\.backward"):
        optimizer.step()  # the second of two
    assert not same(before, after)
    assert same(after, weights(net))


@pytest.mark.parametrize("how", ["positional", "keyword"])
def test_a_closure_is_refused(how):
    net, rows, optimizer, _ = setup()
    rows.backward(losses(net))

    def closure() -> float:
        raise AssertionError("called")

    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(closure) if how == "positional" else optimizer.step(closure=closure)
    optimizer.step(None)
    rows.backward(losses(net))
    optimizer.step(closure=None)


def test_lbfgs_needs_a_closure_and_is_refused():
    net = model()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.LBFGS(net.parameters())
    attach(optimizer, rows, Gaussian(1.0))
    rows.backward(losses(net))
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(lambda: 0.0)


FOREIGN = {
    "before the rows' backward": lambda net, rows: (
        losses(net).sum().backward(),
        rows.backward(losses(net)),
    ),
    "after the rows' backward": lambda net, rows: (
        rows.backward(losses(net)),
        losses(net).sum().backward(),
    ),
    "instead of the rows' backward": lambda net, rows: losses(net).sum().backward(),
}


@pytest.mark.parametrize("after_a_step", [False, True])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("lr", [0.1, 0.0])
@pytest.mark.parametrize("when", FOREIGN)
def test_a_gradient_from_elsewhere_never_reaches_the_optimizer(when, lr, zero, after_a_step):
    """Not its weights, and not its momentum: not even at the first rate of a warm-up, zero."""
    net, rows, optimizer, _ = setup(sigma=1.0, lr=lr)
    if after_a_step:
        rows.backward(losses(net))
        optimizer.step()
        if zero:
            optimizer.zero_grad()
    before, state = weights(net), copy.deepcopy(optimizer.state_dict())
    FOREIGN[when](net, rows)
    with pytest.raises(RuntimeError, match=r"did not come from|without rows"):
        optimizer.step()
    assert same(before, weights(net))
    now = optimizer.state_dict()["state"]
    assert now.keys() == state["state"].keys()
    for key, values in state["state"].items():
        assert torch.equal(now[key]["momentum_buffer"], values["momentum_buffer"])
    optimizer.zero_grad()
    rows.backward(losses(net))
    optimizer.step()


def test_a_parameter_that_the_rows_do_not_cover_is_refused():
    net = model()
    stranger = nn.Parameter(torch.zeros(7))
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    with pytest.raises(ValueError, match=r"shape \[7\].*do not cover"):
        attach(torch.optim.SGD([*net.parameters(), stranger], lr=0.1), rows, Gaussian(1.0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer, rows, Gaussian(1.0))
    optimizer.add_param_group({"params": [stranger]})  # later
    stranger.grad = torch.ones(7)
    rows.backward(losses(net))
    with pytest.raises(RuntimeError, match=r"shape \[7\]"):
        optimizer.step()
    assert not stranger.any()


def test_detach_leaves_the_optimizer_as_it_was():
    net, rows, optimizer, attached = setup()
    attached.detach()
    rows.close()
    losses(net).sum().backward()
    optimizer.step()


def test_an_optimizer_knows_whether_it_is_private():
    net, _, optimizer, attached = setup()
    assert is_private(optimizer)
    assert not is_private(torch.optim.SGD(net.parameters(), lr=0.1))
    attached.detach()
    assert not is_private(optimizer)


class Part:
    """A filter that asks whom it works with."""

    def __init__(self, fails: bool = False):
        self.fails, self.met, self.removed = fails, [], 0

    def filter(self, gradient):
        return gradient

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def connect(self, optimizer, rows):
        if self.fails:
            raise ValueError("not with these rows")
        self.met.append((optimizer, rows))
        return [self]

    def remove(self):
        self.removed += 1


def test_parts_of_a_chain_are_told_whom_they_work_with():
    net, part = model(), Part()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attached = attach(optimizer, rows, chain(Gaussian(0.0, seed=0), part))
    assert part.met == [(optimizer, rows)]
    attached.detach()
    assert part.removed == 1


def test_a_part_that_refuses_leaves_nothing_attached():
    net, first = model(), Part()
    rows = PerSample(net, FlatClip(0.5), expected_batch=B)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="not with these rows"):
        attach(optimizer, rows, chain(Gaussian(0.0, seed=0), first, Part(fails=True)))
    assert first.removed == 1
    assert not is_private(optimizer)
    net(torch.randn(B, 3)).sum().backward()
    optimizer.step()  # a plain optimizer again
