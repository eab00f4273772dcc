"""The exactness table: our column is right in every case, and a wrong engine would be seen."""

from __future__ import annotations

import exactness
import pytest
import torch
from exactness import ALL, cell, kind_of, markdown, row, short, sound
from lib.case import Case, right
from torch import nn

QUICK = [case for case in ALL if case.quick]
SLOW = [case for case in ALL if not case.quick]


def check(case: Case) -> None:
    found = cell(case, "steelyard", None if case.refusal else right(case))
    assert sound(case, found), f"{case.name}: {found}"


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_ours(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_ours_on_the_models_of_others(case):
    pytest.importorskip("peft")
    check(case)


def by_name(name: str) -> Case:
    (case,) = (case for case in ALL if case.name == name)
    return case


def test_the_right_answer_by_hand():
    """One weight w = 1, losses (i (x_i w - 0.5)^2): gradients 2 i x_i (x_i - 0.5)."""

    def model() -> nn.Module:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        return layer

    x = torch.tensor([[1.0], [2.0], [-1.0]])
    found = right(Case(name="", model=model, input=lambda: x))
    gradients = [1.0, 12.0, 9.0]  # 2*1*1*0.5, 2*2*2*1.5, 2*3*(-1)*(-1.5)
    assert found.bound == 9.0  # the median
    assert float(found.clipped["weight"]) == pytest.approx(1.0 + 9.0 + 9.0)
    assert gradients[1] > found.bound


@pytest.mark.parametrize("name", ["embedding and head tied", "repeated tokens"])
@pytest.mark.parametrize("wrong", ["scaled", "one parameter missing"])
def test_a_wrong_engine_is_seen(monkeypatch, name, wrong):
    def engine(case, bound):
        found, served = exactness.ours(case, bound)
        if wrong == "scaled":
            return {n: 1.001 * g for n, g in found.items()}, served
        first = next(iter(found))
        return {**found, first: torch.zeros_like(found[first])}, served

    monkeypatch.setitem(exactness.ENGINES, "steelyard", engine)
    case = by_name(name)
    found = cell(case, "steelyard", right(case))
    assert found.verdict == "wrong"
    assert not sound(case, found)


def test_nan_is_wrong(monkeypatch):
    def engine(case, bound):
        found, served = exactness.ours(case, bound)
        return {n: g * torch.nan for n, g in found.items()}, served

    monkeypatch.setitem(exactness.ENGINES, "steelyard", engine)
    case = by_name("repeated tokens")
    assert cell(case, "steelyard", right(case)).verdict == "wrong"


def test_what_opacus_does():
    """A case that it gets right in every mode, one that it gets wrong, one that it refuses."""
    pytest.importorskip("opacus")
    assert all(c.verdict == "exact" for c in row(by_name("Linear, LayerNorm, GELU")).values())
    padded = row(by_name("padding_idx"))
    assert padded["Opacus hooks"].verdict == "wrong"
    assert padded["Opacus functorch"].verdict == "exact"
    tied = row(by_name("embedding and head tied"))
    assert tied["Opacus ghost"].verdict == "refuses"
    page = markdown({"padding_idx": padded, "embedding and head tied": tied})
    assert "Right (exact, or refused where samples mix or seem to) in 2 cases: steelyard 2" in page


def test_cases_build_anew():
    """Layers shared by two engines would carry the hooks of one to the other."""
    for case in QUICK:
        (one, _), (other, _) = case.build(), case.build()
        mine = {id(m) for m in one.modules()}
        assert not mine & {id(m) for m in other.modules()}, case.name


def test_errors_in_one_line():
    assert kind_of(NotImplementedError("no")) == "refuses"
    assert kind_of(RuntimeError("shapes")) == "fails"
    assert kind_of(ValueError("not enough values to unpack (expected 2, got 1)")) == "fails"
    assert (
        short(ValueError([NotImplementedError("we do\nnot support it")])) == "we do not support it"
    )
    assert len(short(ValueError("x" * 100))) == 70
    assert short(ValueError()) == "ValueError"
