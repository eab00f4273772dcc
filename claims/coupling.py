"""Claim: mixing a public and a private gradient beats either of them alone.

Liu, Bu, Wang, Zha, Karypis 2023 (arXiv 2310.01304): alpha * public + (1 - alpha) * private, 5 % of
the samples public. alpha = 0 is private training only, alpha = 1 public training only.
"""

from __future__ import annotations

from typing import Any

from steelyard.runs import common_arms as common
from steelyard.runs.arms import Arm, measure
from steelyard.runs.common_arms import FASHION, REVIEWS, Setting
from steelyard.runs.pool import Pool
from steelyard.runs.verdict import compare, result

TOPIC = "privacy"
SHARE = 0.05
PRIVATE, PUBLIC, OPTIMAL = "only private (95 %)", "only public (5 %)", "alpha optimal"
IMAGES, TEXTS = FASHION, REVIEWS
WEIGHTS = {IMAGES.data: (0.1, 0.3, 0.5, 0.7, 0.9), TEXTS.data: (0.3, 0.7)}


def arms(s: Setting) -> list[Arm]:
    part = {"public_part": SHARE}
    alone = part | {"public_first": 1.0}
    mixed = [
        s.arm(f"alpha {weight:g}", s.sgd, part | {"public_weight": f"{weight:g}"})
        for weight in WEIGHTS[s.data]
    ]
    return [
        s.arm(PRIVATE, s.sgd, part, role="baseline"),
        s.arm(PUBLIC, s.plain, alone, role="baseline", private=False),
        *mixed,
        s.arm(OPTIMAL, s.sgd, part | {"public_weight": "optimal"}),
    ]


def run(runs: Pool) -> dict[str, Any]:
    cells = [
        *measure(IMAGES.experiment(arms(IMAGES)), runs),
        *measure(TEXTS.experiment(arms(TEXTS)), runs),
    ]
    names = {cell.arm.name for cell in cells}
    constant = sorted(name for name in names if name.startswith("alpha 0"))
    best = compare(cells, [*constant, OPTIMAL], (PRIVATE, PUBLIC))
    return {
        "paper": "arXiv 2310.01304",
        "claim": "a mixture of public and private gradients beats the better of the two alone",
        "topic": TOPIC,
        "published": "empirical gains on language and vision benchmarks (abstract; no table "
        "confirmed)",
        "setting": common.told((IMAGES, TEXTS))
        + f". {SHARE:.0%} of the training samples public, by content; public batches of 128, "
        "clipped as the private ones; sigma for the private samples alone",
        **result(
            cells,
            best,
            also=compare(cells, (OPTIMAL,), (PRIVATE, PUBLIC))
            + compare(cells, (OPTIMAL,), constant),
        ),
    }
