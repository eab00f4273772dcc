"""The Gaussian mechanism: released = clipped mean + sigma * sensitivity * z, z ~ N(0, I).

Dwork et al. 2006; Abadi et al. 2016, arXiv 1607.00133, Algorithm 1. One draw per step, on every
tensor, also when the batch was empty, in float32 or better.

Noise comes from generators that this object owns, seeded by the operating system unless `seed` is
given (whoever knows the seed can subtract the noise: give one only to reproduce a test). On CPUs
the numbers are drawn by `STREAMS` independent generators in cache-sized chunks, each stream by one
thread at a time, so the result does not depend on the number of threads.

Not protected against: floating-point attacks on the low bits of the sum (Mironov 2012), and torch's
float32 normals end at 5.8 standard deviations. Source: docs/sharp_edges.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from steelyard.generators import fresh_root, generator
from steelyard.types import Clipped, Noised

STREAMS = 4
CHUNK = 8_192  # elements: fits the cache, and torch works on so few in the calling thread
ALONE = 100_000  # fewer numbers than this are not worth handing to other threads


class Gaussian:
    """Mechanism with noise multiplier sigma (noise standard deviation per unit of L2 sensitivity).

    Raises ValueError for a negative or non-finite sigma. sigma = 0 is allowed for tests and
    non-private runs; a ledger reports it as epsilon = infinity.
    """

    def __init__(self, noise_multiplier: float, *, seed: int | None = None):
        if not 0 <= noise_multiplier < math.inf:
            raise ValueError(
                f"the noise multiplier must be 0 or positive, found {noise_multiplier}"
            )
        self.noise_multiplier = float(noise_multiplier)
        self.seeded = seed is not None
        self._root = fresh_root(seed)
        self._streams: dict[str, list[torch.Generator]] = {}

    def privatise(self, gradient: Clipped) -> Noised:
        """Adds the noise in place and hands the tensors on as a released gradient."""
        scale = self.noise_multiplier * gradient.sensitivity
        if self.noise_multiplier > 0:
            if not math.isfinite(scale):
                raise ValueError(
                    "noise needs a finite clipping bound, found inf: choose a bound, or "
                    "noise_multiplier 0 for training without privacy"
                )
            on_cpu = [t for t in gradient.tensors if t.device.type == "cpu"]
            self._add_on_cpu(on_cpu, scale)
            for tensor in gradient.tensors:
                if tensor.device.type != "cpu":
                    (stream,) = self._generators(str(tensor.device), 1)
                    noise = torch.empty_like(tensor).normal_(generator=stream)
                    tensor.add_(noise, alpha=scale)
        return Noised(gradient.tensors, gradient.sensitivity, self.noise_multiplier)

    def _add_on_cpu(self, tensors: Sequence[Tensor], scale: float) -> None:
        chunks = [chunk for t in tensors for chunk in _flat(t).split(CHUNK)]
        streams = self._generators("cpu", STREAMS)
        work = [(stream, chunks[i::STREAMS], scale) for i, stream in enumerate(streams)]
        if torch.get_num_threads() == 1 or sum(t.numel() for t in tensors) < ALONE:
            for one in work:
                _add(one)
        else:
            list(_pool(min(STREAMS, torch.get_num_threads())).map(_add, work))

    def _generators(self, device: str, count: int) -> list[torch.Generator]:
        if device not in self._streams:
            names = [f"noise {device} {i}" for i in range(count)]
            self._streams[device] = [generator(self._root, name, device) for name in names]
        return self._streams[device]

    def state_dict(self) -> dict[str, Any]:
        """Private: whoever holds it can draw the coming noise again. Keep it with the

        checkpoint.
        """
        return {
            "root": self._root,
            "seeded": self.seeded,
            "streams": {d: [g.get_state() for g in gs] for d, gs in self._streams.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._root, self.seeded = state["root"], state["seeded"]
        self._streams = {}
        for device, states in state["streams"].items():
            for made, saved in zip(self._generators(device, len(states)), states, strict=True):
                made.set_state(saved)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="steelyard-noise")


def _add(work: tuple[torch.Generator, Sequence[Tensor], float]) -> None:
    stream, chunks, scale = work
    with torch.no_grad():  # grad mode is per thread
        for chunk in chunks:
            chunk.add_(torch.empty_like(chunk).normal_(generator=stream), alpha=scale)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1)  # rows allocate their sums contiguous
