"""The settings of the small benchmark's runs."""

from __future__ import annotations

import pytest

from steelyard.runs.unlearn_small import _config


def test_a_start_for_the_rate_asks_for_one_that_is_found():
    assert _config("graddiff", {}).lr == 1e-4
    assert _config("ngdiff", {}).lr is None
    found = _config("graddiff", {"lr_start": 1e-3})
    assert (found.lr, found.lr_start) == (None, 1e-3)
    with pytest.raises(ValueError, match=r"--lr 0\.1 is a rate to keep"):
        _config("graddiff", {"lr": 0.1, "lr_start": 1e-3})
