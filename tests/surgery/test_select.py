"""Values against true decreases, choices against all subsets, and what `apply` leaves behind."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from steelyard.steps.quadratic import Policy
from steelyard.steps.roles import by_role
from steelyard.surgery.influence import Coupling, Influence
from steelyard.surgery.select import choose, front, influence, transfer

SIZES = (3, 2, 4, 1)


class Bowl(nn.Module):
    """scale (w'Hw / 2 - g.w) + 1 of float64 parts; `coupling` scales H between the parts."""

    def __init__(self, seed=0, sizes=SIZES, *, coupling=0.0, scale=1.0):
        super().__init__()
        rng = np.random.default_rng(seed)
        n = sum(sizes)
        root = rng.normal(size=(n, n))
        H = root @ root.T / n + 0.3 * np.eye(n)
        block = np.repeat(np.arange(len(sizes)), sizes)
        H = np.where(block[:, None] == block[None, :], H, coupling * H)
        self.H, self.g, self.scale = torch.tensor(H), torch.tensor(rng.normal(size=n)), scale
        self.parts = nn.ParameterList(torch.zeros(k, dtype=torch.float64) for k in sizes)
        self.groups = {f"g{k}": [(f"parts.{k}", p)] for k, p in enumerate(self.parts)}

    def forward(self):
        w = torch.cat(list(self.parts))
        return self.scale * (0.5 * w @ self.H @ w - self.g @ w) + 1

    def measure(self, fits=3, lr=0.01, groups=None, **options) -> Influence:
        optimizer = torch.optim.SGD(self.parameters(), lr=lr)
        groups = self.groups if groups is None else groups
        return influence(self, itertools.repeat(self), optimizer, groups, fits=fits, **options)

    def best_fall(self, names) -> float:
        """How far the loss really falls when every chosen group moves along its own gradient, all
        at once at their own optimal rates of the diagonal model."""
        start, parts = self().item(), list(self.parts)
        gradients = torch.autograd.grad(self(), parts)
        with torch.no_grad():
            for k, (p, g) in enumerate(zip(parts, gradients, strict=True)):
                if f"g{k}" in names:
                    at = slice(sum(SIZES[:k]), sum(SIZES[: k + 1]))
                    p -= (g @ g) / (self.scale * g @ self.H[at, at] @ g) * g
            fall = start - self().item()
            for p in parts:
                p.zero_()
        return fall


def made(values, sizes, couplings=(), fits=3) -> Influence:
    """An influence without a model: one parameter per group, the same value in every fit."""
    names = [f"g{k}" for k in range(len(values))]
    return Influence(
        shapes={n: {f"{n}.weight": (size,)} for n, size in zip(names, sizes, strict=True)},
        values={n: (v,) * fits for n, v in zip(names, values, strict=True)},
        reasons=dict.fromkeys(names, ()),
        fits=fits,
        total=sum(sizes),
        couplings=tuple(couplings),
    )


def test_values_are_the_true_decreases():
    bowl = Bowl()
    found = bowl.measure()
    for name in bowl.groups:
        assert found.gains[name] == pytest.approx(bowl.best_fall([name]), rel=1e-9)
    assert found.acceptance == dict.fromkeys(bowl.groups, 1.0)
    assert found.sizes == dict(zip(bowl.groups, SIZES, strict=True))


def test_the_knapsacks_gain_is_the_realised_drop():
    """Block-diagonal curvature: values add up."""
    bowl = Bowl()
    found = bowl.measure()
    for budget in range(11):
        chosen = choose(found, budget)
        assert chosen.parameters <= budget
        assert chosen.gain == pytest.approx(bowl.best_fall(chosen.names), rel=1e-9, abs=1e-12)
        best = max(
            sum(found.gains[n] for n in names)
            for m in range(5)
            for names in itertools.combinations(bowl.groups, m)
            if sum(found.sizes[n] for n in names) <= budget
        )
        assert chosen.gain == pytest.approx(best, rel=1e-12)
        assert chosen.alternatives["exact"] >= chosen.alternatives["greedy"]
        assert chosen.alternatives["exact"] >= chosen.alternatives["single"]


def test_the_loss_in_other_units():
    plain, scaled = Bowl().measure(), Bowl(scale=1e3).measure(lr=1e-5)
    for name, gain in plain.gains.items():
        assert scaled.gains[name] == pytest.approx(1e3 * gain, rel=1e-9)
    assert [s.names for s in front(plain)] == [s.names for s in front(scaled)]


def test_halves_have_the_density_of_the_whole():
    bowl = Bowl(sizes=(4, 2))
    with torch.no_grad():  # two identical halves in the first part, not coupled
        bowl.H[:4, :4] = torch.diag(torch.tensor([1.0, 2.0, 1.0, 2.0]))
        bowl.g[2:4] = bowl.g[:2]
    whole = bowl.measure()
    split = Bowl(sizes=(2, 2, 2))
    split.H, split.g = bowl.H, bowl.g
    halves = split.measure()
    assert halves.density["g0"] == pytest.approx(whole.density["g0"], rel=1e-9)
    assert halves.density["g1"] == pytest.approx(whole.density["g0"], rel=1e-9)
    assert halves.density["g2"] == pytest.approx(whole.density["g1"], rel=1e-9)


def test_groups_without_curvature_are_never_chosen():
    bowl = Bowl()
    bowl.H[:3, :3] = -bowl.H[:3, :3]
    bowl.H[9, 9] = 0.0
    found = bowl.measure()
    assert math.isnan(found.gains["g0"])
    assert math.isnan(found.gains["g3"])
    assert found.acceptance["g0"] == 0
    assert "curvature is not positive" in found.reasons["g0"][0]
    assert sorted(choose(found, 100).names) == ["g1", "g2"]
    assert len(front(found)) == 2
    assert "g0, 3, nan, nan, 0 of 3" in str(found)


def test_fewer_than_three_fits_are_none():
    assert choose(Bowl().measure(fits=2), 100).names == ()
    assert choose(Bowl().measure(fits=3), 100).names != ()


def test_the_median_withstands_one_wild_fit():
    found = made([1.0, 2.0], [1, 1])
    wild = replace(found, values={"g0": (1.0, 1.0, 1e9), "g1": (2.0, 2.0, 2.0)})
    assert wild.gains == {"g0": 1.0, "g1": 2.0}


def test_the_order_of_the_groups_means_nothing():
    bowl = Bowl()
    turned = dict(reversed(bowl.groups.items()))
    for full in (False, True):
        first = bowl.measure(full=full)
        second = bowl.measure(groups=turned, full=full)
        for budget in range(11):
            one, other = choose(first, budget, full=full), choose(second, budget, full=full)
            assert one.names == other.names
    alike = made([1.0, 1.0, 1.0], [2, 2, 2])
    names = ("g2", "g0", "g1")
    turned = replace(alike, shapes={n: alike.shapes[n] for n in names})
    assert choose(alike, 4).names == choose(turned, 4).names == ("g0", "g1")


def test_fronts_are_nested_and_best_at_their_sizes():
    found = Bowl().measure()
    selections = front(found)
    assert [len(s.names) for s in selections] == [1, 2, 3, 4]
    for smaller, larger in itertools.pairwise(selections):
        assert larger.names[:-1] == smaller.names
        assert larger.gain > smaller.gain
    for selection in selections:
        assert selection.gain == pytest.approx(choose(found, selection.parameters).gain)
        assert selection.share == selection.parameters / 10


# -- the coupling ------------------------------------------------------------------------------


def test_full_gains_are_those_of_the_joint_optimum():
    bowl = Bowl(coupling=1.0)
    found = bowl.measure(full=True)
    gradients = torch.autograd.grad(bowl(), list(bowl.parts))
    D = torch.block_diag(*[g[:, None] for g in gradients]).numpy()
    b, A = np.array([float(g @ g) for g in gradients]), D.T @ bowl.H.numpy() @ D
    for selection in front(found, full=True):
        S = [int(name[1:]) for name in selection.names]
        joint = 0.5 * b[S] @ np.linalg.solve(A[np.ix_(S, S)], b[S])
        assert selection.gain == pytest.approx(joint, rel=1e-7)
    assert found.fits == len(found.couplings) == 3


def test_redundant_groups_count_once():
    """g1 is g0 under another name, g2 is a little worse and independent."""
    A = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    b = np.array([1.0, 1.0, 0.8])
    coupling = Coupling(names=("g0", "g1", "g2"), b=b, A=A + 1e-12 * np.eye(3))
    found = made(b**2 / 2, [10, 10, 10], [coupling] * 3)
    assert choose(found, 20).names == ("g0", "g1")
    chosen = choose(found, 20, full=True)
    assert chosen.names == ("g0", "g2")
    assert chosen.gain == pytest.approx(0.5 + 0.32)
    assert choose(found, 30, full=True).names == ("g0", "g2")  # the copy adds nothing
    assert choose(found, 19, full=True).names == ("g0",)
    assert choose(found, 9, full=True).names == ()


def test_uncoupled_groups_are_chosen_alike():
    bowl = Bowl()
    found = bowl.measure(full=True)
    assert [s.names for s in front(found)] == [s.names for s in front(found, full=True)]
    with pytest.raises(ValueError, match="call influence"):
        choose(bowl.measure(), 5, full=True)


# -- transfer, apply, peft ---------------------------------------------------------------------


def test_transfer_ranks_by_the_larger_models_sizes():
    found = made([4.0, 3.0], [2, 1])
    assert front(found)[0].names == ("g1",)
    larger = nn.ModuleDict({"g0": nn.Linear(1, 2, bias=False), "g1": nn.Linear(9, 9, bias=False)})
    groups = {n: [(f"{n}.weight", m.weight)] for n, m in larger.items()}
    moved = transfer(found, groups)
    assert front(moved)[0].names == ("g0",)
    assert moved.sizes == {"g0": 2, "g1": 81}
    assert moved.total == 83
    assert choose(moved, "3%").names == ("g0",)
    assert choose(transfer(found, groups, total=1000), "1%").parameters == 2
    assert choose(moved, 2).apply(larger).trained == ("g0.weight",)
    with pytest.raises(ValueError, match="group 'g9' was not measured: measured are g0, g1"):
        transfer(found, {"g9": groups["g0"]})


def test_apply_sets_a_mask_and_says_what_changed(network):
    model, batches = network()
    model[0].bias.requires_grad_(False)
    groups = by_role(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = influence(model, batches(), optimizer, groups, fits=3, policy=Policy(least_r2=0.5))
    found = replace(found, values=found.values | {"head": (1.0,) * 3, "other": (1e-9,) * 3})
    chosen = choose(found, found.sizes["head"])
    assert chosen.names == ("head",)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    applied = chosen.apply(model)
    assert applied.trained == ("4.weight", "4.bias")
    assert applied.turned_on == ()
    assert set(applied.turned_off) == {"0.weight", "1.weight", "1.bias"}
    assert [id(p) for p in applied.parameters] == [id(model[4].weight), id(model[4].bias)]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["4.weight", "4.bias"]
    # frozen normalisation keeps its statistics, whatever train() says
    assert applied.held == ("1",)
    mean = model[1].running_mean.clone()
    model.train()(torch.randn(32, 6) + 5)
    assert torch.equal(model[1].running_mean, mean)
    applied.undo()
    model.train()(torch.randn(32, 6) + 5)
    assert not torch.equal(model[1].running_mean, mean)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    with pytest.raises(ValueError, match=r"the model has none for the chosen '4.weight'"):
        chosen.apply(nn.Linear(2, 2))


def test_a_budget_that_is_none():
    with pytest.raises(ValueError, match="give a number of parameters"):
        choose(made([1.0], [1]), "a few")
