"""The private side of a run: rows, noise, filters and ledger, as the settings name them.

    chain(noise [or error feedback], public rows?, recorder, filter, ..., recorder)

It is made at the start, so that bad settings are refused at once, and connected to the optimizer
when the private phase begins.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from steelyard.filters.attach import attach
from steelyard.filters.chain import Chain, chain
from steelyard.filters.dice import Dice
from steelyard.filters.gaussian import Gaussian
from steelyard.filters.grid import GridGaussian
from steelyard.filters.named import Named, make_filter, read
from steelyard.filters.record import Recorder
from steelyard.plans.privacy import PrivacyPlan
from steelyard.rows.per_sample import PerSample
from steelyard.rows.sources import PublicRows
from steelyard.runs.config import TrainConfig, parse_groups
from steelyard.runs.files import write_atomically
from steelyard.runs.ledger import Ledger
from steelyard.runs.problem import Problem
from steelyard.types import Filter, Mechanism
from steelyard.weightings.clip import FlatClip, parse_clip
from steelyard.weightings.coupling import parse_weight

MECHANISMS = {"gaussian": Gaussian, "grid": GridGaussian}
COORDINATES = 64  # of the released gradient, noted for the report's spectrum


class PrivateSide:
    """rows, mechanism and ledger of a private run; made, then connected.

    Raises ValueError, one line, for settings that do not fit together.
    """

    def __init__(self, problem: Problem, config: TrainConfig, plan: PrivacyPlan, model: nn.Module):
        self.plan = plan
        clip = parse_clip(config.clip)
        if math.isinf(clip.bound):
            raise ValueError(f"--clip {config.clip} bounds nothing: give a bound, as in flat:1")
        self.rows = PerSample(
            model,
            clip,
            expected_batch=float(config.batch),
            groups=parse_groups(config.groups),
            strict=config.strict,
        )
        self.public = self._public_rows(problem, config)
        named = [read(text) for text in config.filters]
        noise = self._noise(config, named, clip)
        filters: list[Filter] = [make_filter(one) for one in named if one.name != "dice"]
        self.recorders = [Recorder(COORDINATES), *([Recorder(COORDINATES)] if filters else [])]
        public = [] if self.public is None else [self.public]
        first, *second = self.recorders
        self.mechanism: Chain = chain(noise, *public, first, *filters, *second)
        self.warnings = [
            text
            for one in filters
            if (check := getattr(one, "check_length", None)) and (text := check(plan.steps))
        ]
        self.ledger = Ledger(plan)
        self.ledger.noise = config.noise
        self.ledger.noise_seeded_by_user = config.noise_seed is not None
        self._say(problem, config)

    def _public_rows(self, problem: Problem, config: TrainConfig) -> PublicRows | None:
        if config.public_weight is None:
            return None
        weight = parse_weight(
            config.public_weight,
            n_public=problem.n_public,
            n_private=problem.n,
            steps=self.plan.steps,
        )
        if config.public_weight not in ("samples", "cosine", "optimal") and (
            float(config.public_weight) == 1
        ):
            raise ValueError(
                "--public-weight 1 trains on public samples only and would be charged for private "
                "ones: use --no-privacy --public-first 1"
            )
        if weight.metric is not None and config.public_batch < 2:
            raise ValueError(
                f"--public-weight {config.public_weight} compares public samples: give "
                "--public-batch 2 or more"
            )
        return PublicRows(self.rows, weight, batch=config.public_batch)

    def _noise(self, config: TrainConfig, named: Sequence[Named], clip: Any) -> Mechanism:
        sigma, seed = self.plan.noise_multiplier, config.noise_seed
        fed_back = [one for one in named if one.name == "dice"]
        if not fed_back:
            mechanism = MECHANISMS[config.noise](sigma, seed=seed)
            if isinstance(mechanism, GridGaussian):  # refuses now what it would at the first step
                trained = sum(p.numel() for p in self.rows.parameters)
                mechanism.spacing(self.rows.sensitivity, trained)
            return mechanism
        options = fed_back[0].options
        if len(fed_back) > 1 or named[0].name != "dice":
            raise ValueError("--filter dice comes once, before every other filter")
        if config.noise != "gaussian":
            raise ValueError(f"--filter dice draws Gaussian noise: drop --noise {config.noise}")
        if not isinstance(clip, FlatClip):
            raise ValueError(
                f"--filter dice needs flat clipping, found --clip {config.clip}: use --clip flat:1"
            )
        if options.get("accounting") != "paper":
            found = options.get("accounting", "none")
            raise ValueError(
                f"--filter {fed_back[0].text}: accounting {found!r} is not for the command line; "
                "write accounting=paper (rests on the assumptions of its Theorem 3.8), or use Dice "
                "in a loop of your own"
            )
        return Dice(sigma, bound=clip.bound, seed=seed, **options)

    def _say(self, problem: Problem, config: TrainConfig) -> None:
        self.ledger.note_public("test loss and accuracy: the test set is treated as public")
        for note in problem.public:
            self.ledger.note_public(note)
        if problem.public_x is not None:
            self.ledger.note_public(
                f"{problem.n_public} public training samples from {problem.public_source}: nothing "
                "protects them; they must not be about the people behind the private ones"
            )

    def connect(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on every step of the optimizer is a private release."""
        self.rows.discard()  # what was recorded of the public phase
        attach(optimizer, self.rows, self.mechanism, ledger=self.ledger)

    @property
    def inflation(self) -> float:
        """The noise drawn over the noise accounted, per unit of the clipping bound."""
        noise = self.mechanism.mechanism
        return noise.inflation if isinstance(noise, Dice) else 1.0

    @property
    def buffers(self) -> int:
        """How many gradient-sized tensors the parts keep from step to step."""
        return sum(getattr(part, "buffers", 0) for part in self.mechanism.parts)

    def write_spectrum(self, path: Path) -> None:
        """Power over frequency of the released gradient, before and after the filters, as CSV.

        Nothing in runs that are too short for it, or have diverged."""
        from steelyard.report.spectrum import csv_text, spectrum  # scipy: only where it is used

        before, *after = self.recorders
        with contextlib.suppress(ValueError):
            b, a = self._coefficients()
            found = spectrum(
                before.values,
                after[0].values if after else None,
                noise_std=before.noise_std,
                b=b if after else None,
                a=a,
            )
            write_atomically(path, csv_text(found))

    def _coefficients(self) -> tuple[list[float], list[float]]:
        """Of all filters one behind the other, as they pass noise."""
        b, a = [1.0], [1.0]
        for part in self.mechanism.filters:
            if (own := getattr(part, "coefficients", None)) is not None:
                b, a = np.convolve(b, own[0]).tolist(), np.convolve(a, own[1]).tolist()
        return b, a

    def state_dict(self) -> dict[str, Any]:
        return {"mechanism": self.mechanism.state_dict(), "ledger": self.ledger.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mechanism.load_state_dict(state["mechanism"])
        self.ledger.load_state_dict(state["ledger"])
