"""Labels of logarithmic axes: how many there are, and where."""

from __future__ import annotations

import pytest

from steelyard.report.axes import log_ticks, tick


def labels(values, *, exact=False):
    """What is written on a logarithmic axis over `values`, by place."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.3))
    axes = figure.subplots()
    axes.plot(values, [1.0] * len(values))
    axes.set_xscale("log")
    log_ticks(axes.xaxis, values, exact=exact)
    figure.canvas.draw()
    low, high = axes.get_xlim()
    assert not [t for t in axes.xaxis.get_minorticklabels() if t.get_text()]
    return {
        t.get_position()[0]: t.get_text()
        for t in axes.get_xticklabels()
        if low <= t.get_position()[0] <= high
    }


def test_a_few_values_are_their_own_labels():
    found = labels([5e-4, 2e-3, 8e-3], exact=True)
    assert list(found.values()) == ["0.0005", "0.002", "0.008"]


@pytest.mark.parametrize(
    "values", [[0.31, 0.84], [1.4, 2.9], [5e-4, 8e-3], [0.8, 80.0], [1e-6, 1.0], [3e-5, 4e-5]]
)
def test_any_span_has_some_labels_and_not_many(values):
    found = labels(values)
    assert 2 <= len(found) <= 7
    assert len(set(found.values())) == len(found)


def test_values_too_near_each_other_are_not_all_labelled():
    assert len(labels([1.0, 1.01, 1.02, 1000.0], exact=True)) < 6
    assert 1.01 not in labels([1.0, 1.01, 1.02, 1000.0], exact=True)


def test_nothing_positive_changes_nothing():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    before = axes.xaxis.get_major_locator()
    log_ticks(axes.xaxis, [0.0, float("nan"), -1.0])
    assert axes.xaxis.get_major_locator() is before


def test_ticks_as_text():
    assert [tick(v, powers=False) for v in (5e-4, 900, 14400)] == ["0.0005", "900", "14,400"]
    assert [tick(v, powers=True) for v in (1e-5, 2e-5)] == ["$10^{-5}$", r"$2{\times}10^{-5}$"]
