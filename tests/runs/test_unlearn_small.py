"""The settings of the small benchmark's runs."""

from __future__ import annotations

import pytest

from steelyard.runs.unlearn_small import RATES, _config, _tuned


def test_a_start_for_the_rate_asks_for_one_that_is_found():
    assert _config("graddiff", {}).lr == RATES["graddiff"] > 0
    found = _config("graddiff", {"lr_start": 1e-3})
    assert (found.lr, found.lr_start) == (None, 1e-3)
    with pytest.raises(ValueError, match=r"--lr 0\.1 is a rate to keep"):
        _config("graddiff", {"lr": 0.1, "lr_start": 1e-3})


def test_the_reference_alone_ends_a_run_unless_told():
    assert _config("npo", {}).tolerance is None
    told = _config("npo", {"tolerance": 0.5, "epochs": 1.0, "evaluate_every": 2})
    assert (told.tolerance, told.epochs, told.evaluate_every) == (0.5, 1.0, 2)


def test_a_rate_is_a_tuned_one_with_the_settings_it_was_tuned_for_alone():
    configs = [_config(method, {}) for method in ("npo", "simnpo")]
    assert _tuned(configs, {"seed": 3, "method": "npo"}) == ["npo"]
    assert _tuned(configs, {"seed": 3, "batch": 16}) == []
