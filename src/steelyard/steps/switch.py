"""What an optimizer keeps at the switch from public to private gradients.

Bu et al., "Pre-training Differentially Private Models with Limited Public Data" (DPCP), arXiv
2402.18752: the ablation of the switch.

| symbol | here |
|---|---|
| m | first moment: `exp_avg` of the Adam family, `momentum_buffer` |
| v | second moment: `exp_avg_sq`, `square_avg`, ... |
| t | the step counter of the bias correction, `step` |

    reset-m     m <- 0                R1, the paper's winner
    reset-v     v <- 0                R2
    keep        nothing               N
    reset-all   m, v <- 0, t <- 0     RS: the state of a fresh optimizer

t alone is never reset: with v kept, v / (1 - beta2^t) would be 1000 v for beta2 = 0.999, and steps
32 times too small for some 1/(1 - beta2) steps. v without t, `reset-v`, errs the other way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

FIRST = frozenset({"exp_avg", "momentum_buffer"})
SECOND = frozenset({"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "sum", "acc_delta"})
# grad_avg: RMSprop subtracts its square from square_avg, which must not become negative
SECOND |= {"row_var", "col_var", "variance", "grad_avg"}
COUNTERS = frozenset({"step", "mu_product"})  # NAdam's bias correction of m is a product over t
HOW = {
    "reset-m": FIRST,
    "reset-v": SECOND,
    "keep": frozenset[str](),
    "reset-all": FIRST | SECOND | COUNTERS,
}


@dataclass(frozen=True, kw_only=True)
class CarriedOver:
    """What `carry_over` did: names of optimizer state -> how many parameters have it."""

    how: str
    reset: dict[str, int]
    kept: dict[str, int]

    def __str__(self) -> str:
        def listed(names: dict[str, int]) -> str:
            return ", ".join(f"{name} of {count}" for name, count in names.items()) or "nothing"

        return f"{self.how}: reset {listed(self.reset)}; kept {listed(self.kept)} (parameters)"


@torch.no_grad()
def carry_over(
    optimizer: Optimizer,
    how: str = "reset-m",
    *,
    first: Collection[str] = (),
    second: Collection[str] = (),
) -> CarriedOver:
    """Reset parts of the optimizer's state, in place: fused, capturable and sharded states too.

    how: see above. first, second: names of state that are moments of an optimizer outside of torch.
    Call it between the last public and the first private step, before or after `attach`. Learning
    rates are not touched: v keeps the scale of the public gradients, so the private learning rate
    must be found anew (on public data), and a schedule that has reached 0 must be started again.

    Guarantees: only public data has touched the state before the switch, so nothing is charged.

    | case | behaviour |
    |---|---|
    | no step taken yet | nothing to reset |
    | SGD with momentum, reset-m | zero buffers: the next step is the first one's, unless dampened |
    | SGD, reset-v | nothing to reset |
    | state that nobody named | ValueError, except for keep |

    Raises ValueError for an unknown `how`.
    """
    if how not in HOW:
        raise ValueError(f"unknown carry-over {how!r}: choose one of {', '.join(HOW)}")
    wanted = HOW[how]
    wanted |= set(first) if wanted >= FIRST else set()
    wanted |= set(second) if wanted >= SECOND else set()
    known = HOW["reset-all"] | set(first) | set(second)
    states = optimizer.state.values()
    named = {name for state in states for name, value in state.items() if value is not None}
    if how != "keep" and (unknown := sorted(named - known)):
        raise ValueError(
            f"{type(optimizer).__name__} has state {unknown[0]!r}, which may be a moment or not: "
            "name it in first=[...] or second=[...], or use 'keep'"
        )
    start = {"mu_product": 1.0, "sum": optimizer.defaults.get("initial_accumulator_value", 0.0)}
    reset, kept = Counter[str](), Counter[str]()
    for state in states:
        for name, value in state.items():
            if value is not None:
                (reset if name in wanted else kept)[name] += 1
            if name in wanted and isinstance(value, Tensor):
                value.zero_()  # in place: a captured graph or a shard goes on with this memory
                if start.get(name):
                    value.fill_(start[name])
            elif name in wanted and value is not None:
                state[name] = type(value)(start.get(name, 0))
    return CarriedOver(how=how, reset=dict(sorted(reset.items())), kept=dict(sorted(kept.items())))
