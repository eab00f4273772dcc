"""Probe losses of private data: clipped per sample, one Gaussian release per fit, paid for.

| symbol | here |
|---|---|
| l_i(x) | loss of sample i at w(x) |
| x_1..x_m | the probe points without x = 0 |
| C, V | `bound`, `spread` |
| B, q | expected batch, sampling probability of the probe batch |

    v_i  = (clip(l_i(x_j), 0, C) - clip(l_i(0), 0, C))_j=1..m        nan counts as C
    v_i <- v_i min(1, V / ||v_i||)                                   with a spread only
    S    = sqrt(m) C, with a spread min(sqrt(m) C, V)
    released = (sum_i v_i + sigma S z) / B,  z ~ N(0, I_m)

One sample more or less moves the sum by one v_i: every component lies in [-C, C], and -C or C is
reached where the loss goes from one end to the other, so S is the sensitivity, not a multiple of it.
The whole fit is post-processing of one (sigma, q) release. Losses differ by little between nearby
points: a spread far below C bounds what one sample really moves, and needs that much less noise.
"""  # noqa: E501

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steelyard.filters.chain import charges
from steelyard.steps.displacements import Displacements
from steelyard.steps.probing import Evaluator, ranks
from steelyard.steps.quadratic import Points
from steelyard.types import Accountant, Clipped, Mechanism


class PrivateProbe:
    """How private losses may be looked at. mechanism: `Gaussian(sigma)`, its own object.

    bound: C. spread: V, None for none. expected_batch, sampling_probability: B and q of the probe
    batch, which must be drawn by Poisson sampling, independently of the training batch. ledger: is
    charged with (sigma, q) once per fit, before anything is computed; None: nobody counts.

    Guarantees: `probe` releases a vector whose L2 sensitivity is `sensitivity(m)`, also for losses
    that are nan, infinite or negative, and for an empty batch. Raises ValueError for a bound,
    spread, batch or probability out of range.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        *,
        bound: float,
        expected_batch: float,
        sampling_probability: float,
        ledger: Accountant | None,
        spread: float | None = None,
    ):
        numbers = {"bound": bound, "expected_batch": expected_batch}
        numbers |= {} if spread is None else {"spread": spread}
        for name, value in numbers.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, found {value}")
        if not 0 < sampling_probability <= 1:
            raise ValueError(
                f"sampling_probability must be in (0, 1], found {sampling_probability}"
            )
        self.mechanism, self.bound, self.spread = mechanism, float(bound), spread
        self.expected_batch, self.sampling_probability = float(expected_batch), sampling_probability
        self._ledger = ledger
        if ledger is not None and mechanism.seeded:
            ledger.noise_seeded_by_user = True

    def sensitivity(self, m: int) -> float:
        """S, of the sum of the v_i for m points beside x = 0."""
        whole = math.sqrt(m) * self.bound
        return whole if self.spread is None else min(whole, self.spread)

    def charge(self) -> None:
        """Pay for one fit; the ledger raises when the budget has no room for it."""
        if self._ledger is not None:
            for sigma, q in charges(self.mechanism, self.sampling_probability):
                self._ledger.charge(noise_multiplier=sigma, sampling_probability=q)

    def probe(
        self, displacements: Displacements, evaluator: Evaluator, X: NDArray[np.float64]
    ) -> Points:
        """As `steelyard.steps.probing.probe`, for a fit that `charge` has paid for; y is the noised
        difference from x = 0. Raises ValueError for losses that are not [B], one per sample."""
        if ranks() > 1:
            raise ValueError("private probes work in one process: every rank would add its noise")
        x = np.concatenate([np.zeros((1, displacements.size)), X])
        found: list[Tensor] = []
        with evaluator.kept(), displacements.kept():
            for point in x:
                displacements.commit(point.tolist())
                found.append(_losses(evaluator))
        if len({len(losses) for losses in found}) > 1:
            raise ValueError(
                "the number of probe losses changes from point to point: use one batch"
            )
        S = self.sensitivity(len(X))
        v = self._bounded(torch.stack(found, 1))  # [B', m], the batch's own size B'
        mean = v.sum(0) / self.expected_batch  # [m]
        released = self.mechanism.privatise(Clipped([mean], S / self.expected_batch))
        y = np.concatenate([[0.0], released.tensors[0].cpu().numpy()])
        sigma = released.noise_multiplier * released.sensitivity
        return Points(x, y[:, None], np.array([sigma]), exact_start=True)

    def _bounded(self, losses: Tensor) -> Tensor:
        """l [B', m + 1] -> v [B', m], no row longer than S."""
        C = self.bound
        inside = losses.nan_to_num(nan=C, posinf=C, neginf=0.0).clamp(0.0, C)
        v = inside[:, 1:] - inside[:, :1]
        if self.spread is not None:
            norms = v.norm(dim=1, keepdim=True)
            v = v * (self.spread / norms.clamp(min=self.spread))
        return v

    def state_dict(self) -> dict[str, Any]:
        """Private, as the mechanism's state is."""
        return self.mechanism.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mechanism.load_state_dict(state)


def _losses(evaluator: Evaluator) -> Tensor:
    """The losses [B'] of all micro-batches, float64."""
    outputs = evaluator.outputs()
    for out in outputs:
        if isinstance(out, tuple) or out.dim() != 1:
            found = "a pair" if isinstance(out, tuple) else f"shape {list(out.shape)}"
            raise ValueError(
                f"private probe losses must be one per sample [B], found {found}: use "
                'reduction="none"'
            )
    return torch.cat([out.detach().double() for out in outputs if isinstance(out, Tensor)])
