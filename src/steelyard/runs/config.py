"""The settings of one training run: a frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, Self

from steelyard.runs.ledger import NOISES
from steelyard.runs.trackers import TRACKERS

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "linear", "cosine")
SWITCHES = ("reset-m", "reset-v", "keep", "reset-all")
STOPS = ("share", "validation", "curvature")
STEPS = ("fixed", "gen", "hidlr")
_POSITIVE = (
    *("epochs", "steps", "batch", "micro_batch", "lr", "length", "public_batch", "public_lr"),
    "step_every",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train, on what, how privately, how.

    epsilon None: no privacy. Exactly one of epochs (passes over the data in expectation) and steps.
    batch: expected logical batch, cut into pieces of micro_batch samples. average: decay of an
    exponential moving average of the weights, which is then what is evaluated and saved (None:
    off). noise_seed: only to reproduce a run exactly; whoever knows it can subtract the noise.

    Raises ValueError for a value out of range: one line with the value and the fix.
    """

    model: str
    data: str
    text: str | None = None  # column names of a local or hub table
    label: str | None = None
    test: str | None = None  # a separate test file
    length: int = 128  # tokens per text
    adapter: str = "lora"  # of a pretrained model: lora, bias, head, full

    epsilon: float | None = 3.0
    delta: float | None = None
    accountant: str = "pld"
    noise: str = "gaussian"  # or grid: safe against attacks on the low bits
    clip: str = "auto-s"
    groups: str = "all"
    filters: tuple[str, ...] = ()  # in this order behind the noise: doppler:0.9, disk:0.7, dice:1
    strict: bool = False
    replace_batchnorm: bool = False

    epochs: float | None = None
    steps: int | None = None
    batch: int = 256
    micro_batch: int = 256
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0  # steps
    average: float | None = None

    step: str = "fixed"  # or gen, hidlr: rates found from probe losses, the schedule as a factor
    step_every: int | None = None  # steps from fit to fit; default: 8, hidlr max(8, 4 groups)
    step_groups: str | None = None  # of hidlr: roles (default), coarse, or patterns
    step_probes: int | None = None  # losses in one fit of gen: 5 (default), or 3
    step_part: float | None = None  # probe batch as a share of the batch; default: 0.5
    step_bootstrap: int | None = None  # first fits, one at every step; default: 20

    public_data: str | None = None  # public samples beside the private ones, or
    public_part: float | None = None  # a share of the training data that is declared public
    public_batch: int = 128
    public_weight: str | None = None  # of the public gradient: 0.3, samples, cosine, optimal
    public_first: float = 0.0  # share of the steps that are public training, before the private
    public_lr: float | None = None  # in those steps; default: lr
    public_stop: str = "share"  # or validation, curvature: end the public steps early
    at_switch: str = "reset-m"  # the optimizer's state behind them
    reschedule: bool = False  # begin the learning-rate schedule again at the switch

    device: str = "auto"
    seed: int = 0
    noise_seed: int | None = None
    evaluate_every: int | None = None  # steps; default: twenty times in a run
    checkpoint_every: int | None = None  # steps; default: ten times in a run
    tracker: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "filters", tuple(self.filters))  # a list, read from JSON
        self._check_public()
        self._check_step()
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{_flag(name)} must be positive, found {value}")
        if (self.epochs is None) == (self.steps is None):
            both = f"--epochs {self.epochs} and --steps {self.steps}"
            found = "neither" if self.epochs is None else both
            raise ValueError(f"give one of --epochs and --steps, found {found}")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ValueError(
                f"--epsilon must be positive, found {self.epsilon}; --no-privacy trains without"
            )
        _choice("optimizer", self.optimizer, OPTIMIZERS)
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("accountant", self.accountant, ("pld", "rdp"))
        _choice("noise", self.noise, tuple(NOISES))
        _choice("adapter", self.adapter, ("lora", "bias", "head", "full"))
        _choice("tracker", self.tracker, TRACKERS)
        for name in ("momentum", "average"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"--{name} must be in [0, 1), found {value}")
        for name in ("weight_decay", "warmup", "seed", "noise_seed"):
            value, below = getattr(self, name), 2**63 if "seed" in name else math.inf
            if value is not None and not 0 <= value < below:
                limit = " and below 2^63" if "seed" in name else " and finite"
                raise ValueError(f"--{_flag(name)} must be 0 or more{limit}, found {value}")
        for name in ("evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{_flag(name)} must be at least 1 step, found {value}")

    def _check_public(self) -> None:
        for name in ("public_part", "public_first"):
            value = getattr(self, name)
            most = 1.0 if name == "public_first" and not self.private else math.nextafter(1, 0)
            if value is not None and not 0 <= value <= most:
                raise ValueError(
                    f"--{_flag(name)} must be in [0, 1), found {value}: it is a share, and some "
                    "must stay private (only public data: --no-privacy --public-first 1)"
                )
        _choice("at_switch", self.at_switch, SWITCHES)
        _choice("public_stop", self.public_stop, STOPS)
        if self.public_data is not None and self.public_part is not None:
            raise ValueError(
                f"--public-data {self.public_data} and --public-part {self.public_part}: give one"
            )
        if (self.public_weight is not None or self.public_first) and not self.has_public:
            wanted = "public-weight" if self.public_weight is not None else "public-first"
            raise ValueError(
                f"--{wanted} needs public samples: give --public-data or --public-part"
            )
        for name in ("filters", "public_weight"):
            if getattr(self, name) and not self.private:
                flag = "filter" if name == "filters" else "public-weight"
                raise ValueError(
                    f"--{flag} works on privatised gradients, and this run has no privacy: drop it"
                )

    def _check_step(self) -> None:
        """What `steelyard.runs.step_size` is asked for."""
        if self.step not in STEPS:
            raise ValueError(
                f"unknown --step {self.step!r}: choose one of {', '.join(STEPS)} (how many steps: "
                "--steps)"
            )
        about = ("every", "groups", "probes", "part", "bootstrap")
        given = [name for name in about if getattr(self, f"step_{name}") is not None]
        if self.step == "fixed":
            if given:
                raise ValueError(
                    f"--step-{given[0]} is about rates that are found: give --step gen or hidlr"
                )
            return
        for name, only in (("groups", "hidlr"), ("probes", "gen")):
            if name in given and self.step != only:
                raise ValueError(f"--step-{name} is of --step {only}, found --step {self.step}")
        if self.step_probes not in (None, 3, 5):
            raise ValueError(f"--step-probes must be 3 or 5, found {self.step_probes}")
        if self.step_part is not None and not 0 < self.step_part <= 1:
            raise ValueError(f"--step-part must be in (0, 1], found {self.step_part}")
        if self.step_bootstrap is not None and self.step_bootstrap < 0:
            raise ValueError(f"--step-bootstrap must be 0 or more, found {self.step_bootstrap}")
        if self.public_lr is not None:
            raise ValueError(f"--public-lr sets a rate that --step {self.step} finds: drop one")
        if self.private and not self.has_public:
            raise ValueError(
                f"--step {self.step} looks at losses without noise, and this run's data is "
                "private: give --public-part 0.05 or --public-data, where looking costs nothing"
            )

    @property
    def has_public(self) -> bool:
        return self.public_data is not None or bool(self.public_part)

    @property
    def private(self) -> bool:
        return self.epsilon is not None

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"filters": list(self.filters)}  # as JSON has it

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """From a run folder's config.json; what later versions added or dropped is left out.

        Raises ValueError for what is not the settings of a run.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{name: value for name, value in saved.items() if name in known})
        except TypeError as error:
            raise ValueError(f"these are not the settings of a run: {error}") from None


def parse_groups(text: str) -> str | int | list[str]:
    """Clipping groups as the command line gives them: a style, a number of blocks, or patterns."""
    if text.isdigit():
        return int(text)
    return text.split(",") if "," in text or any(c in text for c in "*?[.") else text


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        close = difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"unknown --{_flag(name)} {value!r}: {hint}choose one of {', '.join(choices)}"
        )


def _flag(name: str) -> str:
    return name.replace("_", "-")
