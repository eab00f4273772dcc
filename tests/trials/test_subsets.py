"""Trials of subsets on real data, a few steps each: what is trained, what is chosen."""

from __future__ import annotations

import pytest
import torch

from steelyard.data import load
from steelyard.steps.roles import by_role
from steelyard.trials import subset_choices, subsets

TINY = {"width": 32, "seed": 0, "pretraining": 3}


@pytest.fixture(autouse=True)
def installed():
    for name in ("fashion-mnist", "sotu", "rotten-tomatoes"):
        try:
            load(name)
        except ValueError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("task", subsets.TASKS)
def test_the_six_groups_are_all_of_the_model(task):
    model = subsets.build(task, 32, 0)
    groups = by_role(model, fine=False)
    assert set(groups) == set(subsets.GROUPS)
    sizes = [sum(p.numel() for _, p in members) for members in groups.values()]
    assert sum(sizes) == sum(p.numel() for p in model.parameters())


def test_all_subsets_once_and_named_alike():
    names = subsets.subsets()
    assert len(set(names)) == 63
    assert subsets.key(["mlp", "norm"]) == "norm+mlp"
    assert {subsets.key(name.split("+")[::-1]) for name in names} == set(names)


def test_only_the_chosen_groups_move():
    model = subsets.pretrained("inverted", width=32, seed=0, steps=3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    chosen = subsets._only(model, "norm+head")
    problem = subsets.new_task("inverted", "test")
    batches = subsets.batches_of(problem, 8, 0, stream=1)
    assert subsets._train(problem, model, torch.optim.Adam(chosen, lr=0.01), batches, 2)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "norm" in n or n.startswith("head")}


def test_adapt_learns_is_repeatable_and_counts():
    once, again = (
        subsets.adapt(
            task="inverted", groups="head", rate=0.01, steps=10, part="validation", **TINY
        )
        for _ in range(2)
    )
    assert once["drop"] == again["drop"] == once["before"] - once["loss"]
    assert once["drop"] > 0
    assert once["parameters"] == 32 * 10 + 10
    assert not once["diverged"]


def test_a_diverged_run_says_so():
    found = subsets.adapt(task="inverted", groups="mlp", rate=1e30, steps=3, **TINY)
    assert (found["drop"], found["loss"], found["diverged"]) == (None, None, True)


def test_loras_are_of_the_blocks_linear_layers():
    pytest.importorskip("peft")
    found = subsets.adapt(task="text", groups="", rank=2, rate=0.01, steps=2, **TINY)
    assert found["parameters"] == 2 * 2 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)


def test_validation_samples_are_neither_trained_nor_tested():
    test, held = (subsets.new_task("inverted", part) for part in ("test", "validation"))
    assert test.n == held.n == 54_000
    assert len(test.test_x) == len(held.test_x) == 1000
    whole = load("fashion-mnist")
    assert torch.equal(held.test_x[0, 0], 255 - torch.tensor(whole.train_x[54_000, :, :, 0]))
    assert torch.equal(test.test_x[1, 0], 255 - torch.tensor(whole.test_x[10, :, :, 0]))


def test_a_probe_chooses_within_budgets_and_predicts_sums():
    budgets = [0.001, 0.05, 1.0]
    found = subset_choices.probe(
        task="upside-down", fits=3, rate=1e-3, budgets=budgets, to=64, **TINY
    )
    larger = by_role(subsets.build("upside-down", 64, 0), fine=False)
    assert found["sizes"] == {n: sum(p.numel() for _, p in ps) for n, ps in larger.items()}
    for choices in found["choices"].values():
        for budget in budgets:
            chosen = choices[str(budget)].split("+") if choices[str(budget)] else []
            assert sum(found["sizes"][name] for name in chosen) <= budget * found["total"]
    gains, predicted = found["gains"], found["predictions"]["additive"]
    assert predicted["norm+head"] == pytest.approx(gains["norm"] + gains["head"])
    assert found["choices"]["fisher"]["1.0"] == subsets.key(subsets.GROUPS)
