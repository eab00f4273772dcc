"""steelyard: a trade-off is a weighting.

    theta <- theta - sum_k  eta_k  A[ sum_s h_s ( sum_i w_i g_i + z ) ]_k

| symbol | the question | here |
|---|---|---|
| g_i | what competes? | `PerSample` (samples), `PublicRows` (data sources), `Tasks` (losses) |
| w_i | how much does each count? | `FlatClip`, ...; `ConstantWeight`, ...; `NGDiff`, `Blur`, ... |
| z | what hides one of them? | `Gaussian`, `GridGaussian` |
| h_s | what do we remember? | `Doppler`, `Disk`, `Dice`: `chain(Gaussian(sigma), filter, ...)` |
| A | which optimizer? | any `torch.optim.Optimizer`, by `attach` |
| eta_k | how far? | `GeN`, `HiDLR` |
| all of them | what should they be, before we pay? | `plan_privacy`, `phase_plan`, `Ledger` |

Names load when they are first used: planning needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.filters.attach import Attached, attach
    from steelyard.filters.chain import Chain, chain
    from steelyard.filters.dice import Dice
    from steelyard.filters.disk import Disk
    from steelyard.filters.doppler import Doppler
    from steelyard.filters.gaussian import Gaussian
    from steelyard.filters.grid import GridGaussian
    from steelyard.filters.record import Recorder
    from steelyard.plans.pretraining import phase_plan
    from steelyard.plans.privacy import Event, PrivacyPlan, plan_privacy, spent_epsilon
    from steelyard.rows.per_sample import PerSample
    from steelyard.rows.private_tasks import PrivateTasks
    from steelyard.rows.sampling import PoissonSampler, microbatches, poisson_loader
    from steelyard.rows.sources import PublicRows
    from steelyard.rows.task_noise import PrivateTask, PublicTask
    from steelyard.rows.tasks import Tasks
    from steelyard.runs.ledger import BudgetExceeded, Ledger
    from steelyard.steps.gen import GeN
    from steelyard.steps.hidlr import HiDLR
    from steelyard.steps.private_probe import PrivateProbe
    from steelyard.steps.switch import carry_over
    from steelyard.types import Clipped, Noised
    from steelyard.weightings.blur import Blur
    from steelyard.weightings.clip import AutoClip, FlatClip, GlobalClip, NormalizedClip
    from steelyard.weightings.coupling import (
        ConstantWeight,
        CosineWeight,
        OptimalWeight,
        SampleWeight,
    )
    from steelyard.weightings.ngdiff import NGDiff
    from steelyard.weightings.scalarize import Fixed, GradDiff, LossNormalised

__version__ = "0.1.0"

_HOME = {
    "filters.attach": ("Attached", "attach"),
    "filters.chain": ("Chain", "chain"),
    "filters.dice": ("Dice",),
    "filters.disk": ("Disk",),
    "filters.doppler": ("Doppler",),
    "filters.gaussian": ("Gaussian",),
    "filters.grid": ("GridGaussian",),
    "filters.record": ("Recorder",),
    "plans.pretraining": ("phase_plan",),
    "plans.privacy": ("Event", "PrivacyPlan", "plan_privacy", "spent_epsilon"),
    "rows.per_sample": ("PerSample",),
    "rows.private_tasks": ("PrivateTasks",),
    "rows.sampling": ("PoissonSampler", "microbatches", "poisson_loader"),
    "rows.sources": ("PublicRows",),
    "rows.task_noise": ("PrivateTask", "PublicTask"),
    "rows.tasks": ("Tasks",),
    "runs.ledger": ("BudgetExceeded", "Ledger"),
    "steps.gen": ("GeN",),
    "steps.hidlr": ("HiDLR",),
    "steps.private_probe": ("PrivateProbe",),
    "steps.switch": ("carry_over",),
    "types": ("Clipped", "Noised"),
    "weightings.blur": ("Blur",),
    "weightings.clip": ("AutoClip", "FlatClip", "GlobalClip", "NormalizedClip"),
    "weightings.coupling": ("ConstantWeight", "CosineWeight", "OptimalWeight", "SampleWeight"),
    "weightings.ngdiff": ("NGDiff",),
    "weightings.scalarize": ("Fixed", "GradDiff", "LossNormalised"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Attached",
    "AutoClip",
    "Blur",
    "BudgetExceeded",
    "Chain",
    "Clipped",
    "ConstantWeight",
    "CosineWeight",
    "Dice",
    "Disk",
    "Doppler",
    "Event",
    "Fixed",
    "FlatClip",
    "Gaussian",
    "GeN",
    "GlobalClip",
    "GradDiff",
    "GridGaussian",
    "HiDLR",
    "Ledger",
    "LossNormalised",
    "NGDiff",
    "Noised",
    "NormalizedClip",
    "OptimalWeight",
    "PerSample",
    "PoissonSampler",
    "PrivacyPlan",
    "PrivateProbe",
    "PrivateTask",
    "PrivateTasks",
    "PublicRows",
    "PublicTask",
    "Recorder",
    "SampleWeight",
    "Tasks",
    "attach",
    "carry_over",
    "chain",
    "microbatches",
    "phase_plan",
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
