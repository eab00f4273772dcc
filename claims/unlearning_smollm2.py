"""NGDiff and BLUR beside GradDiff on a real model: SmolLM2-135M, all weights, real LUME documents.

Measured and judged as `unlearning` is, by three methods and one weight: what fitted into the time
that a GPU could be had. Needs a CUDA device: about eight minutes of an H200.
"""

from __future__ import annotations

from typing import Any

from steelyard.runs.pool import Pool
from steelyard.trials.forgetting_claim import Measured, Part, row

TOPIC = "unlearning"
DEVICE = "cuda"

PART = Part(
    "SmolLM2", "20 real LUME documents per task and set, prompts cut to their last 32 words, "
    "SmolLM2-135M-Instruct in float32, all 135 M parameters, on one GPU,",
    {
        "data": "lume", "start": "smollm2", "device": DEVICE,
        "sizes": {"forget": 20, "retain": 20, "non_members": 10, "facts": 40},
        "recipe": {"epochs": 15, "tokens": 2000, "lr": 2e-4, "warmup": 20},
    },
    (1e-5, 4e-5, 1.6e-4), (1.0,), {"steps": 24, "batch": 16, "every": 4, "each": 6}, 0,
    methods=("ngdiff", "blur", "graddiff"),
)  # fmt: skip


def run(runs: Pool) -> dict[str, Any]:
    return row(
        [Measured(runs, PART)],
        claim="on a pretrained model of 135 M parameters, NGDiff and BLUR match the front of "
        "GradDiff at equal learning rates",
        topic=TOPIC,
    )
