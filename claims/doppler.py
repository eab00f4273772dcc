"""Claim: a low-pass filter on the private gradient (DOPPLER) makes DP training more accurate.

Zhang, Bu, Hong, Razaviyayn 2024 (arXiv 2408.13460). The first-order filter is momentum with
dampening, so the honest baseline is DP-SGD with momentum at a rate of its own.
"""

from __future__ import annotations

from typing import Any

from steelyard.runs import common_arms as common
from steelyard.runs.arms import Arm, measure
from steelyard.runs.common_arms import CIFAR, FASHION, REVIEWS, Setting
from steelyard.runs.pool import Pool
from steelyard.runs.verdict import compare, result

TOPIC = "privacy"
METHODS = ("DOPPLER 0.9", "DOPPLER 2 x 0.8")
BASELINES = ("DP-SGD", "DP-SGD, momentum 0.9")


def arms(s: Setting) -> list[Arm]:
    return [
        common.dp_sgd(s),
        common.momentum(s),
        common.dp_adam(s),
        s.arm("DOPPLER 0.9", s.sgd, {"filters": ("doppler:0.9",)}),
        s.arm("DOPPLER 2 x 0.8", s.sgd, {"filters": ("doppler:0.8,order=2",)}),
    ]


def run(runs: Pool) -> dict[str, Any]:
    cells = [
        *measure(FASHION.experiment(arms(FASHION)), runs),
        *measure(REVIEWS.experiment(arms(REVIEWS)), runs),
        *measure(CIFAR.experiment([*arms(CIFAR)[:2], arms(CIFAR)[3]]), runs),
    ]
    return {
        "paper": "arXiv 2408.13460",
        "claim": "a low-pass filter on the private gradient beats DP-SGD with and without momentum",
        "topic": TOPIC,
        "published": "3 to 10 % higher accuracy (abstract; no table confirmed); a "
        "replication (ViT from scratch, Fashion-MNIST, epsilon 8): 79.04 without "
        "the filter, 79.02 with it",
        "setting": common.told((FASHION, REVIEWS, CIFAR)),
        **result(
            cells,
            compare(cells, METHODS, BASELINES),
            also=compare(cells, METHODS[:1], BASELINES[1:])
            + compare(cells, METHODS[:1], BASELINES[:1]),
        ),
    }
