"""How the settings of the default run were chosen: the same number of trials for both sides.

    python tools/tune_default.py [FASHION_MNIST_FOLDER] >> tuning.jsonl

Every trial trains on the 12,000 embedded images with seed 0 and is judged on the last 5,000 images
of the published training set, none of which is among them; the test set plays no part. The privacy
cost of choosing is not charged.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time

import torch

from steelyard.data import load
from steelyard.runs.claims import accuracy
from steelyard.runs.config import TrainConfig
from steelyard.runs.preview import plan_for
from steelyard.runs.problem import make_problem
from steelyard.runs.settings import DEFAULT, DEFAULT_BASELINE

PRIVATE = [
    {"batch": batch, "epochs": epochs, "lr": lr}
    for batch, epochs in ((1024, 40), (2048, 60))
    for lr in (0.18, 0.25, 0.35, 0.5)
]
PLAIN = [
    {"batch": batch, "epochs": epochs, "lr": lr}
    for batch, epochs in ((64, 10), (128, 15))
    for lr in (0.005, 0.01, 0.02, 0.05)
]


def trial(config: TrainConfig, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    problem = dataclasses.replace(make_problem(config), test_x=x, test_y=y)
    plan, steps = plan_for(config, problem.n)
    began = time.monotonic()
    reached = accuracy(config, problem)
    return {
        "accuracy": round(reached, 2),
        "steps": steps,
        "sigma": round(plan.noise_multiplier, 3) if plan else 0.0,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    full = load(sys.argv[1] if len(sys.argv) > 1 else "fashion-mnist")
    assert full.train_y is not None
    x = torch.tensor(full.train_x[-5000:]).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor(full.train_y[-5000:])
    for start, grid in ((DEFAULT, PRIVATE), (DEFAULT_BASELINE, PLAIN)):
        for changes in grid:
            config = start.replace(**changes, seed=0)
            row = {"private": config.private, **changes, **trial(config, x, y)}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
