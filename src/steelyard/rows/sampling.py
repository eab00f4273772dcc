"""Poisson batches: every sample joins every step independently with probability q = B / n.

The privacy accounting is for exactly this. Batch sizes vary, an empty batch is a step like any
other, and the divisor stays the expected B. A logical batch is cut into micro-batches to fit into
memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from steelyard.generators import fresh_root, generator


class PoissonSampler(Sampler[list[int]]):
    """A batch sampler of `steps` Poisson batches over range(n); resumes where `state_dict` was
    taken.

    The generator is owned, seeded by the operating system unless `seed` is given: who took part is
    part of what the privacy amplification hides.

    Raises ValueError when not 0 < q <= 1, or n < 1.
    """

    def __init__(self, n: int, sampling_probability: float, steps: int, *, seed: int | None = None):
        if n < 1:
            raise ValueError(f"a private data set needs at least one sample, found {n}")
        if not 0 < sampling_probability <= 1:
            raise ValueError(
                f"the sampling probability must be in (0, 1], found {sampling_probability}: the "
                "expected batch must not exceed the data set"
            )
        self.n, self.q, self.steps = n, float(sampling_probability), steps
        self.step = 0
        self._generator = generator(fresh_root(seed), "Poisson sampling")

    def draw(self) -> Tensor:
        """The indices of the next batch, int64 [any size, 0 included]."""
        self.step += 1
        # float64: float32 has 24 random bits, too coarse for a small q
        uniform = torch.rand(self.n, generator=self._generator, dtype=torch.float64)
        return (uniform < self.q).nonzero().squeeze(1)

    def __iter__(self) -> Iterator[list[int]]:
        while self.step < self.steps:
            yield self.draw().tolist()

    def __len__(self) -> int:
        return self.steps - self.step

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "q": self.q, "step": self.step, "rng": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["n"], state["q"]) != (self.n, self.q):
            raise ValueError(
                f"the saved sampler drew from n={state['n']} with q={state['q']:g}, this one draws "
                f"from n={self.n} with q={self.q:g}"
            )
        self.step = state["step"]
        self._generator.set_state(state["rng"])


def microbatches(batch: Tensor, size: int) -> Sequence[Tensor]:
    """One logical batch of indices in pieces of at most `size`; an empty batch is one empty

    piece.
    """
    return batch.split(size) if len(batch) else [batch]


def poisson_loader(
    dataset: Dataset[Any], sampler: PoissonSampler, **options: Any
) -> DataLoader[Any]:
    """A DataLoader of Poisson batches; an empty one has the structure of the others, length 0.

    options: passed on to `torch.utils.data.DataLoader` (num_workers, pin_memory, ...). A state
    taken while workers prefetch is ahead of the batches seen: resume from a loader with
    num_workers=0.
    """
    collate = options.pop("collate_fn", default_collate)
    example = dataset[0]

    def collate_any(samples: list[Any]) -> Any:
        return collate(samples) if samples else _emptied(collate([example]))

    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_any, **options)


def _emptied(batch: Any) -> Any:
    """A collated batch of one sample without the sample: nothing of it may stay behind."""
    if isinstance(batch, Tensor):
        return batch[:0]
    if isinstance(batch, Mapping):
        return type(batch)({key: _emptied(value) for key, value in batch.items()})  # pyright: ignore[reportCallIssue]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a namedtuple
        return type(batch)(*(_emptied(value) for value in batch))
    if isinstance(batch, list | tuple):
        if all(isinstance(value, str | bytes | int | float) for value in batch):
            return type(batch)()  # a column of plain values
        return type(batch)(_emptied(value) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: _emptied(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **fields)
    raise ValueError(
        f"cannot make an empty batch with the structure of a {type(batch).__name__}: give a "
        "collate_fn that returns tensors, mappings, sequences or dataclasses of them"
    )
