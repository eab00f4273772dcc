"""DiSK: the released gradient through a Kalman filter of fixed gain that knows where x has moved.

Zhang, Bu, Balle, Hong, Razaviyayn, Mirrokni, "DiSK: Differentially private optimizer with
simplified Kalman filter for noise reduction", ICLR 2025, arXiv 2410.03883.

| symbol | here | meaning |
|---|---|---|
| kappa | `gain` | how much of the new measurement is believed; 1: no filter |
| gamma | `look_ahead` | how far along the last displacement the gradient is evaluated |
| w | `weight` | (1 - kappa) / (kappa gamma), of the gradient ahead |
| u_t | | x_t - x_{t-1}, the displacement by the optimizer's last step |
| m_t | `_filtered` | the filtered gradient, all that the optimizer sees |
| x_t + gamma u_t | `_ahead` | the look-ahead point; inside a step it keeps x_t |
| ghat_t | `gradient` | the released gradient: clipped rows of the mixture, plus one noise |

    rows    g_i  = w grad f(x_t + gamma u_t; i) + (1 - w) grad f(x_t; i),   step 0: grad f(x_0; i)
    noise   ghat = (sum_i clip_R(g_i) + sigma R z) / B
    filter  m   <- (1 - kappa) m + kappa ghat,                              step 0: m = ghat
    after   u    = x_{t+1} - x_t

w (grad F(x + gamma u) - grad F(x)) is nearly (1 - kappa) / kappa H u, so the filter predicts the
new gradient by m + H u and corrects that by the measurement, with gain kappa. Everything here is
computed from released iterates and gradients: post-processing of DP-SGD, accounted as DP-SGD.

The mixture is formed before clipping and noised once, so the noise is sigma R whatever w is. Both
public code bases divide it by sqrt(w^2 + (1 - w)^2); that is not done here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steelyard.types import Noised, Removable

NAMES = {"gain", "look_ahead", "filtered", "ahead"}
_ENOUGH = (torch.float32, torch.float64)


class Disk:
    """Filter m <- (1 - kappa) m + kappa ghat of gradients that are evaluated ahead of x.

    gain: kappa in (0, 1]. look_ahead: gamma > 0, in units of the last displacement; None:
    (1 - kappa) / kappa, for which w = 1 and the gradient is evaluated at one point only.

    | case | behaviour |
    |---|---|
    | w = 1 (the default; within 1e-9) | one evaluation, ahead of x: the cost of DP-SGD |
    | w != 1 | two evaluations, mixed per sample before they are clipped: twice the cost |
    | w > 1 (a short look-ahead) | sensitivity still R; longer rows, so more of them are clipped |
    | gain 1 | no look-ahead, no state: bit for bit DP-SGD |
    | first step, or after `reset` | evaluated at x; m = ghat for every w |
    | learning rate 0 | no displacement: the next gradient is evaluated at x |
    | empty batch | noise alone is filtered, like any other release |
    | not attached | nothing is known about x: an exponential average of gain kappa |

    Guarantees: post-processing. Outside of `rows.backward` the parameters are the true x; they are
    exchanged with the look-ahead point by pointer, and come back bit for bit, also after an error.
    A graph built there and used later is refused by autograd. Memory: two tensors per parameter, m
    and the look-ahead point. Of a quadratic loss without noise, m is the exact gradient at x.

    Raises ValueError for a gain outside (0, 1] and a look-ahead that is not positive and finite.
    """

    def __init__(self, gain: float = 0.7, look_ahead: float | None = None):
        if not 0 < gain <= 1:
            raise ValueError(f"gain must be in (0, 1], found {gain}: 0.7 is usual, 1 is no filter")
        whole = (1 - gain) / gain  # the look-ahead of weight 1
        if look_ahead is not None and not 0 < look_ahead < math.inf:
            raise ValueError(
                f"look_ahead must be positive and finite, found {look_ahead}: leave it out for one "
                "evaluation per step"
            )
        one = look_ahead is None or math.isclose(look_ahead, whole, rel_tol=1e-9)
        self.gain = float(gain)
        self.look_ahead = whole if one or look_ahead is None else float(look_ahead)
        self.weight = float(gain < 1) if one else whole / self.look_ahead
        self._parameters: list[Tensor] = []
        self.reset()

    @property
    def buffers(self) -> int:
        """Gradient-sized tensors: m and the look-ahead point."""
        return 0 if self.gain == 1 else 2

    @property
    def watches_steps(self) -> bool:
        """Whether the next gradient depends on where the optimizer's step has moved."""
        return self.gain != 1

    @property
    def coefficients(self) -> tuple[list[float], list[float]]:
        """b and a of what it does to noise: an exponential average of gain kappa."""
        return [self.gain], [1.0, self.gain - 1.0]

    def reset(self) -> None:
        """Forget gradients and displacement: for a new phase, or parameters set from outside."""
        self._filtered: list[Tensor] = []
        self._ahead: list[Tensor] = []
        self._stepping = False  # between a release and the end of the optimizer's step

    def connect(self, optimizer: Optimizer, rows: Any) -> Sequence[Removable]:
        """Look ahead in these rows and watch where this optimizer moves; `attach` calls it.

        Raises ValueError for rows that cannot look ahead or already do, a Disk that is already
        attached, and parameters in half precision: there x + gamma u rounds to x.
        """
        if self.gain == 1:
            return []
        if not hasattr(rows, "points"):
            raise ValueError(
                f"Disk evaluates gradients ahead of the parameters, which {type(rows).__name__} "
                "cannot: use PerSample"
            )
        if self._parameters or rows.points is not None:
            what = "this Disk is already attached" if self._parameters else "these rows look ahead"
            raise ValueError(f"{what}: use one Disk per optimizer, and detach() before another")
        for p in rows.parameters:
            if p.dtype not in _ENOUGH:
                raise ValueError(
                    f"Disk needs parameters in float32 or float64, found {p.dtype}, in which a "
                    "look-ahead rounds to nothing: keep them in float32 and compute under autocast"
                )
        self._parameters = list(rows.parameters)
        try:
            self._adopt(self._filtered, self._ahead)
        except ValueError:
            self._parameters = []
            raise
        rows.points = self
        return [optimizer.register_step_post_hook(self._after_step), _Connection(self, rows)]

    # -- where gradients are evaluated ---------------------------------------------------------

    def evaluations(self) -> list[tuple[float, AbstractContextManager[None]]]:
        """(weight, place) of each evaluation of this step; the weights add up to 1."""
        if not self._ahead or self._stepping:  # no displacement yet, or a step that failed
            return [(1.0, nullcontext())]
        for p, a in zip(self._parameters, self._ahead, strict=True):
            if (p.shape, p.dtype, p.device) != (a.shape, a.dtype, a.device):
                raise ValueError(
                    f"a parameter is now {list(p.shape)}, {p.dtype} on {p.device}, Disk remembers "
                    f"{list(a.shape)}, {a.dtype} on {a.device}: call reset() on the Disk"
                )
        ahead = (self.weight, self._place_ahead())
        return [ahead] if self.weight == 1 else [ahead, (1 - self.weight, nullcontext())]

    @contextmanager
    def _place_ahead(self) -> Iterator[None]:
        home = [p.data if _plain(p) else p.data.clone() for p in self._parameters]
        try:
            self._put(self._ahead)
            yield
        finally:  # also where an interrupt stopped half way there
            self._put(home)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        """Let the parameters have these values: by pointer, so that they come back bit for bit."""
        for p, value in zip(self._parameters, values, strict=True):
            if _plain(p):
                p.data = value
            else:
                p.copy_(value)
        # another pointer is invisible to autograd, which would use a graph of the other point
        torch.autograd.graph.increment_version(self._parameters)

    # -- one step ------------------------------------------------------------------------------

    @torch.no_grad()
    def filter(self, gradient: Noised) -> Noised:
        """ghat -> m, written into the tensors of ghat; remembers x for the displacement to come."""
        if self.gain == 1:
            return gradient
        tensors = list(gradient.tensors)
        if self._filtered:
            measured = [t.to(m.dtype) for t, m in zip(tensors, self._filtered, strict=True)]
            torch._foreach_lerp_(self._filtered, measured, self.gain)
            torch._foreach_copy_(tensors, self._filtered)
        else:
            self._filtered = [t.clone() if t.dtype in _ENOUGH else t.float() for t in tensors]
        if self._parameters:
            if not self._ahead:
                self._ahead = [torch.empty_like(p.data) for p in self._parameters]
            torch._foreach_copy_(self._ahead, self._parameters)
            self._stepping = True
        return Noised(tensors, gradient.sensitivity, gradient.noise_multiplier)

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        """x_t -> x_{t+1} + gamma (x_{t+1} - x_t), unless nothing was released for this step."""
        if self._stepping:
            torch._foreach_lerp_(self._ahead, self._parameters, 1 + self.look_ahead)
            self._stepping = False

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Released data only. Tensors in the order of the rows' parameters."""
        ahead = [] if self._stepping else self._ahead
        return {
            "gain": self.gain,
            "look_ahead": self.look_ahead,
            "filtered": [m.clone() for m in self._filtered],
            "ahead": [a.clone() for a in ahead],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved, bit for bit, once the model's own state is loaded, too.

        Raises ValueError, unchanged, for a state of other settings or of another model.
        """
        if not isinstance(state, Mapping) or state.keys() != NAMES:
            found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"not a saved state of Disk: found {found}, expected {sorted(NAMES)}")
        settings = state["gain"], state["look_ahead"]
        if settings != (self.gain, self.look_ahead):
            raise ValueError(
                f"the saved filter is Disk{settings}, this one Disk{(self.gain, self.look_ahead)}: "
                "make it with the saved gain and look_ahead, or start anew"
            )
        self._adopt([m.clone() for m in state["filtered"]], [a.clone() for a in state["ahead"]])
        self._stepping = False

    def _adopt(self, filtered: list[Tensor], ahead: list[Tensor]) -> None:
        """Take these buffers over, in the parameters' own layout once those are known."""
        if self._parameters:
            wanted = [list(p.shape) for p in self._parameters]
            for found in ([list(b.shape) for b in buffers] for buffers in (filtered, ahead)):
                if found and found != wanted:
                    raise ValueError(
                        f"Disk remembers parameters of shapes {found[:3]}..., {len(found)} in all, "
                        f"the rows have {wanted[:3]}..., {len(wanted)}: load another state, or none"
                    )
            filtered = [m.to(p.device) for m, p in zip(filtered, self._parameters, strict=False)]
            ahead = [
                torch.empty_like(p.data).copy_(a)
                for a, p in zip(ahead, self._parameters, strict=False)
            ]
        self._filtered, self._ahead = filtered, ahead


def _plain(p: Tensor) -> bool:
    """Whether one storage holds all of it; a subclass (DTensor) is copied instead."""
    return type(p.data) is Tensor


class _Connection:
    """The rows' side of `connect`, to be undone."""

    def __init__(self, disk: Disk, rows: Any):
        self._disk, self._rows = disk, rows

    def remove(self) -> None:
        if self._rows.points is self._disk:
            self._rows.points = None
        # what moves the parameters from here on is not seen: the next gradient is evaluated at x
        self._disk._parameters, self._disk._ahead, self._disk._stepping = [], [], False
