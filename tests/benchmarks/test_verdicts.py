"""Targets are computed from rows: met, missed, and nothing to compare with."""

from __future__ import annotations

from lib.verdicts import verdicts
from lib.workloads import WORKLOADS


def row(workload: str, engine: str, family: str, **numbers):
    base = {"workload": workload, "engine": engine, "family": family, "label": engine}
    return {**base, "groups": "all", "reason": None, "error": 1e-6, **numbers}


def ours(workload: str, ratio: float, *, whole: float = 1.2):
    return row(workload, "steelyard", "ours", ratio=ratio, whole=whole)


def found(rows, start: str):
    (verdict,) = (v for v in verdicts(rows) if v.target.startswith(start))
    return verdict


def test_mean_and_worst_over_the_seven():
    ratios = dict(zip(WORKLOADS, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5], strict=True))
    rows = [ours(name, ratio) for name, ratio in ratios.items()]
    mean = found(rows, "cost over the plain step: geometric mean")
    assert (mean.found, mean.met) == ("1.06", True)  # 1.5^(1/7)
    assert "of 7" not in mean.target
    worst = found(rows, "cost over the plain step: worst workload, minilm")
    assert (worst.found, worst.met) == ("1.50", False)


def test_a_part_of_the_workloads_is_called_a_part():
    mean = found([ours("mlp", 1.26)], "cost over the plain step: geometric mean")
    assert "1 of 7 workloads" in mean.target
    assert mean.met is False


def test_speed_ups_are_over_correct_engines():
    rows = [
        ours("mlp", 1.1),
        row("mlp", "ghost", "opacus", reason="wrong (0.3)"),
        row("mlp", "hooks", "opacus", speed_up=4.0, ratio=4.4),
        row("mlp", "two passes", "peer", speed_up=1.29, ratio=1.4),
        row("mlp", "vmap", "peer", reason="refuses: no"),
    ]
    fastest = found(rows, "mlp: speed-up over the fastest correct other")
    assert "two passes" in fastest.target
    assert fastest.met is False
    assert found(rows, "mlp: speed-up over hooks").met is True
    wrong = found(rows, "mlp: speed-up over ghost")
    assert (wrong.found, wrong.met) == ("wrong (0.3)", None)


def test_where_one_by_one_is_fastest_the_next_is_named_too():
    rows = [
        ours("gpt-512", 1.0),
        row("gpt-512", "peer-loop", "peer", speed_up=1.05, ratio=1.05),
        row("gpt-512", "peer-ghost", "peer", speed_up=1.7, ratio=1.7),
    ]
    assert found(rows, "gpt-512: speed-up over the fastest correct other (peer-loop)").met is False
    batched = found(rows, "gpt-512: speed-up over the fastest correct other that keeps")
    assert "(peer-ghost)" in batched.target
    assert batched.met is True


def test_our_own_errors_are_targets_too():
    wrong = row("mlp", "steelyard-layer", "ours", reason="wrong (0.1)", error=0.1)
    rows = [ours("mlp", 1.0), wrong]
    assert found(rows, "mlp: steelyard-layer, all: the right gradient").met is False
    assert found(rows, "the right gradient, largest error of 1 timed rows").found == "1e-06"


def test_memory_of_both_groupings():
    layer = row("cnn", "steelyard-layer", "ours", ratio=1.3, whole=1.06)
    rows = [ours("cnn", 1.3, whole=1.254), layer]
    assert found(rows, "cnn: memory, all-layer").met is True
    assert found(rows, "cnn: memory, layer-wise").met is False
