"""Epsilon of a sequence of private steps, on Google's dp-accounting (imported on first use).

One step: N(sum of clipped rows, (sigma R)^2), every sample in the batch with probability q
(Poisson), neighbours differ by adding or removing one sample. Two accountants:

- "pld": composed privacy loss distributions, a pessimistic "connect the dots" grid
  (Doroshenko et al. 2022, arXiv 2207.04380); tight, the default.
- "rdp": Renyi divergences (Mironov, Talwar, Zhang 2019, arXiv 1908.10530); looser.

sigma = noise_multiplier, q = sampling_probability, T = steps, p = steps in one pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from typing import TYPE_CHECKING

from steelyard.plans.checks import chosen, fraction, real, whole

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

ACCOUNTANTS = ("pld", "rdp")
SAMPLINGS = ("poisson", "unamplified")
MAX_STEPS = 100_000_000
SMALLEST_NOISE, LARGEST_NOISE = 1e-6, 1e9

Counts = tuple[tuple[tuple[float, float], int], ...]  # (((q, sigma), T), ...), sorted


@dataclass(frozen=True, kw_only=True)
class Event:
    """`steps` noisy sums at one (q, sigma), in the order in which a run took them.

    sampling "poisson": every sample joins every step independently with probability q.
    sampling "unamplified": a deterministic loader, every sample at most once in each pass of
    p = ceil(1/q) steps; a pass counts as one Gaussian release, with no credit for sampling.
    sigma = 0 is allowed and costs infinite epsilon. Raises ValueError for malformed fields.
    """

    sampling_probability: float
    noise_multiplier: float
    steps: int
    sampling: str = "poisson"

    def __post_init__(self) -> None:
        q = real("sampling probability", self.sampling_probability, above=0.0, fix="use (0, 1]")
        if q > 1.0:
            raise ValueError(f"sampling probability must be at most 1, found {q:g}: use (0, 1]")
        sigma = real("noise multiplier", self.noise_multiplier, fix="use 0 or more")
        if sigma != 0.0 and not SMALLEST_NOISE <= sigma <= LARGEST_NOISE:
            bounds = f"in [{SMALLEST_NOISE:g}, {LARGEST_NOISE:g}]"
            raise ValueError(f"noise multiplier must be 0 or {bounds}, found {sigma:g}: use 1, say")
        whole("steps", self.steps, least=0, fix="give the number of optimizer steps")
        chosen("sampling", self.sampling, SAMPLINGS)


def steps_per_pass(sampling_probability: float) -> int:
    """p = ceil(1/q): steps in which a deterministic loader visits every sample once."""
    return math.ceil(1.0 / sampling_probability - 1e-9)  # 1/(B/n) may exceed n/B by rounding


def spent_epsilon(events: Sequence[Event], delta: float, accountant: str = "pld") -> float:
    """Smallest epsilon found such that all `events` together are (epsilon, delta)-private.

    Shapes and units: natural logarithm units; delta in (0, 1).
    Guarantees: an upper bound up to double-precision rounding; no events give 0; any noiseless
    step gives inf; never decreases with q or steps, nor increases with sigma (to the grid's
    0.1 %). Poisson events commute; an unamplified event after the first may start in the middle
    of a pass and is charged for every pass it can touch. Results are cached.
    Raises: ValueError for a malformed event, delta or accountant, or more than 10^8 steps.
    """
    delta = fraction("delta", delta, fix="use a number well below 1/n, such as 1e-5")
    chosen("accountant", accountant, ACCOUNTANTS)
    counts: Counter[tuple[float, float]] = Counter()
    precision = 0.0  # sum of 1/sigma^2 over releases that touch every sample: one Gaussian
    total = aligned = 0
    for event in events:
        total += event.steps
        if event.steps and event.noise_multiplier == 0.0:
            return math.inf
        if event.steps and event.sampling == "unamplified":
            p = steps_per_pass(event.sampling_probability)
            passes = -(-event.steps // p) if not aligned else -(-(event.steps - 1) // p) + 1
            precision += passes / event.noise_multiplier**2
            aligned += 1
        elif event.steps and event.sampling_probability == 1.0:
            precision += event.steps / event.noise_multiplier**2
        elif event.steps:
            q = max(event.sampling_probability, 1e-9)  # smaller ones round badly; larger is safe
            counts[q, event.noise_multiplier] += event.steps
    if total > MAX_STEPS:
        raise ValueError(f"{total} steps cannot be accounted: at most {MAX_STEPS} are supported")
    evaluate = pld_epsilon if accountant == "pld" else rdp_epsilon
    return evaluate(tuple(sorted(counts.items())), precision, delta)


@cache
def pld_epsilon(counts: Counts, precision: float, delta: float) -> float:
    """Epsilon by composed privacy loss distributions; exact when there is only a Gaussian.

    Never above `rdp_epsilon`: both are upper bounds, and in corners beyond double precision
    (10^8 steps with delta = 1e-9, sigma = 1e-4) only Renyi divergences stay tight or finite.
    """
    if not counts and precision == 0.0:
        return 0.0
    import dp_accounting

    if not counts:
        return float(dp_accounting.get_epsilon_gaussian(precision**-0.5, delta))
    bound = rdp_epsilon(counts, precision, delta)
    # A T-fold composition by Fourier transform rounds off some 1e-17 T of probability: more
    # than that is taken from delta.
    delta -= (rounding := 1e-16 * sum(T for _, T in counts) + 1e-14)
    width = _grid(counts, precision)
    if delta < rounding or width > 50.0:
        return bound
    parts = [_fold(_one_step(q, sigma, width), T) for (q, sigma), T in counts]
    parts += [_one_step(1.0, precision**-0.5, width)] if precision else []
    composed = reduce(lambda one, other: one.compose(other), parts)
    return min(bound, float(composed.get_epsilon_for_delta(delta)))


@lru_cache(maxsize=8)
def _one_step(q: float, sigma: float, width: float) -> PrivacyLossDistribution:
    """Privacy loss distribution of one step on a grid of `width`, rounded pessimistically."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(sigma, sampling_prob=q, value_discretization_interval=width)


def _fold(one: PrivacyLossDistribution, T: int) -> PrivacyLossDistribution:
    """T-fold composition; in two stages when long, which keeps the truncated support short."""
    if T <= 10_000:
        return one.self_compose(T)
    inner = math.isqrt(T)
    outer, rest = divmod(T, inner)
    folded = one.self_compose(inner, tail_mass_truncation=1e-15 / outer).self_compose(outer)
    return folded.compose(one.self_compose(rest)) if rest else folded


def _grid(counts: Counts, precision: float) -> float:
    """Width of the grid of privacy losses (natural logarithm units).

    A grid inflates a step's variance s^2 by up to width^2/6: at s/16 that is 0.1 % of epsilon.
    At most 1e-3; at least what one step (2^16 points) and the whole composition (2^21 points)
    may take in memory.
    """
    steps = [(math.sqrt(precision), 1)] if precision else []  # (s, T)
    reach = 20.0 * math.sqrt(precision)  # span of one step's losses
    for (q, sigma), T in counts:
        loss = (0.5 + 10.0 * sigma) / sigma**2 + math.log(q) - math.log1p(-q)  # 10 sigma out
        reach = max(reach, max(loss, 0.0) + math.log1p(math.exp(-abs(loss))))
        light, heavy = q * q * math.expm1(min(sigma**-2, 700.0)), q * (0.25 / sigma**2 + 1)
        steps.append((math.sqrt(min(light, heavy / sigma**2)), T))
    fine = min(1e-3, min(s for s, _ in steps) / 16)
    whole_run = math.sqrt(sum(T * s**2 for s, T in steps))
    return max(fine, reach / 2**16, 16 * whole_run / 2**21)


@cache
def rdp_epsilon(counts: Counts, precision: float, delta: float) -> float:
    """Epsilon by Renyi divergences, the best of up to 160 orders in [1.1, 2048]."""
    if not counts and precision == 0.0:
        return 0.0
    import dp_accounting as dpa
    from dp_accounting.rdp import RdpAccountant

    # Far less noise than sigma = 10^8 q drowns in rounding; assuming less noise is safe.
    capped = [(q, min(sigma, max(10.0, 1e8 * q)), T) for (q, sigma), T in counts]
    orders = [2.0, *range(3, 65), 80, 96, 128, 192, 256, 384, 512, 768, 1024, 2048]
    tenths = [k / 10 for k in range(11, 110) if k % 10]
    orders += [a for a in tenths if all(_converges(a, q, sigma) for q, sigma, _ in capped)]
    accountant = RdpAccountant(orders, dpa.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for q, sigma, T in capped:
        accountant.compose(dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(sigma)), T)
    if precision:
        accountant.compose(dpa.GaussianDpEvent(precision**-0.5))
    return float(accountant.get_epsilon(delta))


def _converges(order: float, q: float, sigma: float) -> bool:
    """Whether the 1000 terms that dp-accounting sums for a fractional order are enough.

    arXiv 1908.10530, section 3.3: both series must end below e^-30 of their sum, which is >= 1.
    """
    from scipy.special import gammaln, log_ndtr

    i, j = 999.0, order - 999.0
    z0 = sigma**2 * math.log(1 / q - 1) + 0.5
    binomial = gammaln(order + 1) - gammaln(i + 1) - gammaln(j + 1)
    odds, rest = math.log(q), math.log1p(-q)
    one = i * odds + j * rest + (i * i - i) / (2 * sigma**2) + log_ndtr((z0 - i) / sigma)
    other = j * odds + i * rest + (j * j - j) / (2 * sigma**2) + log_ndtr((j - z0) / sigma)
    return bool(binomial + max(one, other) < -31.0)
