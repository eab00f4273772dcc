"""A small pretrained transformer goes on to a new task with some groups of its parameters only.

| task | pretrained on | new task | model |
|---|---|---|---|
| text | State of the Union addresses, bytes | film review sentences, bytes | GPT of two layers |
| upside-down | Fashion-MNIST | the same, upside down | ViT of two layers, patches of 7 |
| inverted | Fashion-MNIST | the same, black for white | the same |

`adapt` trains one choice of groups, or LoRAs; `steelyard.trials.subset_choices` chooses.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from steelyard import models
from steelyard.runs.config import TrainConfig
from steelyard.runs.problem import Problem, make_problem
from steelyard.steps.roles import by_role
from steelyard.trials.tasks import Task

RESULTS = 1
GROUPS = ("norm", "bias", "head", "embedding", "attention", "mlp")
LAYERS = 2
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {  # of uint8 images [n, C, H, W]
    "upside-down": lambda images: images.flip(2),
    "inverted": lambda images: 255 - images,
}
TASKS = ("text", *CHANGES)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Samples of a step in pretraining, on the new task, of a probe; samples that test."""

    first: int
    then: int
    probe: int
    tests: int


SIZES = {"text": Sizes(first=16, then=8, probe=16, tests=400)} | dict.fromkeys(
    CHANGES, Sizes(first=64, then=32, probe=64, tests=1000)
)
FIRST_RATE = 2e-3  # of the pretraining
VALIDATION = 0.1
LORA_TARGETS = r".*\.(qkv|out|up|down)"  # every linear layer of the blocks


def key(groups: Sequence[str]) -> str:
    """The name of a subset: its groups in the order of GROUPS."""
    return "+".join(sorted(groups, key=GROUPS.index))


def subsets() -> list[str]:
    """All non-empty subsets of the six groups: 63."""
    sizes = range(1, len(GROUPS) + 1)
    return [key(found) for size in sizes for found in combinations(GROUPS, size)]


def adapt(
    *, task: str, width: int, seed: int, groups: str, rate: float, steps: int, pretraining: int,
    rank: int = 0, part: str = "test",
) -> dict[str, Any]:  # fmt: skip
    """Train `groups` ("norm+bias"; with a rank: LoRAs of it instead) on the new task by Adam, the
    rate falling linearly to zero.

    part: "test" or "validation": which samples the losses are of; on validation the batches are
    others too. pretraining: steps before. Returns loss before and after, drop, parameters trained,
    their share, seconds.
    """
    torch.manual_seed(seed)
    problem = new_task(task, part)
    model = pretrained(task, width, seed, pretraining)
    total = sum(p.numel() for p in model.parameters())
    before = _before(task, width, seed, pretraining, part)
    chosen = _lora(model, rank, seed) if rank else _only(model, groups)
    optimizer = torch.optim.Adam(chosen, lr=rate)
    batches = batches_of(problem, SIZES[task].then, seed, stream=1 if part == "test" else 2)
    began = time.perf_counter()
    finite = _train(problem, model, optimizer, batches, steps)
    seconds = time.perf_counter() - began
    after = held_out_loss(problem, model) if finite else math.nan
    diverged = not math.isfinite(after)
    parameters = sum(p.numel() for p in chosen)
    return {
        "drop": None if diverged else before - after,
        "loss": None if diverged else after,
        "before": before,
        "diverged": diverged,
        "parameters": parameters,
        "share": parameters / total,
        "seconds": round(seconds, 3),
    }


def _only(model: nn.Module, groups: str) -> list[nn.Parameter]:
    """The parameters of these groups; all others are frozen."""
    wanted = groups.split("+")
    found = by_role(model, fine=False)
    if unknown := [name for name in wanted if name not in found]:
        raise ValueError(f"no group is called {unknown[0]!r}: there are {', '.join(found)}")
    model.requires_grad_(False)
    chosen = [p for name in wanted for _, p in found[name]]
    for p in chosen:
        p.requires_grad_(True)
    return chosen


def _lora(model: nn.Module, rank: int, seed: int) -> list[nn.Parameter]:
    from peft import LoraConfig, inject_adapter_in_model

    with models.seeded(seed):
        options = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS)
        inject_adapter_in_model(options, model)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    return [p for p in model.parameters() if p.requires_grad]


def _train(
    problem: Problem, model: nn.Module, optimizer: torch.optim.Optimizer,
    batches: Iterator[Tensor], steps: int,
) -> bool:  # fmt: skip
    """Whether the loss stayed finite."""
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = losses_of(problem, model, next(batches)).mean()
        loss.backward()
        optimizer.step()
        decay.step()
        if not torch.isfinite(loss):
            return False
    return True


def losses_of(problem: Problem, model: nn.Module, indices: Tensor) -> Tensor:
    return problem.losses(model, *problem.batch(indices))


def held_out_loss(problem: Problem, model: nn.Module) -> float:
    return problem.evaluate(model, batch=200)["loss"]


def batches_of(problem: Problem, size: int, seed: int, *, stream: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1_000_003 * stream + seed)
    while True:
        order = torch.randperm(problem.n, generator=generator)
        yield from order[: len(order) - len(order) % size].split(size)


def build(task: str, width: int, seed: int) -> nn.Module:
    size = {"layers": LAYERS, "width": width, "heads": width // 32}
    if task == "text":
        return models.build("gpt", _source(task).task, seed=seed, **size)
    return models.build("vit", _source(task).task, seed=seed, patch=7, **size)


def pretrained(task: str, width: int, seed: int, steps: int) -> nn.Module:
    """A new copy; in each process every one is trained once."""
    model = build(task, width, seed)
    model.load_state_dict(_weights(task, width, seed, steps))
    return model


@lru_cache(maxsize=8)
def _weights(task: str, width: int, seed: int, steps: int) -> dict[str, Tensor]:
    model, problem = build(task, width, seed), _source(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=FIRST_RATE)
    _train(problem, model, optimizer, batches_of(problem, SIZES[task].first, seed, stream=0), steps)
    return model.state_dict()


@lru_cache(maxsize=64)
def _before(task: str, width: int, seed: int, steps: int, part: str) -> float:
    return held_out_loss(new_task(task, part), pretrained(task, width, seed, steps))


@lru_cache(maxsize=3)
def _source(task: str) -> Problem:
    return Task("text" if task == "text" else "images", 0).problem


@lru_cache(maxsize=6)
def new_task(task: str, part: str) -> Problem:
    """The new task: its training samples but the last tenth, and that tenth or the test samples."""
    problem = _source(task)
    if task == "text":
        config = TrainConfig(
            model="gpt", data="rotten-tomatoes", length=64, epsilon=None, steps=1, device="cpu"
        )
        problem = make_problem(config)
    change = CHANGES.get(task, lambda x: x)
    x, y, n = change(problem.train_x), problem.train_y, round(problem.n * (1 - VALIDATION))
    held_x, held_y = x[n:], None if y is None else y[n:]
    if part == "test":
        held_x, held_y = change(problem.test_x), problem.test_y
    tests = SIZES[task].tests
    shown = torch.arange(0, len(held_x), max(1, len(held_x) // tests))[:tests]
    return dataclasses.replace(
        problem,
        train_x=x[:n],
        train_y=None if y is None else y[:n],
        test_x=held_x[shown],
        test_y=None if held_y is None else held_y[shown],
    )
