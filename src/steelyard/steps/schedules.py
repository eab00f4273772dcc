"""Learning-rate schedules as torch schedulers, with the warm-up as a share of the run.

The shapes are `steelyard.plans.schedule_shapes`, one definition with the laws; a peak that
`steelyard.plans.laws` finds is the optimizer's own `lr` here. As all of torch's schedulers they set
the rate of the first step at once; call `step()` behind each `optimizer.step()`.

| function | qualified: best rate falls like 1/sqrt(T) |
|---|---|
| linear, cosine, wsd, cyclic | yes |
| constant, inverse_sqrt | no |
"""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from steelyard.plans.checks import whole
from steelyard.plans.schedule_shapes import ENDLESS, Shape

WARMUP = 0.02  # of the steps: the paper's own


class _Factor:
    """The factor on the rate of the step behind `done` steps.

    An object of plain numbers, not a closure: LambdaLR then puts it into its state.
    """

    def __init__(self, shape: Shape, steps: int) -> None:
        self.kind, self.steps, self.warmup = shape.kind, steps, shape.warmup
        self.stable, self.cycles, self.low = shape.stable, shape.cycles, shape.low

    def __call__(self, done: int) -> float:
        if done > self.steps and self.kind not in ENDLESS:
            raise ValueError(
                f"step {done + 1} of a {self.kind} schedule of {self.steps} steps, whose rate has "
                "ended: plan the steps that are taken"
            )
        shape = Shape(
            kind=self.kind,
            warmup=self.warmup,
            stable=self.stable,
            cycles=self.cycles,
            low=self.low,
        )
        return shape.factor(done + 1, self.steps)


def schedule(optimizer: Optimizer, shape: Shape, steps: int) -> LambdaLR:
    """eta_t = lr s_t for every parameter group, lr its own: s = `shape(steps)`.

    Guarantees: `state_dict()` holds plain numbers, among them the shape and the horizon, which
    `load_state_dict` brings back: a resumed run keeps the schedule that it began with.
    Raises ValueError for steps below 1, and behind the end of a shape that has one (one `step()`
    after the last `optimizer.step()` is fine).
    """
    steps = whole("steps", steps, least=1, fix="give the run's optimizer steps")
    factors = [_Factor(shape, steps) for _ in optimizer.param_groups]
    return LambdaLR(optimizer, list(factors))


def linear(optimizer: Optimizer, steps: int, *, warmup: float = WARMUP) -> LambdaLR:
    """Warm-up, then straight down to 1/T of the peak. See `schedule`."""
    return schedule(optimizer, Shape(kind="linear", warmup=warmup), steps)


def cosine(optimizer: Optimizer, steps: int, *, warmup: float = WARMUP) -> LambdaLR:
    """Warm-up, then half a cosine down to nearly 0. See `schedule`."""
    return schedule(optimizer, Shape(kind="cosine", warmup=warmup), steps)


def wsd(
    optimizer: Optimizer, steps: int, *, stable: float = 0.8, warmup: float = WARMUP
) -> LambdaLR:
    """Warm-up, the peak for a share `stable` of the rest, then straight down. See `schedule`."""
    return schedule(optimizer, Shape(kind="wsd", stable=stable, warmup=warmup), steps)


def constant(optimizer: Optimizer, steps: int, *, warmup: float = WARMUP) -> LambdaLR:
    """Warm-up, then the peak. See `schedule`."""
    return schedule(optimizer, Shape(kind="constant", warmup=warmup), steps)


def inverse_sqrt(optimizer: Optimizer, steps: int, *, warmup: float = WARMUP) -> LambdaLR:
    """Warm-up over W steps, then sqrt(W / t); without one 1/sqrt(t). See `schedule`."""
    return schedule(optimizer, Shape(kind="inverse-sqrt", warmup=warmup), steps)


def cyclic(
    optimizer: Optimizer,
    steps: int,
    *,
    cycles: int = 4,
    low: float = 0.0,
    warmup: float = WARMUP,
) -> LambdaLR:
    """Warm-up, then `cycles` equal cosines from the peak down to `low` of it. See `schedule`."""
    return schedule(optimizer, Shape(kind="cyclic", cycles=cycles, low=low, warmup=warmup), steps)
