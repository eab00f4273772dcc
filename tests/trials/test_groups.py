"""Groups with rates of their own, one started wrongly."""

from __future__ import annotations

import math

import pytest

from steelyard.trials import rates
from steelyard.trials.groups import _late, groups_of, train
from steelyard.trials.tasks import Task


def setting(method: str, **changes):
    one = {"task": "images", "method": method, "optimizer": "sgd", "rate": 0.05, "seed": 0}
    return one | {"steps": 12} | changes


def test_every_parameter_has_one_of_three_groups_and_five():
    for task, names in (
        ("images", {"head", "small", "other"}),
        ("text", {"embedding", "head", "small", "attention", "mlp"}),
    ):
        model = Task(task, 0).model
        groups = groups_of(model)
        assert groups.keys() == names
        parts = [id(p) for members in groups.values() for _, p in members]
        assert len(parts) == len(set(parts)) == len(list(model.parameters()))


def test_with_the_right_ratio_groups_change_nothing():
    """Against the training without groups."""
    grouped = train(**setting("fixed"))
    assert grouped["loss"] == pytest.approx(rates.train(**setting("cosine"))["loss"], rel=1e-6)
    assert grouped["passes"] == 36
    assert grouped["rates"] == pytest.approx({"head": 0.05, "small": 0.05, "other": 0.05})


def test_the_wrong_group_alone_is_scaled():
    found = train(**setting("fixed", group="other", scale=0.01))
    assert found["rates"] == pytest.approx({"head": 0.05, "small": 0.05, "other": 0.0005})


def test_gen_keeps_the_ratio_and_hidlr_repairs_it():
    off = {"group": "other", "scale": 0.01, "steps": 60}
    gen, hidlr = train(**setting("gen", **off)), train(**setting("hidlr", **off))
    assert gen["rates"]["other"] / gen["rates"]["head"] == pytest.approx(0.01)
    assert hidlr["rates"]["other"] / hidlr["rates"]["head"] > 0.02
    assert gen["passes"] > 180
    assert hidlr["passes"] > gen["passes"]


def test_late_rates_are_geometric_means_over_the_last_quarter():
    history = [[5.0]] * 6 + [[1.0], [100.0]]
    assert _late(["a"], history)["a"] == pytest.approx(10)
    assert _late(["a"], []) == {}


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="unknown group 'heads'"):
        train(**setting("fixed", group="heads"))
    with pytest.raises(ValueError, match="unknown method 'newton'"):
        train(**setting("newton"))


def test_a_divergence_has_no_loss():
    found = train(**setting("fixed", rate=1e12))
    assert found["diverged"]
    assert found["loss"] is None
    assert all(math.isfinite(rate) for rate in found["rates"].values())
