"""The small real tasks: a model, batches that never repeat within an epoch, a loss, a test loss.

| name | data | model | tokens |
|---|---|---|---|
| images | Fashion-MNIST, 60,000 | convolutional, 26,010 parameters | |
| text | State of the Union addresses, bytes | GPT, 2 layers of width 64 | 64 |
| reviews | Rotten Tomatoes | MiniLM, LoRA of rank 8 | 32 |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from steelyard import models
from steelyard.data import Table, load
from steelyard.runs.config import TrainConfig
from steelyard.runs.problem import Problem, make_problem

TEST_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Where a task's data and model come from. tests: so many test samples, evenly spread."""

    data: str
    model: str
    batch: int
    tests: int
    length: int = 64
    adapter: str = "lora"
    options: dict[str, Any] = field(default_factory=dict)  # of our own models


RECIPES = {
    "images": Recipe(data="fashion-mnist", model="cnn", batch=64, tests=4000),
    "text": Recipe(
        data="sotu",
        model="gpt",
        batch=16,
        tests=800,
        options={"layers": 2, "width": 64, "heads": 2},
    ),
    "reviews": Recipe(
        data="rotten-tomatoes", model="minilm", batch=16, tests=300, length=32, adapter="lora"
    ),
}


class Task:
    """One fresh model and its data; all randomness from `seed`.

    options: of our own models, in place of the recipe's (width=128). Raises ValueError for a name
    that is none, or data that are not installed.
    """

    def __init__(
        self, name: str, seed: int, *, batch: int | None = None, adapter: str | None = None,
        **options: Any,
    ):  # fmt: skip
        if name not in RECIPES:
            raise ValueError(f"unknown task {name!r}: there are {', '.join(RECIPES)}")
        recipe = RECIPES[name]
        config = TrainConfig(
            model=recipe.model, data=recipe.data, length=recipe.length, epsilon=None, steps=1,
            device="cpu", seed=seed, adapter=adapter or recipe.adapter,
        )  # fmt: skip
        self.name, self.seed, self.batch = name, seed, batch or recipe.batch
        problem = _problem(config.replace(seed=0))
        if recipe.model in models.MODELS:
            model = models.build(
                recipe.model, problem.task, seed=seed, **{**recipe.options, **options}
            )
            if recipe.model == "cnn":
                model = model.to(memory_format=torch.channels_last)  # pyright: ignore
        else:
            from steelyard.hf.models import load_hf

            model, _ = load_hf(config.model, problem.task, adapter=config.adapter, seed=seed)
        self.problem, self.model = dataclasses.replace(problem, model=model), model
        every = max(1, len(problem.test_x) // recipe.tests)
        self._tests = torch.arange(0, len(problem.test_x), every)[: recipe.tests]

    def batches(self, stream: int = 0) -> Iterator[Tensor]:
        """Indices of one batch after the other: epochs, shuffled by seed and stream, cut short of
        the last incomplete batch. Gradient and probe batches drawn from one stream are disjoint
        within an epoch."""
        generator = torch.Generator().manual_seed(1_000_003 * (stream + 1) + self.seed)
        while True:
            order = torch.randperm(self.problem.n, generator=generator)
            yield from order[: len(order) - len(order) % self.batch].split(self.batch)

    def losses(self, indices: Tensor) -> Tensor:
        """Loss of each of these training samples by the model as it is now: [B]."""
        return self.problem.losses(self.model, *self.problem.batch(indices))

    def test(self, model: nn.Module | None = None) -> dict[str, float]:
        """Test loss, and accuracy or perplexity, in eval mode."""
        part = dataclasses.replace(
            self.problem,
            test_x=self.problem.test_x[self._tests],
            test_y=None if self.problem.test_y is None else self.problem.test_y[self._tests],
        )
        return part.evaluate(model or self.model, batch=TEST_BATCH)


@lru_cache(maxsize=4)
def _problem(config: TrainConfig) -> Problem:
    return make_problem(config, _table(config.data))


@lru_cache(maxsize=4)
def _table(data: str) -> Table:
    return load(data)
