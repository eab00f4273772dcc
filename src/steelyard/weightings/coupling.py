"""How much a public gradient counts beside the privatised one: alpha in [0, 1].

    combined = alpha * gbar_pub + (1 - alpha) * ghat

Liu, Bu, Wang, Zha, Karypis, "Coupling public and private gradient provably helps optimization",
arXiv 2310.01304; the closed form is equation 10 of Bu, Zhang, Hong, Zha, Karypis, arXiv 2402.18752.

| symbol | here |
|---|---|
| B_pub, B | `public_batch`, `batch`: sizes of the public and of the expected private batch |
| tr(H Cov), tr(H) | `trace_covariance`, `trace`: spread of per-sample gradients, curvature |
| sigma, R | `noise_multiplier`, `bound` |
| cbar | `clip_factor`: mean clip factor E[C_i] where only the private rows are clipped, else 1 |
| V_pub, V_priv | `public_variance`, `private_variance` of the two gradients, all coordinates |
| bias2 | ||G_pub - G_priv||^2, squared distance of the two distributions' mean gradients |

    one step, at its best learning rate, improves most at                                (eq. 10)
        alpha* = 1 / (1 + tr(H Cov) (B / B_pub) / cbar / (tr(H Cov) + sigma^2 tr(H) / (B cbar^2)))
               = V_priv / (V_priv + cbar V_pub)                       inverse variances if cbar = 1
    with    V_pub  = tr(H Cov) / B_pub
            V_priv = cbar^2 tr(H Cov) / B + sigma^2 R^2 tr(H) / B^2
    shift:  V_pub grows by bias2

A weight sees `Known` and nothing else: public or already noised, so it costs no privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

METRICS = ("identity", "adam")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All that a weight may look at in one step.

    step counts from 0. public_batch: samples of this step's public batch; batch: the expected
    private one. public_variance: V_pub, estimated on this step's public rows in the metric that
    the weight asks for; None where it asks for none, or the batch is too small to tell.
    noise_variance: (sigma R / B)^2 d, of the noise in the private gradient; the metrics are scaled
    to trace d, so it is the same in all.
    """

    step: int
    public_batch: int
    batch: float
    public_variance: float | None
    noise_variance: float


class PublicWeight(Protocol):
    """Decides alpha; `Stateful` too where it remembers."""

    @property
    def metric(self) -> str | None:
        """In which metric V_pub is to be measured: "identity", "adam", or None for not at all."""
        ...

    def alpha(self, known: Known) -> float:
        """The weight of the public gradient in this step, in [0, 1]."""
        ...


@dataclass(frozen=True)
class ConstantWeight:
    """alpha, the same at every step. 0: the private gradient alone, 1: the public one alone."""

    value: float
    metric = None  # nothing to measure

    def __post_init__(self) -> None:
        checked_alpha(self.value)

    def alpha(self, known: Known) -> float:
        return self.value


@dataclass(frozen=True)
class SampleWeight:
    """alpha = n_pub / (n_pub + n): every sample counts alike, whichever set it is from.

    n_private is treated as public, as everywhere in the accounting.
    """

    n_public: int
    n_private: int
    metric = None  # nothing to measure

    def __post_init__(self) -> None:
        if self.n_public < 0 or self.n_private < 0 or self.n_public + self.n_private == 0:
            raise ValueError(
                f"sample counts must be 0 or positive, and one of them positive; found "
                f"{self.n_public} public and {self.n_private} private samples"
            )

    def alpha(self, known: Known) -> float:
        return self.n_public / (self.n_public + self.n_private)


@dataclass(frozen=True)
class CosineWeight:
    """alpha_t = end + (start - end) cos(pi t / (2 steps)): from start at t = 0 to end at `steps`.

    By default it falls from 1 to 0: public first, which a small public set bears best. The mirror
    descent of Amid et al. (arXiv 2112.00193, DPMD) puts the cosine on the private gradient: there
    the public one grows, `CosineWeight(steps, start=0, end=1)`. After `steps` it stays at end.
    """

    steps: int
    start: float = 1.0
    end: float = 0.0
    metric = None  # nothing to measure

    def __post_init__(self) -> None:
        if not self.steps > 0:
            raise ValueError(f"the number of steps must be positive, found {self.steps}")
        checked_alpha(self.start)
        checked_alpha(self.end)

    def alpha(self, known: Known) -> float:
        if known.step >= self.steps:
            return self.end
        down = math.cos(math.pi * known.step / (2 * self.steps))  # 1 at the first step
        return self.end + (self.start - self.end) * down


class OptimalWeight:
    """alpha* = V_priv / (V_priv + cbar (V_pub + bias2)), estimated anew at every step.

    V_pub * B_pub, one public row's spread, is averaged over steps (exponentially, `memory`, without
    a bias towards 0 at the start); V_priv = cbar^2 V_pub B_pub / B + noise variance takes the
    private rows to spread alike. Left out, as in the paper: the random size of Poisson batches,
    which adds at most |G|^2 / B, along the gradient itself.

    metric: "identity" (for SGD; noise in flat directions counts as much as in steep ones, so alpha
    comes out high where d is large), or "adam" for the curvature that Adam takes for granted,
    1 / (sqrt(v) + eps) scaled to mean 1; it compares a step's public micro-batches, so it needs two
    of them. bias2: in the same metric, from public knowledge only. clip_factor: cbar, where the
    public rows are neither clipped nor rescaled; otherwise 1.

    Never exactly 0 or 1 unless some variance is 0. Raises ValueError while no step so far had two
    public samples (metric "adam": two micro-batches).
    """

    def __init__(
        self,
        *,
        metric: str = "identity",
        memory: float = 0.9,
        bias2: float = 0.0,
        clip_factor: float = 1.0,
    ):
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")
        if not 0 <= memory < 1:
            raise ValueError(f"memory must be in [0, 1), found {memory}")
        if not 0 <= bias2 < math.inf:
            raise ValueError(f"bias2, a squared distance, must be 0 or positive, found {bias2}")
        if not 0 < clip_factor < math.inf:
            raise ValueError(f"the mean clip factor must be positive, found {clip_factor}")
        self.metric, self.memory = metric, memory
        self.bias2, self.clip_factor = bias2, clip_factor
        self._spread, self._seen = 0.0, 0.0  # sum of the average, sum of its weights

    def alpha(self, known: Known) -> float:
        if known.public_variance is not None:
            rate, now = 1 - self.memory, known.public_variance * known.public_batch
            self._spread += rate * (now - self._spread)
            self._seen += rate * (1 - self._seen)
        if self._seen == 0:
            two = "samples" if self.metric == "identity" else "micro-batches"
            raise ValueError(
                f"the optimal weight needs two public {two} in the first step to see their spread: "
                "give the public rows more of them, or a constant weight"
            )
        spread = self._spread / self._seen  # tr(H Cov)
        if spread == 0 and known.noise_variance == 0:
            spread = 1.0  # the weight does not depend on it, but 0 / 0 would
        sampling = self.clip_factor**2 * spread / known.batch
        return inverse_variance_alpha(
            spread / known.public_batch,
            sampling + known.noise_variance,
            bias2=self.bias2,
            clip_factor=self.clip_factor,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"spread": self._spread, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._spread, self._seen = state["spread"], state["seen"]


def optimal_alpha(
    *,
    trace_covariance: float,
    trace: float,
    noise_multiplier: float,
    batch: float,
    public_batch: float,
    clip_factor: float = 1.0,
    bound: float = 1.0,
) -> float:
    """Equation 10: alpha* of one step from tr(H Cov), tr(H), sigma, B, B_pub, cbar and R.

    For cbar != 1 it is the weight of the pair as it is: raw public, clipped private gradient.
    It grows with sigma, tr(H) and B_pub, and falls with B.
    """
    noise = (noise_multiplier * bound) ** 2 * trace
    return inverse_variance_alpha(
        trace_covariance / public_batch,
        clip_factor**2 * trace_covariance / batch + noise / batch**2,
        clip_factor=clip_factor,
    )


def inverse_variance_alpha(
    public_variance: float,
    private_variance: float,
    *,
    bias2: float = 0.0,
    clip_factor: float = 1.0,
) -> float:
    """V_priv / (V_priv + cbar (V_pub + bias2)): on equal footing, weights by inverse variance.

    Raises ValueError for a variance that is negative or not finite, and when all of them are 0.
    """
    public = clip_factor * (public_variance + bias2)
    for name, value in (("public", public), ("private", private_variance)):
        if not 0 <= value < math.inf:
            raise ValueError(f"the {name} variance must be 0 or positive, found {value}")
    if public + private_variance == 0:
        raise ValueError("both variances are 0: every weight is optimal, so choose one")
    return private_variance / (private_variance + public)


def parse_weight(
    text: str, *, n_public: int, n_private: int, steps: int
) -> ConstantWeight | SampleWeight | CosineWeight | OptimalWeight:
    """A number in [0, 1], or `samples`, `cosine`, `optimal`.

    Raises ValueError for any other text.
    """
    if text == "samples":
        return SampleWeight(n_public, n_private)
    if text == "cosine":
        return CosineWeight(steps)
    if text == "optimal":
        return OptimalWeight()
    try:
        value = float(text)
    except ValueError:
        raise ValueError(
            f"unknown weight of the public gradient {text!r}: choose samples, cosine, optimal, or "
            "a number from 0 to 1"
        ) from None
    return ConstantWeight(value)


def checked_alpha(alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"the weight of the public gradient must be in [0, 1], found {alpha}: 0 is private "
            "only, 1 public only"
        )
    return alpha
