"""The settings of one unlearning run: a frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

from steelyard.data.suggest import did_you_mean

ADAPTERS = ("lora", "full")
OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True, kw_only=True)
class UnlearnConfig:
    """What to forget, what to retain, how.

    model: a causal language model of Hugging Face (catalog name, folder or hub name). method: of
    `steelyard.runs.methods.METHODS`. lr None: found by GeN on the retain loss, from lr_start
    (default: 1e-4 for LoRA, 1e-5 for all weights). epochs: passes over the forget set; the retain
    set is cycled. batch: rows of each set in one step, cut into pieces of micro_batch.
    retain_weight: of the retain row, for weightings that have one. stop_forget: end when the forget
    loss (mean over answer tokens) has reached this; reference: or that of this model; tolerance:
    end when the retain loss is above (1 + tolerance) times its start. rows: at most so many rows of
    each set in an evaluation.

    Raises ValueError for a value out of range: one line with the value and the fix.
    """

    model: str
    forget: str
    retain: str
    method: str = "ngdiff"
    adapter: str = "lora"
    rank: int = 16
    optimizer: str = "adamw"
    lr: float | None = None
    lr_start: float | None = None
    epochs: float = 5.0
    batch: int = 8
    micro_batch: int = 8
    length: int = 512
    template: bool = False
    retain_weight: float = 1.0
    beta: float | None = None  # of the objective, where it has one
    gamma: float = 1.0  # of BLUR: how much of the forget gradient
    stop_forget: float | None = None
    reference: str | None = None
    tolerance: float | None = 0.5
    evaluate_every: int | None = None  # steps; default: twenty times in a run
    checkpoint_every: int | None = None  # steps; default: five times in a run
    rows: int = 64
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        from steelyard.runs.methods import METHODS

        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS)
            raise ValueError(f"unknown --method {self.method!r}{hint} use {', '.join(METHODS)}")
        for name, known in (("adapter", ADAPTERS), ("optimizer", OPTIMIZERS)):
            value = getattr(self, name)
            if value not in known:
                hint = did_you_mean(value, known)
                raise ValueError(f"unknown --{name} {value!r}{hint} use {' or '.join(known)}")
        positive = ("lr", "lr_start", "epochs", "batch", "micro_batch", "length", "rank", "beta")
        other = ("rows", "evaluate_every", "checkpoint_every", "stop_forget", "tolerance")
        for name in (*positive, *other):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, found {value}")
        for name in ("retain_weight", "gamma"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be 0 or more, found {value}")
        if self.stop_forget is not None and self.reference is not None:
            raise ValueError(
                f"--stop-forget {self.stop_forget:g} and --reference {self.reference}: give one"
            )
        if self.lr is not None and self.lr_start is not None:
            raise ValueError(
                f"--lr {self.lr:g} is a rate to keep, --lr-start {self.lr_start:g} one to begin "
                "from: give one"
            )
        if self.lr is None and not METHODS[self.method].retains:
            raise ValueError(
                f"--method {self.method} has no retain loss to find a learning rate by: give --lr"
            )

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """From a run folder's config.json; what later versions added or dropped is left out.

        Raises ValueError for what is not the settings of an unlearning run.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{name: value for name, value in saved.items() if name in known})
        except TypeError as error:
            raise ValueError(f"these are not the settings of an unlearning run: {error}") from None
