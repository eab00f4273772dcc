"""Between forward and step: what users do, what goes wrong, and what stays behind."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip


def squares(model: nn.Module, *batch: Tensor) -> Tensor:  # [B]
    return model(*batch).square().flatten(1).sum(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def x(B: int, *shape: int) -> Tensor:
    return torch.randn(B, *shape, dtype=torch.float64)


def summed(rows: PerSample) -> dict[str, Tensor]:
    return dict(zip(rows.names, rows.take().tensors, strict=True))


def test_an_input_changed_in_place_after_its_layer_is_an_error():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            y = self.b(h)
            h.add_(1)
            return y

    model = Overwrites().double()
    rows = PerSample(model, FlatClip(), expected_batch=1)
    with pytest.raises(RuntimeError, match=r"in.?place"):
        rows.backward(squares(model, x(5, 3)))
    assert not rows.armed


def test_an_input_that_no_gradient_needs_may_change(oracle):
    """Bias-only training: autograd does not keep the input, so the engine must not insist on it."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.a.weight.requires_grad_(False)
            self.b.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x) * 1
            y = self.b(h)
            h += y
            return h

    model = Residual().double()
    data = x(5, 3)
    truth = oracle.per_sample(model, squares, data)
    rows = PerSample(model, FlatClip(0.5), expected_batch=1, strict=True)
    rows.backward(squares(model, data))
    expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.5)
    assert oracle.relative_error(summed(rows), expected, rows.names) < 1e-12


@pytest.mark.parametrize("proven", [False, True])
def test_forwards_without_a_backward_change_nothing(oracle, proven):
    model = mlp()
    data = x(5, 3)
    truth = oracle.per_sample(model, squares, data)
    rows = PerSample(model, FlatClip(0.5), expected_batch=1, strict=True)
    expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.5)
    if proven:
        rows.backward(squares(model, x(4, 3)))
        rows.take()
    model(x(7, 3))  # with a graph, dropped
    kept = squares(model, x(5, 3))  # with a graph, kept, same batch size
    with torch.no_grad():
        model.eval()(x(5, 3))
        model.train()
    rows.backward(squares(model, data))
    assert oracle.relative_error(summed(rows), expected, rows.names) < 1e-12
    assert kept.grad_fn is not None


def test_a_backward_of_somebody_else_changes_nothing(oracle):
    model = mlp()
    data = x(5, 3)
    truth = oracle.per_sample(model, squares, data)
    rows = PerSample(model, FlatClip(0.5), expected_batch=1, strict=True)
    losses = squares(model, data)
    losses.sum().backward(retain_graph=True)
    assert not rows.armed
    rows.backward(losses)
    expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.5)
    assert oracle.relative_error(summed(rows), expected, rows.names) < 1e-12


@pytest.mark.parametrize("proven", [False, True])
def test_two_forwards_then_two_backwards_add_up(oracle, proven):
    """The second backward must not pass for a batch that contributed nothing."""
    model = mlp()
    first, second = x(5, 3), x(4, 3)
    truth = oracle.per_sample(model, squares, torch.cat([first, second]))
    rows = PerSample(model, FlatClip(0.5), expected_batch=1, strict=True)
    if proven:
        rows.backward(squares(model, x(4, 3)))
        rows.take()
    early, late = squares(model, first), squares(model, second)
    rows.backward(early)
    rows.backward(late)
    expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.5)
    assert oracle.relative_error(summed(rows), expected, rows.names) < 1e-12


def test_forwards_without_a_backward_cost_nothing():
    """What is recorded lives in the graph of its forward pass and goes with it."""
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=1)
    for _ in range(200):
        model(x(2, 3))
    assert not list(rows._recording.uses)
    kept = model(x(2, 3))
    assert len(list(rows._recording.uses)) == 2
    del kept
    assert not list(rows._recording.uses)


def test_two_engines_on_one_model_do_not_disturb_each_other(oracle):
    model = mlp()
    data = x(5, 3)
    truth = oracle.per_sample(model, squares, data)
    one = PerSample(model, FlatClip(0.5), expected_batch=1, strict=True)
    other = PerSample(model, FlatClip(0.1), expected_batch=1, groups="layer", strict=True)
    losses = squares(model, data)
    one.backward(losses)
    assert not other.armed
    expected = oracle.clipped_sum(truth, [one.names], "flat", 0.5)
    assert oracle.relative_error(summed(one), expected, one.names) < 1e-12


def test_an_exception_leaves_the_rows_usable(oracle):
    model = mlp()
    data = x(5, 3)
    truth = oracle.per_sample(model, squares, data)
    rows = PerSample(model, FlatClip(0.5), expected_batch=1, strict=True)
    expected = oracle.clipped_sum(truth, [rows.names], "flat", 0.5)
    with pytest.raises(RuntimeError, match="shapes"):
        model(x(5, 4))  # in the forward
    with pytest.raises(ValueError, match="shape"):
        rows.backward(model(data))  # in the backward
    rows.backward(squares(model, data))
    assert oracle.relative_error(summed(rows), expected, rows.names) < 1e-12
    rows.backward(squares(model, data) * torch.tensor([1.0, torch.inf, 1.0, 1.0, 1.0]))
    with pytest.raises(FloatingPointError, match="not finite"):
        rows.take()
    rows.backward(squares(model, data))
    assert oracle.relative_error(summed(rows), expected, rows.names) < 1e-12


def test_a_change_of_the_trainable_parameters_is_an_error():
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=1)
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"trainable parameters changed.*'0\.weight'"):
        rows.backward(squares(model, x(5, 3)))
    model[0].weight.requires_grad_(True)
    rows.backward(squares(model, x(5, 3)))
    model[0].weight = nn.Parameter(torch.randn(4, 3).double())  # another object of the same name
    with pytest.raises(ValueError, match=r"0\.weight"):
        rows.backward(squares(model, x(5, 3)))


# -- nothing stays behind ---------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("by", ["close", "with", "exception"])
def test_close_removes_every_hook(by):
    model = mlp()
    assert hooks(model) == 0
    rows = PerSample(model, FlatClip(), expected_batch=1)
    assert hooks(model) > 0
    rows.backward(squares(model, x(5, 3)))
    if by == "close":
        rows.close()
        rows.close()  # twice is once
    elif by == "with":
        with rows:
            pass
    else:
        with pytest.raises(KeyError), rows:
            raise KeyError
    assert hooks(model) == 0
    squares(model, x(5, 3)).sum().backward()


def test_a_dropped_engine_leaves_the_model_usable_and_is_freed():
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=1)
    rows.backward(squares(model, x(5, 3)))
    gone = weakref.ref(rows)
    del rows
    for _ in range(3):  # cycles through the graph's nodes take more than one round
        gc.collect()
    assert gone() is None
    squares(model, x(5, 3)).sum().backward()


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_step_frees_its_activations_without_the_cyclic_collector(engine):
    """Memory must not wait for Python's garbage collector, which knows nothing of tensor sizes."""
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=1, engine=engine)

    def tensors_after_a_step() -> int:  # of a batch size that no other test has
        rows.backward(squares(model, x(37, 3)))
        rows.take()
        tensors = [o for o in gc.get_objects() if type(o) is Tensor]
        return sum(tensor.shape[:1] == (37,) for tensor in tensors)

    for _ in range(4):  # beyond the batches of the proof
        tensors_after_a_step()
    gc.collect()
    gc.disable()
    try:
        assert tensors_after_a_step() == tensors_after_a_step() == tensors_after_a_step()
    finally:
        gc.enable()


@pytest.mark.parametrize("after", ["nothing", "forward", "step"])
def test_a_copy_of_the_model_is_independent(after):
    """Averaged or frozen copies are made in mid-training."""
    model = mlp()
    rows = PerSample(model, FlatClip(), expected_batch=1, strict=True)
    if after != "nothing":
        losses = squares(model, x(5, 3))
        if after == "step":
            rows.backward(losses)
            rows.take()
    twin = copy.deepcopy(model)
    torch.save(model.state_dict(), io.BytesIO())
    for _ in range(100):  # a copy's forwards are none of our business
        twin(x(2, 3))
    rows.backward(squares(model, x(5, 3)))
    assert all(tensor.any() for tensor in rows.take().tensors)
