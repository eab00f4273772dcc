"""The Gaussian mechanism: released = clipped mean + sigma * sensitivity * z, z ~ N(0, I).

Dwork et al. 2006; Abadi et al. 2016, arXiv 1607.00133, Algorithm 1. One draw per step, on every
tensor, also when the batch was empty, in float32 or better.

On CPUs, z is made of cipher words (AES-256, keyed by the operating system): whoever sees noise
cannot compute other noise from it. On other devices torch draws, from one generator per device,
seeded with 63 bits of the same entropy.

Not protected against: floating-point attacks on the low bits of the sum (Mironov 2012); for that
there is `GridGaussian`. Source: docs/noise.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from steelyard.filters.box_muller import BoxMuller
from steelyard.filters.keystream import Keystream, pieces, refuse_foreign
from steelyard.generators import fresh_root, generator
from steelyard.types import Clipped, Noised

CHUNK = 65_536  # numbers: with 10 bytes of scratch for each, they stay in a core's own cache
KIND = "gaussian"


class Gaussian:
    """Mechanism with noise multiplier sigma (noise standard deviation per unit of L2 sensitivity).

    Raises ValueError for a negative or non-finite sigma. sigma = 0 is allowed for tests and
    non-private runs; a ledger reports it as epsilon = infinity.
    """

    def __init__(self, noise_multiplier: float, *, seed: int | None = None):
        self.noise_multiplier = checked_multiplier(noise_multiplier)
        self.seeded = seed is not None
        self._root = fresh_root(seed)
        self._words = Keystream(self._root, f"{KIND} cpu")
        self._devices: dict[str, torch.Generator] = {}
        self._scratch: dict[torch.dtype, BoxMuller] = {}

    def privatise(self, gradient: Clipped) -> Noised:
        """Adds the noise in place and hands the tensors on as a released gradient."""
        if self.noise_multiplier > 0:
            scale = self.noise_multiplier * checked_sensitivity(gradient.sensitivity)
            on_cpu = [t for t in gradient.tensors if t.device.type == "cpu"]
            for dtype in sorted({t.dtype for t in on_cpu}, key=str):
                self._add_on_cpu([t for t in on_cpu if t.dtype == dtype], dtype, scale)
            for tensor in gradient.tensors:
                if tensor.device.type != "cpu":
                    noise = torch.empty_like(tensor)
                    noise.normal_(generator=self._generator(str(tensor.device)))
                    tensor.add_(noise, alpha=scale)
        return Noised(gradient.tensors, gradient.sensitivity, self.noise_multiplier)

    def _add_on_cpu(self, tensors: list[Tensor], dtype: torch.dtype, scale: float) -> None:
        count = min(CHUNK, sum(t.numel() for t in tensors))
        scratch = self._scratch.get(dtype)
        if scratch is None or scratch.size < count:
            scratch = self._scratch[dtype] = BoxMuller(count, tensors[0].detach()[:0].numpy().dtype)
        for numbers, views in pieces(tensors, CHUNK):
            noise, start = scratch.draw(self._words, numbers, scale), 0
            for view in views:
                view += noise[start : start + len(view)]
                start += len(view)

    def _generator(self, device: str) -> torch.Generator:
        if device not in self._devices:
            self._devices[device] = generator(self._root, f"noise {device}", device)
        return self._devices[device]

    def state_dict(self) -> dict[str, Any]:
        """Private: whoever holds it can draw all noise again. Keep it with the checkpoint."""
        return {
            "kind": KIND,
            "root": self._root,
            "seeded": self.seeded,
            "position": self._words.position,
            "devices": {name: made.get_state() for name, made in self._devices.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved, bit for bit. Raises ValueError for any other state."""
        refuse_foreign(state, self.state_dict(), "Gaussian")
        self._root, self.seeded = state["root"], state["seeded"]
        self._words = Keystream(self._root, f"{KIND} cpu", state["position"])
        self._devices = {}
        for device, saved in state["devices"].items():
            self._generator(device).set_state(saved)


def checked_multiplier(sigma: float) -> float:
    if not 0 <= sigma < math.inf:
        raise ValueError(f"the noise multiplier must be 0 or positive, found {sigma}")
    return float(sigma)


def checked_sensitivity(sensitivity: float) -> float:
    if not math.isfinite(sensitivity):
        raise ValueError(
            "noise needs a finite clipping bound, found inf: choose a bound, or "
            "noise_multiplier 0 for training without privacy"
        )
    return sensitivity
