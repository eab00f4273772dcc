"""Several losses in one step: against plain autograd and plain loops, and every edge of a row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard.rows.tasks import Tasks
from steelyard.weightings.blur import Blur
from steelyard.weightings.ngdiff import NGDiff
from steelyard.weightings.scalarize import Fixed, GradDiff, LossNormalised


def net(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def data(n=40):
    g = torch.Generator().manual_seed(2)
    return (
        torch.randn(n, 5, generator=g, dtype=torch.float64),
        torch.randint(3, (n,), generator=g),
    )


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def grads(model):
    return flat(p.grad for p in model.parameters())


def plain(loss, model):
    return flat(torch.autograd.grad(loss, list(model.parameters())))


X, Y = data()
R_PARTS, F_PARTS = [slice(0, 8), slice(8, 10), slice(10, 20)], [slice(20, 33), slice(33, 40)]
RETAIN, FORGET = slice(0, 20), slice(20, 40)


def ce(model, part):
    return cross_entropy(model(X[part]), Y[part])


def summed(model, part, sign=1.0):
    return lambda: (
        sign * cross_entropy(model(X[part]), Y[part], reduction="sum"),
        part.stop - part.start,
    )


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


# the boxes of the cards and papers, on lists of numbers: (R, F, r, f) -> direction
TWINS = {
    "ngdiff": (NGDiff(), lambda R, F, r, f: r / math.sqrt(dot(r, r)) + f / math.sqrt(dot(f, f))),
    "ngdiff rho": (
        NGDiff(2.0),
        lambda R, F, r, f: 2 * r / math.sqrt(dot(r, r)) + f / math.sqrt(dot(f, f)),
    ),
    "blur": (Blur(0.4), lambda R, F, r, f: 0.4 * f + r - dot(f, r) / dot(f, f) * f),
    "blur swapped": (
        Blur(0.4, lower="retain"),
        lambda R, F, r, f: 0.4 * r + f - dot(f, r) / dot(r, r) * r,
    ),
    "one-sided": (
        Blur(0.4, one_sided=True),
        lambda R, F, r, f: r + max(0.0, 0.4 - dot(f, r) / dot(f, f)) * f,
    ),
    "graddiff": (GradDiff(0.7, 0.3), lambda R, F, r, f: 0.7 * r + 0.3 * f),
    "lossnorm": (LossNormalised(), lambda R, F, r, f: r / abs(R) + f / abs(F)),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_hundred_steps_equal_the_naive_loop(name):
    """Micro-batches of unequal size, momentum; the twin sees one batch and plain autograd."""
    weighting, box = TWINS[name]
    model, twin = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    tasks = Tasks(model.parameters(), weighting)
    velocity = 0.0
    for _ in range(100):
        record = tasks.backward(
            retain=[summed(model, part) for part in R_PARTS],
            forget=[summed(model, part, -1.0) for part in F_PARTS],
        )
        optimizer.step()

        R, F = ce(twin, RETAIN), -ce(twin, FORGET)
        u = box(float(R.detach()), float(F.detach()), plain(R, twin), plain(F, twin))
        velocity = 0.9 * velocity + u
        with torch.no_grad():
            start = 0
            for p in twin.parameters():
                p -= 0.02 * velocity[start : start + p.numel()].view_as(p)
                start += p.numel()
        assert record.losses == pytest.approx(
            {"retain": float(R.detach()), "forget": float(F.detach())}, rel=1e-9
        )
    torch.testing.assert_close(
        flat(model.parameters()), flat(twin.parameters()), rtol=1e-9, atol=1e-9
    )


# -- what a loss may be ----------------------------------------------------------------------------


def test_means_samples_sums_and_micro_batches():
    model = net()
    tasks = Tasks(model.parameters(), NGDiff())

    def step(retain):
        tasks.backward(retain=retain, forget=-ce(model, FORGET))
        return grads(model)

    one = step(ce(model, RETAIN))
    for same in (
        lambda: ce(model, RETAIN),
        cross_entropy(model(X[RETAIN]), Y[RETAIN], reduction="none"),
        [lambda p=p: cross_entropy(model(X[p]), Y[p], reduction="none") for p in R_PARTS],
        [summed(model, p) for p in R_PARTS],
        (20 * ce(model, RETAIN), torch.tensor(20)),
        [lambda: ce(model, slice(0, 10)), lambda: ce(model, slice(10, 20))],  # means count alike
    ):
        torch.testing.assert_close(step(same), one)
    ragged = step([lambda p=p: ce(model, p) for p in R_PARTS])
    assert float((ragged - one).norm()) > 0.01  # of unequal sizes, means of means are another thing


def test_accumulation_comes_before_the_norm():
    """The trap: normalising every micro-batch and averaging is another method."""
    model = net()
    tasks = Tasks(model.parameters(), NGDiff())
    parts = [lambda p=p: ce(model, p) for p in (slice(0, 10), slice(10, 20))]
    tasks.backward(retain=parts, forget=-ce(model, FORGET))
    right = grads(model)
    wrong = torch.zeros_like(right)
    for part in parts:
        tasks.backward(retain=part, forget=-ce(model, FORGET))
        wrong += grads(model) / 2
    assert float((right - wrong).norm()) > 0.01


def test_losses_of_one_forward_pass():
    model = net()
    out = model(X)
    losses = {"retain": out[:20].square().mean(), "forget": out[20:].sum(1)}
    with pytest.raises(RuntimeError, match="retain_graph"):
        Tasks(model.parameters(), NGDiff()).backward(**losses)
    assert all(p.grad is None for p in model.parameters())
    out = model(X)
    r = plain(model(X)[:20].square().mean(), model)
    f = plain(model(X)[20:].sum(1).mean(), model)
    Tasks(model.parameters(), NGDiff(), retain_graph=True).backward(
        retain=out[:20].square().mean(), forget=[out[20:25].sum(1), out[25:].sum(1)]
    )
    torch.testing.assert_close(grads(model), r / r.norm() + f / f.norm())


# -- rows ------------------------------------------------------------------------------------------


def test_names_are_kept_in_order_and_checked():
    model = net()
    seen = []

    def spy(gram):
        seen.append(gram.diagonal().sqrt())
        return torch.ones(len(gram))

    tasks = Tasks(model.parameters(), spy, names=["forget", "retain"])
    norms = [float(plain(ce(model, part), model).norm()) for part in (FORGET, RETAIN)]
    for order in (["retain", "forget"], ["forget", "retain"]):
        parts = {"retain": RETAIN, "forget": FORGET}
        record = tasks.backward(**{name: ce(model, parts[name]) for name in order})
        assert seen[-1].tolist() == pytest.approx(norms)
        assert list(record.norms) == ["forget", "retain"]
    with pytest.raises(ValueError, match=r"^the tasks are forget, retain, found losses for retain"):
        tasks.backward(retain=ce(model, RETAIN))
    with pytest.raises(ValueError, match=r"found losses for none"):
        tasks.backward()
    for bad in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="all different"):
            Tasks(model.parameters(), NGDiff(), names=bad)


def test_parameters_that_not_every_task_reaches():
    shared, only_r, only_f, none = (nn.Parameter(torch.randn(3).double()) for _ in range(4))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    tasks = Tasks([shared, only_r, frozen, only_f, none, shared], NGDiff())
    record = tasks.backward(
        retain=(shared**2).sum() + only_r.sum(), forget=(shared**3).sum() - 2 * only_f.sum()
    )
    r_norm = math.sqrt(float((2 * shared).detach().square().sum()) + 3)
    f_norm = math.sqrt(float((3 * shared**2).detach().square().sum()) + 12)
    assert record.norms == pytest.approx({"retain": r_norm, "forget": f_norm})
    torch.testing.assert_close(only_r.grad, torch.full((3,), 1 / r_norm).double())
    torch.testing.assert_close(only_f.grad, torch.full((3,), -2 / f_norm).double())
    both = (2 * shared / r_norm + 3 * shared**2 / f_norm).detach()
    torch.testing.assert_close(shared.grad, both)
    assert none.grad is None
    assert frozen.grad is None
    assert len(tasks.parameters) == 4


def test_old_gradients_are_replaced_and_others_left_alone():
    model, other = net(), nn.Parameter(torch.ones(5).double())
    for p in model.parameters():
        p.grad = torch.full_like(p, 99)
    tasks = Tasks(model.parameters(), Fixed({"a": 1.0, "b": 1.0}))
    tasks.backward(
        a=cross_entropy(model(X[RETAIN] * other), Y[RETAIN]), b=lambda: ce(model, FORGET)
    )
    fresh = net()
    torch.testing.assert_close(grads(model), plain(ce(fresh, RETAIN) + ce(fresh, FORGET), fresh))
    assert other.grad is None


@pytest.mark.parametrize("k", [1, 3, 4])
def test_any_number_of_rows(k):
    model = net()
    parts = [slice(10 * i, 10 * i + 10) for i in range(k)]
    tasks = Tasks(model.parameters(), NGDiff())
    record = tasks.backward(**{f"t{i}": ce(model, part) for i, part in enumerate(parts)})
    rows = [plain(ce(model, part), model) for part in parts]
    torch.testing.assert_close(grads(model), sum(g / g.norm() for g in rows))
    stacked = torch.stack(rows)
    torch.testing.assert_close(record.gram, stacked @ stacked.T)
    assert record.norm == pytest.approx(float(grads(model).norm()))
    assert len(record.cosines) == k * (k - 1) // 2


def test_the_record_says_zero_tiny_and_antiparallel():
    model = net()
    tasks = Tasks(model.parameters(), NGDiff())
    record = tasks.backward(retain=ce(model, RETAIN), forget=-0.3 * ce(model, RETAIN))
    assert record.antiparallel == [("retain", "forget")]
    assert record.norm < 1e-6
    assert float(grads(model).norm()) < 1e-12
    r = plain(ce(model, RETAIN), model)
    for factor in (0.0, 1e-10):
        record = tasks.backward(retain=ce(model, RETAIN), forget=factor * ce(model, FORGET))
        assert record.vanished == ["forget"]
        assert record.antiparallel == []
        torch.testing.assert_close(grads(model), r / r.norm())
    assert math.isnan(tasks.backward(retain=0 * ce(model, RETAIN), forget=ce(model, FORGET))
                      .cosines["retain", "forget"])  # fmt: skip
    record = tasks.backward(retain=ce(model, RETAIN), forget=-ce(model, FORGET))
    assert record.antiparallel == record.vanished == []
    assert tasks.record is record
