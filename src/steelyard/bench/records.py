"""What an audit is asked, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from steelyard.bench.lower_bound import LEAST, Bound, Count, lower_bound, pooled
from steelyard.plans.checks import chosen, fraction, real, whole
from steelyard.runs.config import TrainConfig

MODES = ("gradient", "input")
CANARIES = {"gradient": 4000, "input": 1000}


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What is trained and claimed, and how hard it is looked at.

    canaries: m; None is 4,000 in mode "gradient" and 1,000 in mode "input". ordinary: how many of
    the data set's other samples take part; None is all, in mode "input" m. groups: patterns name
    parameters of what is trained, in mode "gradient" `model.*` and the canaries' `tables.*`.
    seed: of weights, coins, canaries, noise and sampling; an audit's model is not for publishing.
    break_noise: for testing the audit only, the part of the claimed noise that is really added.
    Raises ValueError (one line) for a value out of range.
    """

    model: str = "cnn"
    data: str = "fashion-mnist-small"
    label: str | None = None
    mode: str = "gradient"
    epsilon: float = 3.0
    delta: float = 1e-5
    accountant: str = "pld"
    canaries: int | None = None
    ordinary: int | None = None
    steps: int = 120
    batch: int = 512
    lr: float = 0.25
    clip: str = "auto-s"
    groups: str = "all"
    confidence: float = 0.95
    seed: int = 0
    break_noise: float = 1.0

    def __post_init__(self) -> None:
        chosen("mode", self.mode, MODES)
        real("epsilon", self.epsilon, above=0.0, fix="claim a budget such as 3")
        fraction("delta", self.delta, fix="use a number well below 1/n, such as 1e-5")
        fraction("confidence", self.confidence, fix="use 0.95, say")
        whole("canaries", self.m, least=LEAST, fix="a thousand or more can show something")
        if self.ordinary is not None:
            whole("ordinary", self.ordinary, least=1, fix="leave it out for all there are")
        whole("seed", self.seed, least=0, fix="count from 0")
        real("break-noise", self.break_noise, above=0.0, fix="use 0.25, say; 1 breaks nothing")
        self.training()  # checks the others

    @property
    def m(self) -> int:
        return CANARIES[self.mode] if self.canaries is None else self.canaries

    def training(self) -> TrainConfig:
        """The settings of the training under audit."""
        names = ("model", "data", "label", "epsilon", "delta", "accountant", "steps", "batch", "lr")
        same = {name: getattr(self, name) for name in (*names, "clip", "groups", "seed")}
        return TrainConfig(**same)

    def looked(self) -> dict[str, Any]:
        """What `lower_bound` asks beside the counts, for one run."""
        return {"canaries": self.m, "delta": self.delta, "confidence": self.confidence}


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """One audited training.

    n: ordinary samples and canaries. noise_multiplier: as claimed. claimed_epsilon: the ledger's,
    at the configuration's delta. counts: guesses made and guesses right. bound: on epsilon from
    below, at the configuration's confidence. ceiling: the bound of perfect guesses. expected: the
    median bound when the claimed mechanism is simulated, without any code of the engine; None in
    mode "input". test: test loss and accuracy of the trained model.
    """

    config: AuditConfig
    n: int
    noise_multiplier: float
    claimed_epsilon: float
    counts: tuple[Count, ...]
    bound: Bound
    ceiling: float
    expected: float | None
    test: dict[str, float]
    seconds: float

    @property
    def refuted(self) -> bool:
        """Whether more is spent than claimed, at this confidence."""
        return self.bound.epsilon > self.claimed_epsilon

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"refuted": self.refuted}


def together(results: Sequence[AuditResult]) -> Bound:
    """The bound of several seeds as one audit: sharper than each alone, nothing to pick from.

    Guarantees: it exceeds epsilon with probability at most 1 - confidence (see
    `lower_bound.pooled`). Raises ValueError when the runs differ in more than their seed.
    """
    first = results[0].config
    if any(replace(result.config, seed=first.seed) != first for result in results):
        raise ValueError("only audits that differ in nothing but their seed can be pooled")
    looked = first.looked() | {"canaries": sum(result.config.m for result in results)}
    return lower_bound(pooled([result.counts for result in results]), **looked)
