"""What a run would do and cost: the answer to `--dry-run`. Nothing is trained or written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from steelyard.data import Table
from steelyard.plans.pretraining import split_steps
from steelyard.plans.privacy import PrivacyPlan, plan_privacy
from steelyard.runs.config import TrainConfig, parse_groups
from steelyard.runs.loop import Training
from steelyard.runs.optimizers import moments
from steelyard.runs.problem import make_problem


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a run would do and cost; `memory` in MiB, by part."""

    plan: PrivacyPlan | None
    steps: int
    n: int
    n_test: int
    parameters: int
    trainable: int
    engine: str
    public_steps: int
    n_public: int
    memory: dict[str, float]
    rates: str  # how the step size is found; "" where it is the schedule's
    notes: list[str]


def plan_for(config: TrainConfig, n: int) -> tuple[PrivacyPlan | None, int]:
    """The privacy plan (None without privacy) and the number of steps, public ones included.

    The plan is for the private phase alone.
    """
    if not config.private:
        if config.batch > n:
            raise ValueError(
                f"batch {config.batch} is larger than the {n} training samples: use at most {n}"
            )
        if config.steps is not None:
            return None, config.steps
        assert config.epochs is not None
        # as `plan_privacy` counts them
        return None, max(1, math.ceil(config.epochs * n / config.batch - 1e-9))
    epochs, steps, public = config.epochs, config.steps, 0
    if config.public_first:
        if steps is None:
            assert epochs is not None
            steps = max(1, math.ceil(epochs * n / config.batch - 1e-9))
        public, steps = split_steps(steps, config.public_first)
        if not steps:
            raise ValueError(
                f"--public-first {config.public_first:g} leaves no private step: use less"
            )
        epochs = None
    plan = plan_privacy(
        n=n,
        batch=config.batch,
        steps=steps,
        epochs=epochs,
        epsilon=config.epsilon,
        delta=config.delta,
        accountant=config.accountant,
    )
    return plan, public + plan.steps


def preview(config: TrainConfig, table: Table | None = None) -> Preview:
    """Everything but the training. Raises what `train` would raise."""
    problem = make_problem(config, table)
    plan, steps = plan_for(config, problem.n)
    training = Training(problem, config, plan, steps, run_id="preview")
    parameters, trainable = training.sizes
    return Preview(
        plan=plan,
        steps=steps,
        n=problem.n,
        n_test=len(problem.test_x),
        parameters=parameters,
        trainable=trainable,
        engine=training.engine,
        public_steps=training.public_steps,
        n_public=problem.n_public,
        memory=estimate_memory(training),
        rates=training.schedule.about,
        notes=[
            *training.schedule.notes,
            *problem.public,
            *problem.assumptions,
            *(training.private.warnings if training.private else []),
        ],
    )


def estimate_memory(training: Training) -> dict[str, float]:
    """MiB needed, by part; activations are measured on two samples and scaled to a micro-batch."""
    problem, config = training.problem, training.config
    parameters, trainable = (4 * size for size in training.sizes)
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    two = torch.arange(min(2, problem.n))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        problem.losses(problem.model, *problem.batch(two))
    if training.rows is not None:
        training.rows.discard()
    own = {p.untyped_storage().data_ptr() for p in problem.model.parameters()}
    per_sample = sum(size for place, size in held.items() if place not in own) / len(two)
    # all-layer clipping holds the output gradients of every layer until the norms are known
    factor = 2 if training.rows is not None and parse_groups(config.groups) == "all" else 1
    parts = {
        "parameters": parameters,
        "gradients": trainable,
        "optimizer": moments(config) * trainable,
        "filters": (training.private.buffers if training.private else 0) * trainable,
        "probes": training.schedule.copies * trainable,
        "average": parameters if config.average else 0,
        "activations": factor * per_sample * min(config.micro_batch, config.batch),
        "data": problem.train_x.nbytes + problem.test_x.nbytes,
    }
    return {name: size / 2**20 for name, size in parts.items()}
