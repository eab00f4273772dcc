"""What Tasks refuses, in one line, leaving no gradient behind."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard.rows.tasks import Tasks
from steelyard.weightings.blur import Blur
from steelyard.weightings.ngdiff import NGDiff

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Y = torch.randint(3, (40,), generator=torch.Generator().manual_seed(3))
RETAIN, FORGET = slice(0, 20), slice(20, 40)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def grads(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def ce(model, part):
    return cross_entropy(model(X[part]), Y[part])


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda m: m(X), r"must be a mean \[\], one per sample \[B\].*found shape \[40, 3\]$"),
        (lambda m: 0.5, r"found float$"),
        (lambda m: (ce(m, RETAIN), -1), r"must be a mean.*found count -1$"),
        (lambda m: (ce(m, RETAIN), math.inf), r"must be a mean.*found count inf$"),
        (lambda m: (ce(m, RETAIN), ce(m, FORGET)), r"looks like a second loss: .* as a list$"),
        (lambda m: (ce(m, RETAIN), 1, 2), r"must be a mean.*found tuple$"),
        (lambda m: (ce(m, RETAIN), 0), r"task 'retain' has no sample in this step"),
        (lambda m: [], r"task 'retain' has no sample in this step"),
        (lambda m: m(X[:0]).sum(1), r"task 'retain' has no sample in this step"),
        (lambda m: ce(net(), RETAIN), r"task 'retain' reaches none of the parameters"),
        (lambda m: ce(m, RETAIN).detach(), r"task 'retain' reaches none of the parameters"),
    ],
)
def test_what_is_no_loss(loss, words):
    model = net()
    with pytest.raises(ValueError, match=words) as error:
        Tasks(model.parameters(), NGDiff()).backward(forget=-ce(model, FORGET), retain=loss(model))
    assert "\n" not in str(error.value)
    assert all(p.grad is None for p in model.parameters())


def test_what_is_not_finite_is_refused_by_name():
    model = net()
    tasks = Tasks(model.parameters(), NGDiff())
    with pytest.raises(FloatingPointError, match=r"^the gradient of forget is not finite"):
        tasks.backward(retain=ce(model, RETAIN), forget=ce(model, FORGET) * math.inf)
    assert all(p.grad is None for p in model.parameters())
    for bad in (math.inf, math.nan):  # the gradient of retain is finite: the weights would be wrong
        with pytest.raises(FloatingPointError, match=r"^the loss of retain is not finite"):
            tasks.backward(retain=ce(model, RETAIN) + bad, forget=ce(model, FORGET))
        assert all(p.grad is None for p in model.parameters())
    for wrong in (lambda g: g.new_tensor([1.0, math.nan]), lambda g: torch.ones(3), lambda g: g):
        with pytest.raises(ValueError, match=r"^function gave weights .* for 2 rows"):
            Tasks(model.parameters(), wrong).backward(a=ce(model, RETAIN), b=ce(model, FORGET))
        assert all(p.grad is None for p in model.parameters())


def test_parameters_that_cannot_be_weighed():
    with pytest.raises(ValueError, match="no trainable parameter"):
        Tasks([nn.Parameter(torch.ones(2), requires_grad=False)], NGDiff())
    with pytest.raises(ValueError, match=r"shape \[2\] is sharded or not floating point"):
        Tasks([nn.Parameter(torch.ones(2, dtype=torch.complex64))], NGDiff())
    for mark in ("_is_flat_param", "_fsdp_flattened", "ds_id"):  # FSDP's and DeepSpeed's
        shard = nn.Parameter(torch.ones(2))
        setattr(shard, mark, True)
        with pytest.raises(ValueError, match=r"shape \[2\] is sharded"):
            Tasks([shard], NGDiff())
    sparse = nn.Embedding(5, 2, sparse=True)
    with pytest.raises(ValueError, match="sparse=False"):
        Tasks(sparse.parameters(), NGDiff()).backward(
            a=sparse(torch.tensor([1])).sum(), b=sparse(torch.tensor([2])).sum()
        )
    for optimizer in (None, torch.optim.SGD(net().parameters(), 0.1)):
        with pytest.raises(ValueError, match=r"Adam and AdamW, found (none|SGD)"):
            Tasks(net().parameters(), Blur(metric="optimizer"), optimizer=optimizer)
    model, foreign = net(), torch.optim.AdamW(net().parameters())
    tasks = Tasks(model.parameters(), Blur(metric="optimizer"), optimizer=foreign)
    with pytest.raises(ValueError, match="holds none of the parameters"):
        tasks.backward(retain=ce(model, RETAIN), forget=-ce(model, FORGET))


def test_a_raising_loss_leaves_no_gradient():
    model = net()

    def broken():
        raise KeyError("batch")

    with pytest.raises(KeyError):
        Tasks(model.parameters(), NGDiff()).backward(retain=ce(model, RETAIN), forget=broken)
    assert all(p.grad is None for p in model.parameters())


def test_a_weighting_cannot_spoil_the_record():
    model = net()

    def rude(gram):
        weights = 1 / gram.diagonal().sqrt()
        gram.zero_()
        return weights

    tasks = Tasks(model.parameters(), rude)
    record = tasks.backward(retain=ce(model, RETAIN), forget=ce(model, FORGET))
    assert record.norm == pytest.approx(float(grads(model).norm()))


def test_optimizer_state_and_model_are_untouched():
    model = net()
    before = copy.deepcopy(model.state_dict())
    Tasks(model.parameters(), NGDiff()).backward(retain=ce(model, RETAIN), forget=ce(model, FORGET))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
