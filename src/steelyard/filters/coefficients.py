"""Coefficients of linear filters, b and a as scipy.signal writes them: checks, responses, designs.

    y_t = - sum_{k=1..na} a_k y_{t-k} + sum_{k=0..nb} b_k x_{t-k},    a_0 = 1

The constraints are those of DOPPLER, arXiv 2408.13460, and of arithmetic: stable, a constant passes
unchanged, the step response stays positive, float32 can compute it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TAIL = 1e-12  # share of the impulse response's absolute mass: what comes later counts as nothing
LONGEST = 2**21  # steps of impulse response that are looked at
FLOAT32 = 2.0**-24  # relative rounding error

Coefficients = tuple[float, ...]


def normalised(b: Sequence[float], a: Sequence[float]) -> tuple[Coefficients, Coefficients]:
    """b and a divided by a[0], as Python floats, without zeros at their ends.

    Raises ValueError for coefficients that are missing or not finite, and for a[0] = 0.
    """
    for name, given in (("b", b), ("a", a)):
        if not any(given):
            raise ValueError(f"{name} needs a coefficient that is not 0, found {list(given)}")
        if not all(map(math.isfinite, given)):
            raise ValueError(f"the coefficients {name} must be finite, found {list(given)}")
    if not a[0]:
        raise ValueError(f"a[0] must not be 0, found a = {list(a)}: it divides all coefficients")
    return _shortened(b, a[0]), _shortened(a, a[0])


def _shortened(given: Sequence[float], divisor: float) -> Coefficients:
    last = max(at for at, x in enumerate(given) if x)
    return tuple(float(x) / float(divisor) for x in given[: last + 1])


def checked_response(
    b: Coefficients, a: Coefficients, *, unit_gain: bool, rounding: float
) -> NDArray[np.float64]:
    """The whole impulse response of a filter that may be used: see `whole_response`.

    Raises ValueError unless all roots of zz^na + a_1 zz^(na-1) + ... lie inside the unit circle,
    the DC gain sum(b) / sum(a) is 1 within 1e-6 (if asked for), the step response stays above 0,
    and `float32_error` is at most `rounding`.
    """
    if not (modulus := max(map(abs, np.roots(a)), default=0.0)) < 1:
        raise ValueError(
            f"the filter is unstable: a has a root of modulus {modulus:.6g}, and must have all "
            "below 1"
        )
    response = whole_response(b, a)
    if unit_gain and abs((gain := dc_gain(b, a)) - 1) > 1e-6:
        raise ValueError(
            f"the filter's DC gain sum(b) / sum(a) is {gain:.6g}, expected 1: divide b by it, or "
            'accept the filter with gain="corrected"'
        )
    lowest = float(min(response.cumsum().min(), dc_gain(b, a)))  # it ends at the DC gain
    if lowest <= 0:
        raise ValueError(
            f"the filter's step response falls to {lowest:.3g} and must stay above 0, since the "
            "output is divided by it: choose a low-pass filter with b[0] > 0"
        )
    if (error := float32_error(b, a)) > rounding:
        raise ValueError(
            f"float32 would compute this filter with an error of up to {error:.1%}: chain two of "
            "lower order, or raise the cut-off"
        )
    return response


def dc_gain(b: Coefficients, a: Coefficients) -> float:
    """What becomes of a constant: sum(b) / sum(a)."""
    return math.fsum(b) / math.fsum(a)


def impulse_response(b: Coefficients, a: Coefficients, n: int) -> NDArray[np.float64]:
    """[n]: the output of y for x = 1, 0, 0, ..."""
    from scipy.signal import lfilter

    impulse = np.zeros(max(n, 0))
    impulse[:1] = 1.0
    return np.asarray(lfilter(b, a, impulse)) if n > 0 else impulse


def whole_response(b: Coefficients, a: Coefficients) -> NDArray[np.float64]:
    """The impulse response up to where less than 1e-12 of its absolute mass follows.

    Raises ValueError where that is more than two million steps away.
    """
    n = max(256, 2 * len(b))
    while n <= LONGEST:
        response = impulse_response(b, a, n)
        mass = np.abs(response).sum()
        if np.abs(response[n // 2 :]).sum() <= TAIL * mass:
            return response
        n *= 2
    raise ValueError(
        f"the filter has not settled after {LONGEST:,} steps: its roots are too close to the "
        "unit circle; take a smaller phi or a higher cut-off"
    )


def settling_time(response: NDArray[np.float64], share: float) -> int:
    """The smallest n with sum_{k >= n} |ir_k| <= share * sum_k |ir_k|."""
    mass = np.abs(response)
    after = np.append(mass[::-1].cumsum()[::-1], 0.0)  # [n]: from n on
    return int((after > share * after[0]).sum())


def float32_error(b: Coefficients, a: Coefficients) -> float:
    """About how far, relatively, float32 in direct form is from exact, estimated from above.

        eps (sum|a| + sum|b| / |b_0|) sum|1/A|

    Rounded coefficients move the poles and the DC gain, and each rounding error passes the
    recursive part 1/A; both are large where many poles lie close together near 1.
    """
    recursive = float(np.abs(whole_response((1.0,), a)).sum())
    return FLOAT32 * (math.fsum(map(abs, a)) + math.fsum(map(abs, b)) / abs(b[0])) * recursive


def low_pass(cutoff: float, order: int, kind: str) -> tuple[list[float], list[float]]:
    """b and a of a classical low-pass filter with DC gain 1; cutoff in cycles per step.

    Raises ValueError for a cut-off outside (0, 0.5), an order below 1, and an unknown kind.
    """
    from scipy import signal

    if not 0 < cutoff < 0.5:
        raise ValueError(f"the cut-off must be in (0, 0.5) cycles per step, found {cutoff}")
    if order < 1:
        raise ValueError(f"the order of a filter must be 1 or more, found {order}")
    made: Any  # scipy's stubs have one type for all outputs
    if kind == "butter":
        made = signal.butter(order, cutoff, fs=1.0)
    elif kind == "bessel":
        made = signal.bessel(order, cutoff, fs=1.0, norm="mag")
    elif kind == "cheby1":
        made = signal.cheby1(order, 0.5, cutoff, fs=1.0)
    else:
        raise ValueError(f"unknown kind of filter {kind!r}: choose butter, bessel or cheby1")
    b, a = ([float(x) for x in part] for part in made)
    return [x * math.fsum(a) / math.fsum(b) for x in b], a
