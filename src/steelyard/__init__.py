"""steelyard: a trade-off is a weighting.

    theta <- theta - sum_k  eta_k  A[ sum_s h_s ( sum_i w_i g_i + z ) ]_k

| symbol | the question | here |
|---|---|---|
| g_i | what competes? | `PerSample` (rows = samples) |
| w_i | how much does each count? | `FlatClip`, `AutoClip`, `NormalizedClip`, `GlobalClip` |
| z | what hides one of them? | `Gaussian`, `GridGaussian` |
| h_s | what do we remember? | filters in `chain(Gaussian(sigma), filter, ...)` |
| A | which optimizer? | any `torch.optim.Optimizer`, by `attach` |
| all of them | what should they be, before we pay? | `plan_privacy`, `Ledger` |

Names load when they are first used: planning needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.filters.attach import Attached, attach
    from steelyard.filters.chain import Chain, chain
    from steelyard.filters.gaussian import Gaussian
    from steelyard.filters.grid import GridGaussian
    from steelyard.plans.privacy import Event, PrivacyPlan, plan_privacy, spent_epsilon
    from steelyard.rows.per_sample import PerSample
    from steelyard.rows.sampling import PoissonSampler, microbatches, poisson_loader
    from steelyard.runs.ledger import BudgetExceeded, Ledger
    from steelyard.types import Clipped, Noised
    from steelyard.weightings.clip import AutoClip, FlatClip, GlobalClip, NormalizedClip

__version__ = "0.1.0"

_HOME = {
    "filters.attach": ("Attached", "attach"),
    "filters.chain": ("Chain", "chain"),
    "filters.gaussian": ("Gaussian",),
    "filters.grid": ("GridGaussian",),
    "plans.privacy": ("Event", "PrivacyPlan", "plan_privacy", "spent_epsilon"),
    "rows.per_sample": ("PerSample",),
    "rows.sampling": ("PoissonSampler", "microbatches", "poisson_loader"),
    "runs.ledger": ("BudgetExceeded", "Ledger"),
    "types": ("Clipped", "Noised"),
    "weightings.clip": ("AutoClip", "FlatClip", "GlobalClip", "NormalizedClip"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Attached",
    "AutoClip",
    "BudgetExceeded",
    "Chain",
    "Clipped",
    "Event",
    "FlatClip",
    "Gaussian",
    "GlobalClip",
    "GridGaussian",
    "Ledger",
    "Noised",
    "NormalizedClip",
    "PerSample",
    "PoissonSampler",
    "PrivacyPlan",
    "attach",
    "chain",
    "microbatches",
    "plan_privacy",
    "poisson_loader",
    "spent_epsilon",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'steelyard' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steelyard.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
