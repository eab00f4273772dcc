"""The settings of an unlearning run: what is refused, in one line."""

from __future__ import annotations

import pytest

from steelyard.runs.unlearn_config import UnlearnConfig

BASE = UnlearnConfig(model="tiny", forget="f", retain="r", lr=2e-3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "ngdif"}, "unknown --method 'ngdif': did you mean 'ngdiff'"),
        ({"method": "ga", "lr": None}, "no retain loss to find a learning rate by: give --lr"),
        ({"batch": 0}, "--batch must be positive, found 0"),
        ({"retain_weight": -1.0}, "--retain-weight must be 0 or more, found -1.0"),
        ({"stop_forget": 1.0, "reference": "m"}, "--stop-forget 1 and --reference m: give one"),
        (
            {"lr": 0.1, "lr_start": 1e-5},
            "--lr 0.1 is a rate to keep, --lr-start 1e-05 one to begin",
        ),
        ({"lr": None, "lr_start": -1.0}, "--lr-start must be positive, found -1.0"),
        ({"lr": None, "lr_start": 0.1, "method": "ga"}, "no retain loss to find .*: give --lr"),
        ({"adapter": "lorra"}, "unknown --adapter 'lorra': did you mean 'lora'"),
    ],
)
def test_wrong_settings_are_one_line(changes, told):
    with pytest.raises(ValueError, match=told) as caught:
        BASE.replace(**changes)
    assert "\n" not in str(caught.value)
