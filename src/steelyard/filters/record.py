"""Look at released gradients over time: a few coordinates of each step, noted in passing.

The idea of Figure 2 of DOPPLER, arXiv 2408.13460: the spectrum of the gradient's coordinates over
the steps, against that of the noise. Draw it with `steelyard.report.spectrum`.

    chain(Gaussian(sigma), before := Recorder(), Doppler.first_order(0.9), after := Recorder())
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steelyard.generators import fresh_root, generator
from steelyard.types import Noised

KIND = "recorder"


class Recorder:
    """A filter that changes nothing and notes `coordinates` numbers of every released gradient.

    coordinates: how many, all of them where the model has fewer. seed: which; recorders of equal
    seed note the same ones wherever they stand in a chain.

    Guarantees: what it notes has passed the noise, so it costs no privacy and may be published.
    Memory grows with the run: coordinates + 1 numbers a step, 260 bytes for 64 of them.
    Raises ValueError for fewer than one coordinate, and for another model than at the first step.
    """

    def __init__(self, coordinates: int = 64, seed: int = 0):
        if coordinates < 1:
            raise ValueError(f"a recorder needs one coordinate or more, found {coordinates}")
        self.coordinates, self.seed = coordinates, seed
        self._chosen: Tensor | None = None  # [k], places in all parameters one behind the other
        self._places: list[Tensor] = []  # the same, within each parameter
        self._size = 0  # of all parameters together
        self._rows: list[Tensor] = []  # a step each: [k] float32
        self._noise: list[float] = []

    @property
    def values(self) -> NDArray[np.float32]:
        """[T, k] float32: what was noted, one row a step."""
        if not self._rows:
            return np.zeros((0, self.coordinates), np.float32)
        return torch.stack([row.cpu() for row in self._rows]).numpy()

    @property
    def noise_std(self) -> NDArray[np.float64]:
        """[T]: standard deviation of the noise that the mechanism added to each coordinate.

        That is sigma * sensitivity of the record: behind a filter less of it is left.
        """
        return np.array(self._noise)

    @torch.no_grad()
    def filter(self, gradient: Noised) -> Noised:
        """Notes the chosen coordinates and hands on the same record."""
        tensors = gradient.tensors
        size = sum(t.numel() for t in tensors)
        if self._chosen is None:
            self._chosen, self._size = self._choose(size), size
        if size != self._size:
            raise ValueError(
                f"the recorder has seen gradients of {self._size:,} numbers, and got {size:,}: "
                "make a new one when the parameters change"
            )
        if not self._places:
            start = 0
            for t in tensors:
                inside = (self._chosen >= start) & (self._chosen < start + t.numel())
                self._places.append((self._chosen[inside] - start).to(t.device))
                start += t.numel()
        noted = [
            t.reshape(-1)[at].float()
            for t, at in zip(tensors, self._places, strict=True)
            if len(at)
        ]
        self._rows.append(torch.cat([n.to(noted[0].device) for n in noted]))
        self._noise.append(gradient.noise_multiplier * gradient.sensitivity)
        return gradient

    def _choose(self, size: int) -> Tensor:
        """Up to `coordinates` different places, sorted. No permutation of a whole large model."""
        if size <= self.coordinates:
            return torch.arange(size)
        source = generator(fresh_root(self.seed), "recorded coordinates")
        found: set[int] = set()
        while len(found) < self.coordinates:
            found.add(int(torch.randint(size, (), generator=source)))
        return torch.tensor(sorted(found))

    def state_dict(self) -> dict[str, Any]:
        """Everything noted so far, and which coordinates."""
        return {
            "kind": KIND,
            "coordinates": self.coordinates,
            "seed": self.seed,
            "size": self._size,
            "chosen": [] if self._chosen is None else self._chosen.tolist(),
            "values": torch.from_numpy(self.values),
            "noise_std": list(self._noise),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved. Raises ValueError for another recorder's state."""
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            raise ValueError("not a saved state of Recorder: load what this recorder saved")
        for name in ("kind", "coordinates", "seed"):
            ours = self.state_dict()[name]
            if state[name] != ours:
                raise ValueError(
                    f"the state is of a recorder with {name} {state[name]!r}, this one has "
                    f"{ours!r}: make it with the saved one"
                )
        self._size, self._places = state["size"], []
        self._chosen = torch.tensor(state["chosen"]) if state["chosen"] else None
        self._rows = [row.clone() for row in state["values"]]
        self._noise = list(state["noise_std"])
