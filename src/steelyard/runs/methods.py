"""Unlearning methods by name: a forget objective, a retain loss, and how the two are weighed.

| name | forget row F | retain row R | weighting |
|---|---|---|---|
| ga | GA | | |
| graddiff, kl | GA | CE, KL | fixed |
| lossnorm | GA | CE | 1 / loss |
| npo, simnpo | NPO, SimNPO | CE | fixed |
| idkdpo, altpo | DPO with refusals, with other rows' answers | CE | fixed |
| rmu | RMU | KeepHidden | fixed |
| undial, ceu, wga, satimp | of that name | CE | fixed |
| pdu | PDU | CE | primal-dual |
| ngdiff | GA | CE | NGDiff |
| blur, blur-adam | NPO | CE | BLUR, in the metric of the optimizer |
| negation | -CE of a copy trained on the forget set | | task vector |

Default settings are those of the objectives. "fixed" weighs F by 1 (simnpo: 0.125) and R by
`retain_weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.runs.unlearn_config import UnlearnConfig

LAYER = -2  # the block that RMU steers: the last but one


@dataclass(frozen=True, kw_only=True)
class Method:
    """forget, retain: names in `steelyard.objectives.OBJECTIVES`. weighting: "fixed", "loss",
    "ngdiff", "blur", "primal-dual" or "" for one row alone. pairs: where the other answers come
    from, "idk" or "swapped"."""

    forget: str
    retain: str | None = "ce"
    weighting: str = "fixed"
    forget_weight: float = 1.0
    pairs: str = ""
    metric: str | None = None
    options: Mapping[str, Any] | None = None  # of the forget objective

    @property
    def retains(self) -> bool:
        return self.retain is not None


METHODS: dict[str, Method] = {
    "ngdiff": Method(forget="ga", weighting="ngdiff"),
    "blur": Method(forget="npo", weighting="blur"),
    "blur-adam": Method(forget="npo", weighting="blur", metric="optimizer"),
    "graddiff": Method(forget="ga"),
    "lossnorm": Method(forget="ga", weighting="loss"),
    "kl": Method(forget="ga", retain="kl"),
    "npo": Method(forget="npo"),
    "simnpo": Method(forget="simnpo", forget_weight=0.125),
    "idkdpo": Method(forget="idkdpo", pairs="idk"),
    "altpo": Method(forget="altpo", pairs="swapped"),
    "rmu": Method(forget="rmu", retain="keephidden"),
    "undial": Method(forget="undial"),
    "ceu": Method(forget="ceu"),
    "wga": Method(forget="wga"),
    "satimp": Method(forget="satimp", forget_weight=0.1),
    "pdu": Method(forget="pdu", weighting="primal-dual"),
    "ga": Method(forget="ga", retain=None, weighting=""),
    "negation": Method(forget="ce", retain=None, weighting=""),
}


def objectives_of(config: UnlearnConfig) -> tuple[Any, Any | None]:
    """The forget objective and the retain loss of the settings.

    Raises ValueError for a --beta that the objective does not have.
    """
    from steelyard.objectives import OBJECTIVES

    method = METHODS[config.method]
    options: dict[str, Any] = dict(method.options or {})
    if config.beta is not None:
        if "beta" not in getattr(OBJECTIVES[method.forget], "__dataclass_fields__", {}):
            raise ValueError(f"--method {config.method} has no beta: drop --beta {config.beta:g}")
        options["beta"] = config.beta
    layer = {"layer": LAYER} if method.forget == "rmu" else {}
    retain = None if method.retain is None else OBJECTIVES[method.retain](**layer)
    return OBJECTIVES[method.forget](**options, **layer), retain


def weighting_of(config: UnlearnConfig) -> Any:
    """How the rows "retain" and "forget" are weighed, or one row "forget" alone."""
    from steelyard.objectives import PrimalDual
    from steelyard.weightings.blur import Blur
    from steelyard.weightings.ngdiff import NGDiff
    from steelyard.weightings.scalarize import Fixed, LossNormalised

    method, kept = METHODS[config.method], config.retain_weight
    make: dict[str, Callable[[], Any]] = {
        "": lambda: Fixed({"forget": 1.0}),
        "fixed": lambda: Fixed({"retain": kept, "forget": method.forget_weight}),
        "loss": LossNormalised,
        "ngdiff": lambda: NGDiff(rho=kept),
        "blur": lambda: Blur(gamma=config.gamma, metric=method.metric),
        "primal-dual": PrimalDual,
    }
    return make[method.weighting]()
