"""torch's own optimizers and a learning-rate schedule, by the names of the command line."""

from __future__ import annotations

import math

import torch
from torch import nn

from steelyard.runs.config import TrainConfig


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the settings over the model's trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def moments(config: TrainConfig) -> int:
    """How many numbers the optimizer keeps for every trainable parameter."""
    return {"sgd": 1 if config.momentum else 0, "adam": 2, "adamw": 2}[config.optimizer]


def rate(config: TrainConfig, step: int, steps: int) -> float:
    """The schedule's factor on the learning rate before step `step` (counted from 0)."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(steps - config.warmup, 1)
    if config.schedule == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0
