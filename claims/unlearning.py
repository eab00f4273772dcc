"""Claims of NGDiff and BLUR, beside every other objective with fixed weights, on two benchmarks.

Bu et al. 2025 (arXiv 2410.22086): normalised gradients need no trade-off weight and less tuning of
the rate. Reisizadeh et al. 2025 (arXiv 2506.08164): forgetting first, so no step raises the forget
objective. How it is measured and judged: `steelyard.trials.forgetting_claim`.
"""

from __future__ import annotations

from typing import Any

from steelyard.runs.pool import Pool
from steelyard.trials.forgetting_claim import Measured, Part, row
from steelyard.trials.memorised import lume_folder

TOPIC = "unlearning"
LUME = True  # whether the second benchmark is measured, where its files are at hand

SMALL_PART = Part(
    "generated", "the generated benchmark, 20 documents per task and set, a Llama of 0.6 M "
    "parameters",
    {"data": "small", "sizes": {}}, (2e-4, 8e-4, 3.2e-3), (0.3, 1.0, 3.0),
    {"steps": 100, "batch": 8, "every": 10, "each": 4}, 4,
)  # fmt: skip
LUME_PART = Part(
    "LUME", "10 real LUME documents per task and set, prompts cut to their last 32 words, a Llama "
    "of 2.3 M parameters",
    {
        "data": "lume", "sizes": {"forget": 10, "retain": 10, "non_members": 10, "facts": 40},
        "recipe": {"vocabulary": 2000, "width": 192, "layers": 4},
    },
    (1e-3, 4e-3), (1.0,), {"steps": 40, "batch": 8, "every": 5, "each": 3}, 4,
)  # fmt: skip


def run(runs: Pool) -> dict[str, Any]:
    here = (lume_folder() / "forget.jsonl").is_file()
    parts = [SMALL_PART, *([LUME_PART] if LUME and here else [])]
    found = row(
        [Measured(runs, part) for part in parts],
        claim="NGDiff needs no trade-off weight and less tuning of the rate; BLUR never raises "
        "the forget objective to first order under SGD, and in the optimizer's metric under AdamW; "
        "both at least match the best scalar method's front",
        topic=TOPIC,
    )
    if len(parts) == 1:
        found["numbers"]["LUME"] = "not here: no files" if LUME else "not here: left out"
    return found
