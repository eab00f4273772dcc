"""DOPPLER: a low-pass filter over the released gradients; the signal is slow, the noise is white.

Zhang, Bu, Hong, Razaviyayn, "DOPPLER: Differentially Private Optimizers with Low-pass Filter for
Privacy Noise Reduction", NeurIPS 2024, arXiv 2408.13460 (LP-DPSGD, LP-DPAdam, ...).

| symbol | here |
|---|---|
| ghat_t | the released gradient of step t, a `Noised` |
| a_k, b_k | `a`, `b` as in scipy.signal: a_0 = 1, the recursive and the direct coefficients |
| m_t | the filter's raw output, linear in ghat_0 ... ghat_t |
| corr_t | the same filter driven by a unit step: one scalar in float64, for all parameters |
| mhat_t | m_t / corr_t, what the optimizer sees |
| ir_k, NG | impulse response, and its noise gain sum_k ir_k^2 |

    m_t    = - sum_{k>=1} a_k m_{t-k}    + sum_{k>=0} b_k ghat_{t-k}
    corr_t = - sum_{k>=1} a_k corr_{t-k} + sum_{k=0..min(nb,t)} b_k
    mhat_t = m_t / corr_t

As it is computed, in place of the gradient y = ghat, with max(na, nb) buffers instead of na + nb:
transposed direct form II for b / b_0 (the scale drops out of mhat), where s_k is what the past adds
to the output k steps ahead, K = max(na, nb), s_{K+1} = 0, and y - s_1 takes the place of ghat:

    y <- y + s_1;   s_k <- s_{k+1} - a_k y + (b_k / b_0) (y - s_1);   mhat = y / corr

With one a and one b, mhat itself is remembered: mhat <- mhat + (b_0 / corr_t) (ghat - mhat).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from steelyard.filters.coefficients import (
    checked_response,
    dc_gain,
    impulse_response,
    low_pass,
    normalised,
    settling_time,
)
from steelyard.types import Noised

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KIND = "doppler"
SETTLED = 0.02  # share of the impulse response's absolute mass that may still be to come
ROUNDING = 2e-2  # relative error of float32 arithmetic accepted, as estimated from above


class Doppler:
    """Filter: mhat_t = sum_{k<=t} ir_k ghat_{t-k} / sum_{k<=t} ir_k, for any stable b and a.

    b, a: as scipy.signal writes them; divided by a[0]. gain: "unit" insists on a DC gain
    sum(b) / sum(a) of 1 (within 1e-6); "corrected" takes another one, which corr_t divides away.

    Guarantees: post-processing, so no privacy is spent; linear in the gradients; a constant one is
    handed on unchanged from the first step on; sensitivity and noise multiplier of the record stay
    those of the noise that was added. Memory is float32 (float64 for float64 gradients) also if
    gradients arrive in half precision: max(na, nb) buffers, one for an exponential average.

    | case | behaviour |
    |---|---|
    | b = a = [1] (`first_order(0)`) | hands the same tensors on, untouched |
    | first step | mhat = ghat: the noise is that of DP-SGD, and falls as the filter settles |
    | empty batch | filtered as any other: the clock must not depend on the data |
    | a gradient that is not finite | stays in the memory until `reset()` |
    | a new phase: other data, another model | call `reset()`: old gradients would go on acting |

    Raises ValueError for coefficients that are empty or not finite, and for a filter that is
    unstable, has another DC gain, a step response that is not positive (corr_t divides by it), or
    that float32 cannot compute.
    """

    def __init__(
        self, b: Sequence[float], a: Sequence[float] = (1.0,), *, gain: str = "unit"
    ) -> None:
        if gain not in ("unit", "corrected"):
            raise ValueError(f"unknown gain {gain!r}: choose unit or corrected")
        self.b, self.a = normalised(b, a)
        response = checked_response(self.b, self.a, unit_gain=gain == "unit", rounding=ROUNDING)
        self.noise_gain = float((response**2).sum())
        self.settling_time = settling_time(response, SETTLED)
        self.reset()

    @classmethod
    def first_order(cls, phi: float) -> Self:
        """m <- phi m + (1 - phi) ghat: an exponential average; phi in [0, 1), 0 for no filter."""
        return cls.cascade(phi, 1)

    @classmethod
    def cascade(cls, phi: float, order: int) -> Self:
        """`order` exponential averages one behind the other, with one bias correction."""
        import numpy as np

        if not 0 <= phi < 1:
            raise ValueError(f"phi must be at least 0 and below 1, found {phi}")
        if order < 1:
            raise ValueError(f"the order of a cascade must be 1 or more, found {order}")
        a = np.polynomial.polynomial.polypow([1.0, -phi], order)
        return cls([(1 - phi) ** order], a.tolist())

    @classmethod
    def design(cls, cutoff: float, *, order: int = 2, kind: str = "butter") -> Self:
        """A low-pass filter by scipy.signal, scaled to DC gain 1.

        cutoff: in cycles per step, in (0, 0.5): half of the power passes there (for cheby1: the
        last 0.5 dB of ripple end there). kind: butter, bessel or cheby1.
        """
        return cls(*low_pass(cutoff, order, kind))

    # -- what it does to a stream --------------------------------------------------------------

    @property
    def order(self) -> int:
        """K = max(na, nb): gradient-sized buffers; 0 for no filter."""
        return max(len(self.a), len(self.b)) - 1

    @property
    def buffers(self) -> int:
        """Gradient-sized tensors that it keeps."""
        return self.order

    @property
    def coefficients(self) -> tuple[list[float], list[float]]:
        """b and a."""
        return list(self.b), list(self.a)

    @property
    def dc_gain(self) -> float:
        """sum(b) / sum(a): what becomes of a constant before the correction."""
        return dc_gain(self.b, self.a)

    @property
    def noise_left(self) -> float:
        """NG / DC gain^2: the share of white noise's variance in mhat once it has settled."""
        return self.noise_gain / self.dc_gain**2

    def impulse_response(self, n: int) -> NDArray[np.float64]:
        """ir_0 ... ir_{n-1}, of m (not of mhat, whose weights change with t)."""
        return impulse_response(self.b, self.a, n)

    def check_length(self, steps: int) -> str | None:
        """A sentence to warn with when the filter is too slow for a run of so many steps."""
        if self.order == 0 or self.settling_time <= steps / 10:
            return None
        return (
            f"the filter needs {self.settling_time:,} steps to settle, more than a tenth of the "
            f"run's {steps:,}: it will use stale gradients; take a smaller phi, a higher cut-off "
            "or a longer run"
        )

    def describe(self) -> str:
        """One line for terminals and reports."""
        if self.order == 0:
            return "no filter"
        return (
            f"low-pass filter of order {self.order}: {self.noise_left:.3g} of the noise's variance "
            f"left, settles in {self.settling_time:,} steps"
        )

    # -- the filter ----------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget every gradient: the next one counts as the first."""
        self._memory: list[list[Tensor]] = []  # s_1 ... s_K, or mhat; each a list of tensors
        self._step_memory = [0.0] * self.order  # s_1 ... s_K of corr

    @torch.no_grad()
    def filter(self, gradient: Noised) -> Noised:
        """One step of the recursion. Raises ValueError if the parameters changed since the last."""
        if self.order == 0 or not gradient.tensors:
            return gradient
        tensors = list(gradient.tensors)
        ghat = [t.to(torch.float64 if t.dtype == torch.float64 else torch.float32) for t in tensors]
        memory = self._remembered(ghat)
        corr = self._correction()
        if self._average:
            torch._foreach_lerp_(memory[0], ghat, 1.0 / corr)
            torch._foreach_copy_(tensors, memory[0])
            return gradient
        first, *later = memory
        y = ghat  # in place: from here on y - s_1 stands for ghat
        torch._foreach_add_(y, first)
        *ahead, (b_last, a_last) = self._ahead
        for s, (b_k, a_k) in zip(later, ahead, strict=True):
            _add(s, y, b_k - a_k)
            _add(s, first, -b_k)
        torch._foreach_mul_(first, -b_last)  # s_1 is used up: its memory takes s_K
        _add(first, y, b_last - a_last)
        self._memory = [*later, first]
        torch._foreach_div_(y, corr)
        if any(x.dtype != t.dtype for x, t in zip(y, tensors, strict=True)):
            torch._foreach_copy_(tensors, y)
        return gradient

    @property
    def _average(self) -> bool:
        return len(self.b) == 1 and len(self.a) == 2

    @property
    def _ahead(self) -> list[tuple[float, float]]:
        """(b_k / b_0, a_k) for k = 1 ... K."""
        pairs = zip_longest(self.b[1:], self.a[1:], fillvalue=0.0)
        return [(b_k / self.b[0], a_k) for b_k, a_k in pairs]

    def _correction(self) -> float:
        """corr_t / b_0: the recursion of `filter` for the input 1, in float64."""
        first, *later = self._step_memory
        y = 1.0 + first
        self._step_memory = [
            s + (b_k - a_k) * y - b_k * first
            for s, (b_k, a_k) in zip([*later, 0.0], self._ahead, strict=True)
        ]
        return y

    def _remembered(self, ghat: list[Tensor]) -> list[list[Tensor]]:
        if not self._memory:
            self._memory = [[torch.zeros_like(t) for t in ghat] for _ in range(self.order)]
        if [t.shape for t in self._memory[0]] != [t.shape for t in ghat]:
            raise ValueError(
                f"the filter remembers {_shapes(self._memory[0])}, and got {_shapes(ghat)}: call "
                "reset() when the parameters change"
            )
        for s in self._memory:  # a loaded state may lie on another device
            s[:] = [x.to(t) for x, t in zip(s, ghat, strict=True)]
        return self._memory

    def state_dict(self) -> dict[str, Any]:
        """Copies of the memory, and the coefficients. Released, as everything after the noise."""
        return {
            "kind": KIND,
            "b": list(self.b),
            "a": list(self.a),
            "corr": list(self._step_memory),
            "memory": [[t.clone() for t in s] for s in self._memory],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved. Raises ValueError for another filter's state."""
        ours = self.state_dict().keys()
        if not isinstance(state, dict) or state.keys() != ours or state["kind"] != KIND:
            raise ValueError("not a saved state of Doppler: load what this filter saved")
        if (list(state["b"]), list(state["a"])) != (list(self.b), list(self.a)):
            raise ValueError(
                f"the state is of a filter with b = {state['b']}, a = {state['a']}; this one has "
                f"b = {list(self.b)}, a = {list(self.a)}: make Doppler with the saved ones"
            )
        self._step_memory = list(state["corr"])
        self._memory = [[t.clone() for t in s] for s in state["memory"]]


def _add(to: list[Tensor], tensors: list[Tensor], factor: float) -> None:
    """to += factor * tensors."""
    if factor:
        torch._foreach_add_(to, tensors, alpha=factor)


def _shapes(tensors: list[Tensor]) -> str:
    shown = ", ".join(str(list(t.shape)) for t in tensors[:3])
    return f"{len(tensors)} tensors ({shown}{', ...' if len(tensors) > 3 else ''})"
