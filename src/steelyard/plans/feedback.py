"""What error feedback costs in privacy: three ways to account for DiceSGD, none of them DP-SGD's.

Zhang, Bu, Wu, Hong, "Differentially Private SGD Without Clipping Bias: An Error-Feedback Approach",
arXiv 2311.14632 (ICLR 2024), theorem 3.8; the other two modes are derived below.

| symbol | here |
|---|---|
| R1, R2 = rho R1 | bound of a row's clipped gradient, bound of the state fed back (mean scale) |
| g_max | `largest`: bound of a row's raw gradient |
| sigma | `noise`: what is accounted, the plan's noise multiplier |
| Reff / R1 | `inflation`: the noise drawn has standard deviation sigma Reff on the sum scale |
| q, B, T | sampling probability, expected batch, steps |

    paper         Reff^2 = R1^2 + 2 R2^2              T sub-sampled Gaussians of multiplier sigma
    one-pass      Reff^2 = R1^2 + (g_max - R1)^2      one Gaussian of multiplier sigma
    conservative  Reff^2 = R1^2 + (2 B R2)^2          T sub-sampled and T full Gaussians

The state e_t remembers raw gradients of past batches, so what is fed back differs between two
neighbouring data sets in every step after the sample in question was first drawn, sampled or not.
Write b_t for that sample's coin in step t, c_t for its clipped gradient, K_t = B clip_R2(e_t).

**conservative is proven**, also for adaptive steps and for both accountants. Fix the coins of all
other samples: they have one law under both data sets, and divergences are jointly convex. Without
the sample, step t releases m_t + N(0, s^2 I), where m_t is a function of the releases before it.
With the sample it releases m_t + b_t c_t + d_t + N(0, s^2 I), with ||c_t|| <= R1 a function of
those releases, and d_t = the change of K_t, ||d_t|| <= 2 B R2, a function of them and of the coins
b_1 .. b_{t-1}. Given the releases before it, the fresh coin b_t is independent of the old ones
(which the releases may have given away), hence of d_t. Split s^2 = s_a^2 + s_b^2: the step is the
sum, a post-processing, of two then independent parts, b_t c_t + N(0, s_a^2 I), a sub-sampled
Gaussian, and d_t + N(0, s_b^2 I), a mixture of Gaussians shifted by at most 2 B R2, which convexity
bounds by one of them. This holds for all releases before it and in both directions, so the pairs of
the two parts compose over steps (Renyi: adaptive composition; privacy loss distributions: Zhu,
Dong, Wang 2022, arXiv 2106.08567, dominating pairs). Any split that knows no data is valid.

**one-pass is proven** for flat clipping; in groups, if R1 and g_max are shared out alike. With a
fixed order there are no coins. The sample enters once, with a change of at most R1; it leaves at
most v = g_max - R1 in B e, and "identity minus clip" is firmly non-expansive, ||DK||^2 +
||DE - DK||^2 <= ||DE||^2. So the squared changes of all releases add up to at most R1^2 + v^2, on
every path, which adaptively chosen Gaussians need (Smith, Thakurta 2022, arXiv 2210.17520). Another
pass with e = 0 at its start is another such release; with e kept it would not be.
"""

from __future__ import annotations

import math

from steelyard.plans.accounting import Event, spent_epsilon, steps_per_pass
from steelyard.plans.checks import chosen, fraction, real, whole
from steelyard.plans.privacy import plan_privacy

MODES = ("paper", "one-pass", "conservative")
# how a run must draw its batches, in the words of a plan's `sampling`
SAMPLING = {"paper": "poisson", "one-pass": "unamplified", "conservative": "poisson"}
_ASSUMPTIONS = {
    "paper": "Error feedback is accounted as in its paper, DP-SGD's accounting with the noise "
    "multiplier divided by sqrt(1 + 2 rho^2): this relies on the assumptions of Theorem 3.8 of "
    "arXiv 2311.14632 (bounded gradients and residuals, both data sets giving the same gradients "
    "after the differing step), which nothing here checks.",
    "one-pass": "Error feedback is accounted for one pass over the data in a fixed order, every "
    "sample in one batch only, raw gradients hard-clipped; the whole pass is one Gaussian release, "
    "without credit for sampling.",
    "conservative": "Error feedback is accounted without assumptions on gradients: in every step, "
    "one sub-sampled release of the clipped gradients and one full release of the state fed back.",
}


def inflation(
    mode: str,
    *,
    rho: float = 1.0,
    bound: float | None = None,
    largest: float | None = None,
    expected_batch: float | None = None,
) -> float:
    """Reff / R1: standard deviation of the noise drawn over that of DP-SGD at the same sigma.

    paper needs rho; one-pass needs bound = R1 and largest = g_max >= R1 (same unit); conservative
    needs rho and expected_batch = B. Raises ValueError for an unknown mode or what is missing.
    """
    chosen("accounting mode", mode, MODES)
    if mode == "one-pass":
        R1 = real("bound", bound, above=0.0, fix="give the clipping bound R1")
        g_max = real("largest", largest, fix="one-pass needs a bound g_max on raw gradients")
        if g_max < R1:
            raise ValueError(
                f"largest must be at least the bound {R1:g}, found {g_max:g}: raise it"
            )
        return math.hypot(1.0, (g_max - R1) / R1)
    rho = _not_negative(rho)
    if mode == "paper":
        return math.sqrt(1.0 + 2.0 * rho**2)
    return math.hypot(1.0, _reach(rho, expected_batch))


def charges(
    mode: str,
    noise: float,
    *,
    sampling_probability: float,
    rho: float = 1.0,
    expected_batch: float | None = None,
    step: int = 0,
) -> list[tuple[float, float]]:
    """(noise multiplier, sampling probability) of each release to pay for before step `step`.

    noise: sigma as accounted; the noise drawn is `inflation` times larger. one-pass pays for the
    whole pass at step 0, as one release of every sample (q = 1), which any ledger counts right.
    Raises ValueError as `inflation`, and for a step past the one pass of mode one-pass.
    """
    chosen("accounting mode", mode, MODES)
    q = float(sampling_probability)
    if mode == "one-pass":
        _within_a_pass(step + 1, q)
        return [] if step else [(float(noise), 1.0)]
    if mode == "paper":
        return [(float(noise), q)]
    reach = _reach(_not_negative(rho), expected_batch)
    if reach == 0.0 or noise == 0.0:
        return [(float(noise), q)]
    total = noise * math.hypot(1.0, reach)
    share = _split(total, q, reach)
    return [(math.sqrt(share) * total, q), (math.sqrt(1.0 - share) * total / reach, 1.0)]


def spent(
    mode: str,
    noise: float,
    *,
    sampling_probability: float,
    steps: int,
    delta: float,
    rho: float = 1.0,
    expected_batch: float | None = None,
    accountant: str = "pld",
) -> float:
    """Epsilon of `steps` steps of error feedback at accounted noise sigma: what a ledger finds.

    Raises ValueError as `inflation`, and in mode one-pass for more steps than one pass has.
    """
    paid = charges(
        mode,
        noise,
        sampling_probability=sampling_probability,
        rho=rho,
        expected_batch=expected_batch,
    )
    times = whole("steps", steps, least=0, fix="give the number of optimizer steps")
    if mode == "one-pass":
        _within_a_pass(times, sampling_probability)
        times = min(times, 1)
    events = [Event(sampling_probability=q, noise_multiplier=s, steps=times) for s, q in paid]
    return spent_epsilon(events, delta, accountant)


def noise_for(
    mode: str,
    *,
    n: int,
    batch: float,
    epsilon: float,
    steps: int | None = None,
    delta: float | None = None,
    rho: float = 1.0,
    accountant: str = "pld",
) -> float:
    """The smallest sigma found at which error feedback spends at most epsilon: what `Dice` takes.

    steps None: one pass. Guarantees: spends at most epsilon, and within 1 % of it. Raises
    ValueError for what `plan_privacy` refuses, or more than one pass in mode one-pass.
    """
    chosen("accounting mode", mode, MODES)
    plan = plan_privacy(
        n=n,
        batch=batch,
        steps=steps,
        epochs=1.0 if steps is None else None,
        epsilon=epsilon,
        delta=delta,
        accountant=accountant,
        sampling=SAMPLING[mode],
    )
    if mode == "one-pass":
        _within_a_pass(plan.steps, plan.sampling_probability)
    rho = _not_negative(rho)
    if mode != "conservative" or rho == 0.0:
        return plan.noise_multiplier

    def enough(x: float) -> bool:
        found = spent(
            mode,
            math.exp(x),
            sampling_probability=plan.sampling_probability,
            steps=plan.steps,
            delta=plan.delta,
            rho=rho,
            expected_batch=plan.expected_batch,
            accountant=accountant,
        )
        return found <= epsilon

    low = high = math.log(plan.noise_multiplier)  # the second release comes on top: never enough
    while not enough(high):
        low, high = high, high + 1.0
        if high > math.log(1e8):
            raise ValueError(
                f"no noise is enough for epsilon {epsilon:g} in mode conservative: raise epsilon"
            )
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return math.exp(high)


def theorem_noise(
    *, n: int, batch: float, steps: int, epsilon: float, delta: float, rho: float = 1.0
) -> float:
    """B std_mean / R1 = (B / n) sqrt(32 T (1 + 2 rho^2) log(1/delta)) / epsilon: theorem 3.8 as
    printed, about twice what mode "paper" draws. For comparison; nothing uses it."""
    n = whole("n", n, least=1, fix="give the number of private training samples")
    T = whole("steps", steps, least=1, fix="plan at least one step")
    log = -math.log(fraction("delta", delta, fix="use a number well below 1/n"))
    return batch / n * math.sqrt(32 * T * log) / epsilon * inflation("paper", rho=rho)


def assumption(mode: str) -> str:
    """What the guarantee of a mode rests on, as one sentence for a ledger's report."""
    return _ASSUMPTIONS[chosen("accounting mode", mode, MODES)]


def _not_negative(rho: float) -> float:
    if (rho := real("rho", rho, fix="accounting needs a finite R2 = rho R1")) < 0:
        raise ValueError(f"rho must be 0 or positive, found {rho:g}: use 1, say")
    return rho


def _reach(rho: float, expected_batch: float | None) -> float:
    """2 B R2 / R1: how far one sample may move what is fed back, per unit of R1."""
    return 2.0 * rho * real("expected batch", expected_batch, above=0.0, fix="give B in samples")


def _within_a_pass(steps: int, q: float) -> None:
    if steps > steps_per_pass(q):
        raise ValueError(
            f"mode one-pass covers {steps_per_pass(q)} steps at q = {q:g}, found {steps}: take "
            "fewer, or another mode"
        )


def _split(total: float, q: float, reach: float) -> float:
    """s_a^2 / s^2 that minimises the central-limit mu of both releases, hence nearly epsilon.

    mu^2 / T = q^2 (exp(1/sigma_a^2) - 1) + 1/sigma_b^2 (Bu et al. 2020, arXiv 1911.11607): it knows
    neither T nor delta, so one split serves the whole run; over few steps, with R2 far below R1,
    others would spend less. With q = 1 both are full Gaussians.
    """
    from scipy.optimize import minimize_scalar

    def log_mu(logit: float) -> float:
        share = 1.0 / (1.0 + math.exp(-logit))
        loss = 1.0 / (share * total**2)
        first = loss if q == 1.0 else q**2 * math.expm1(min(loss, 600.0))
        return math.log(first + reach**2 / ((1.0 - share) * total**2))

    found = minimize_scalar(log_mu, bounds=(-32.0, 32.0), method="bounded")
    return 1.0 / (1.0 + math.exp(-float(found.x)))  # pyright: ignore[reportAttributeAccessIssue]
