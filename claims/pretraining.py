"""Claim: a short public phase before private training (DPCP) beats public and private training.

Bu, Zhang, Hong, Zha, Karypis 2024 (arXiv 2402.18752): AdamW on 10 % public samples for a share s of
the steps, then the first moment is set to zero and the rest is private; every other switch is said
to hurt.
"""

from __future__ import annotations

from typing import Any

from steelyard.runs import common_arms as common
from steelyard.runs.arms import Arm, measure
from steelyard.runs.common_arms import CIFAR, FASHION, REVIEWS, Setting
from steelyard.runs.pool import Pool
from steelyard.runs.verdict import compare, result

TOPIC = "privacy"
SHARE = 0.1
PRIVATE, PUBLIC, PLAIN = "only private (90 %)", "only public (10 %)", "no privacy"
SWITCHES = ("reset-m", "reset-v", "keep", "reset-all")


def _steps(setting: Setting) -> Setting:
    """Equal steps for all arms, and public batches of the private ones' size."""
    base = setting.base
    steps = -(-setting.n * int(base.epochs or 0) // base.batch)
    changed = base.replace(epochs=None, steps=steps, public_batch=base.batch, optimizer="adamw")
    return setting.less(base=changed)


IMAGES = _steps(FASHION)
TEXTS = _steps(REVIEWS)
PHOTOS = _steps(CIFAR)


def name(share: float, switch: str) -> str:
    return f"DPCP {share:g}, {switch}"


def arms(s: Setting, shares: tuple[float, ...], switches: tuple[str, ...]) -> list[Arm]:
    part = {"public_part": SHARE}
    alone = part | {"public_first": 1.0}
    two_phases = [
        s.arm(name(share, switch), s.adam, part | {"public_first": share, "at_switch": switch})
        for share in shares
        for switch in switches
    ]
    return [
        s.arm(PRIVATE, s.adam, part, role="baseline"),
        s.arm(PUBLIC, s.adam / 4, alone, role="baseline", private=False),
        s.arm(PLAIN, s.adam / 4, {}, role="reference", private=False),
        *two_phases,
    ]


def run(runs: Pool) -> dict[str, Any]:
    cells = [
        *measure(IMAGES.experiment(arms(IMAGES, (0.1, 0.25), SWITCHES)), runs),
        *measure(TEXTS.experiment(arms(TEXTS, (0.1, 0.25), SWITCHES[::2])), runs),
        *measure(PHOTOS.experiment(arms(PHOTOS, (0.1,), SWITCHES[:1])), runs),
    ]
    names = dict.fromkeys(cell.arm.name for cell in cells if cell.arm.role == "method")
    reset = [found for found in names if found.endswith("reset-m")]
    others = [found for found in names if found not in reset]
    return {
        "paper": "arXiv 2402.18752",
        "claim": "a short public phase, then private training with the first moment reset, beats "
        "the better of public and private training alone",
        "topic": TOPIC,
        "published": "ImageNet-11k, ViT-Base, epsilon 8: 41.5, without privacy about 47; every "
        "other switch than reset-m hurts (prose; no table confirmed)",
        "setting": common.told((IMAGES, TEXTS, PHOTOS))
        + f". {SHARE:.0%} of the training samples public, by content; AdamW, equal steps for all "
        "arms, public batches as large as the private ones; only the private steps are charged",
        **result(
            cells,
            compare(cells, reset, (PRIVATE, PUBLIC)),
            also=compare(cells, reset, others),
        ),
    }
