"""The tasks on which claims are compared, and the arms that several claims share.

Rates stand around the natural scale of an arm: momentum without dampening multiplies the step by
1 / (1 - phi), so its rates are divided by that; clipping to R divides them by R. The shared arms
are equal in every claim, so each is trained once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from steelyard.runs.arms import Arm, Experiment
from steelyard.runs.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A task: data, model, budget of steps; the natural rates; how much effort an arm gets.

    n: private samples, without a public part. sgd, adam, plain: the middle of the grids of SGD on
    clipped gradients (AUTO-S, R = 1), of Adam, and of SGD on gradients that are not clipped.
    """

    data: str
    base: TrainConfig
    n: int
    sgd: float
    adam: float
    plain: float
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    size: int = 4
    features: str | None = None

    def rates(self, middle: float) -> tuple[float, ...]:
        """`size` rates in steps of 2 around the middle, one more below it where size is even."""
        below = self.size // 2
        return tuple(float(f"{middle * 2.0 ** (k - below):.6g}") for k in range(self.size))

    def arm(self, name: str, middle: float, changes: Mapping[str, Any], **more: Any) -> Arm:
        return Arm(name=name, rates=self.rates(middle), changes=changes, **more)

    def experiment(self, arms: Sequence[Arm]) -> Experiment:
        return Experiment(
            data=self.data,
            base=self.base,
            arms=tuple(arms),
            epsilons=self.epsilons,
            seeds=self.seeds,
            features=self.features,
        )

    def less(self, **changes: Any) -> Setting:
        return dataclasses.replace(self, **changes)


FASHION = Setting(
    data="Fashion-MNIST, MLP",
    base=TrainConfig(
        model="mlp",
        data="fashion-mnist",
        delta=1e-5,
        batch=1024,
        micro_batch=1024,
        epochs=5,
        momentum=0.0,
        device="cpu",
    ),
    n=60_000,
    sgd=8.0,
    adam=8e-3,
    plain=0.2,
    epsilons=(1.0, 3.0, 8.0),
    seeds=(0, 1, 2, 3, 4),
)
REVIEWS = Setting(
    data="Rotten Tomatoes, MiniLM",
    base=FASHION.base.replace(data="rotten-tomatoes", batch=512, micro_batch=512, epochs=10),
    n=7_512,
    sgd=2.0,
    adam=2e-3,
    plain=0.02,
    epsilons=(1.0, 3.0, 8.0),
    seeds=(0, 1, 2, 3, 4),
    features="minilm",
)
CIFAR = Setting(
    data="CIFAR-10, CNN",
    base=FASHION.base.replace(model="cnn", data="cifar10", micro_batch=256, epochs=2),
    n=50_000,
    sgd=2.0,
    adam=2e-3,
    plain=0.1,
    epsilons=(1.0, 3.0, 8.0),
    seeds=(0, 1, 2),
    size=3,
)

TOLD = {
    FASHION.data: "Fashion-MNIST: 60,000 images, MLP 784-256-10, batch 1,024, 5 epochs",
    REVIEWS.data: "Rotten Tomatoes: 7,512 sentences as frozen features of MiniLM (mean over 64 "
    "tokens, unit length, computed once by the public encoder), linear head, batch 512, 10 epochs",
    CIFAR.data: "CIFAR-10: 50,000 images, CNN of two convolutions, batch 1,024, 2 epochs",
}
PROTOCOL = (
    "Poisson batches, delta 1e-5, AUTO-S with R = 1 where nothing else is said, constant rate. "
    "Search: for each arm and epsilon a grid of rates in steps of 2, of one size for all arms of a "
    "comparison, widened by one step up to twice while the best rate lies at an end; seed 100, "
    "judged on a twelfth of the training samples that is held out by content. Then the best rate "
    "on all training samples and the seeds listed, judged on the test set. The search is not "
    "charged to epsilon. One seed gives all arms the same weights, batches and noise, so "
    "differences are paired; p from Student's t, at level 0.05 for all comparisons of a claim "
    "together (Holm); spread is over seeds only"
)


def told(settings: Sequence[Setting]) -> str:
    """The field `setting` of a row."""
    return ". ".join([*dict.fromkeys(TOLD[setting.data] for setting in settings), PROTOCOL])


def dp_sgd(s: Setting) -> Arm:
    return s.arm("DP-SGD", s.sgd, {}, role="baseline")


def momentum(s: Setting) -> Arm:
    """torch's momentum, dampening 0: gain 10."""
    return s.arm("DP-SGD, momentum 0.9", s.sgd / 10, {"momentum": 0.9}, role="baseline")


def ema(s: Setting, gain: float) -> Arm:
    """Momentum with dampening and bias correction: m <- (1 - gain) m + gain g."""
    filters = (f"doppler:{1 - gain:g}",)
    return s.arm(f"EMA, gain {gain:g}", s.sgd, {"filters": filters}, role="baseline")


def dp_adam(s: Setting) -> Arm:
    """AdamW without weight decay, its own moments 0.9 and 0.999."""
    return s.arm("DP-AdamW", s.adam, {"optimizer": "adamw"}, role="reference")


@cache
def noise_multiplier(s: Setting, epsilon: float) -> float:
    """sigma of plain DP-SGD at this budget."""
    from steelyard.plans.privacy import plan_privacy

    assert s.base.delta is not None
    plan = plan_privacy(
        n=s.n,
        batch=s.base.batch,
        epochs=s.base.epochs,
        steps=s.base.steps,
        epsilon=epsilon,
        delta=s.base.delta,
    )
    return plan.noise_multiplier
