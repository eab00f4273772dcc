"""The step size of a run: a schedule of the user's rate, or GeN's and Hi-DLR's rates from probes.

    fixed     rate x schedule
    gen       one rate for all parameters, found; the schedule is its decay factor
    hidlr     one rate for each group of parameters, found; the schedule is their decay factor

The probe batch is drawn independently of the gradient's, by a generator of its own: from the
training data, under privacy from the public samples alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from steelyard.filters.named import read
from steelyard.generators import fresh_root, generator
from steelyard.runs.config import TrainConfig
from steelyard.runs.problem import Problem
from steelyard.steps import gen, hidlr
from steelyard.steps.parabolas import Parabola
from steelyard.steps.quadratic import Quadratic
from steelyard.steps.roles import by_text

LEVELS = {3: (-1.0, 1.0), 5: (-2.0, -1.0, 1.0, 2.0)}  # besides the loss at the start
PART, BOOTSTRAP = 0.5, 20  # of the batch is probed; first fits, one at every step
PICTURES = 300  # about so many fits are logged with their points, and
REFUSED = 50  # so many rejected ones beyond those
ALL = "all"  # GeN's only group
Factor = Callable[[int], float]


class Scheduled:
    """rate x factor(t): torch's LambdaLR. `step` is the optimizer's, then the schedule's."""

    about, copies = "", 0
    notes: tuple[str, ...] = ()

    def __init__(self, optimizer: Optimizer, factor: Factor):
        self._optimizer = optimizer
        self.scheduler = LambdaLR(optimizer, factor)

    @property
    def lr(self) -> float:
        """The rate of the next step."""
        return self._optimizer.param_groups[0]["lr"]

    def step(self) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.scheduler.step()

    def take(self) -> dict[str, Any] | None:
        """What the latest step has to tell, once: nothing here."""
        return None

    def again(self) -> None:
        """The factor is another one from here on: set the next step's rate anew."""
        made, t = self.scheduler, self.scheduler.last_epoch
        for group, lr in zip(self._optimizer.param_groups, made.base_lrs, strict=True):
            group["lr"] = lr * made.lr_lambdas[0](t)

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


class Found:
    """GeN or Hi-DLR in the place of the optimizer's step; `take` tells of a fit.

    Make it before the optimizer's state is loaded and before rows are attached: Hi-DLR splits the
    optimizer's groups. Raises ValueError for patterns that match nothing.
    """

    copies = 3  # of the trained parameters, while a fit is made

    def __init__(
        self,
        problem: Problem,
        config: TrainConfig,
        model: nn.Module,
        optimizer: Optimizer,
        factor: Factor,
        steps: int,
    ):
        self._problem, self._model, self._optimizer = problem, model, optimizer
        self._factor = factor
        self._public, self._micro_batch = config.private, config.micro_batch
        self._n = problem.n_public if self._public else problem.n
        part = PART if config.step_part is None else config.step_part
        self._size = min(self._n, max(1, round(part * config.batch)))
        self._draws = generator(fresh_root(config.seed), "probe batches")
        bootstrap = BOOTSTRAP if config.step_bootstrap is None else config.step_bootstrap
        common: dict[str, Any] = {
            "model": model, "bootstrap": bootstrap, "decay": factor, "seed": config.seed,
            "probes_are": "public" if self._public else None,
        }  # fmt: skip
        self._method: gen.GeN | hidlr.HiDLR
        if config.step == "gen":
            levels, every = LEVELS[config.step_probes or 5], config.step_every or 8
            self._method = gen.GeN(optimizer, every=every, probes=levels, **common)
            self._largest, K, forwards = 0, 1, len(levels) + 1
        else:
            try:
                groups = by_text(model, config.step_groups or "roles")
            except ValueError as error:
                raise ValueError(f"--step-groups {config.step_groups}: {error}") from None
            K = len(groups)
            at_once = min(K, 8)
            every = config.step_every or max(8, 4 * at_once)
            self._method = hidlr.HiDLR(optimizer, groups, every=every, **common)
            sizes = [sum(p.numel() for p in g["params"]) for g in optimizer.param_groups]
            self._largest = sizes.index(max(sizes))
            forwards = 4 * at_once + 1 + 2 * (K > 2)
        first = min(bootstrap, steps)
        fits = first + (steps - first) // every
        more = fits * forwards * self._size / (3 * steps * config.batch)  # backward: two forwards
        name = "GeN" if config.step == "gen" else f"Hi-DLR, {K} groups"
        self.about = (
            f"{name}: {forwards} losses of {self._size} {'public ' if self._public else ''}samples "
            f"every {every} steps, at each of the first {first}; about {more:.0%} more time"
        )
        self.notes: tuple[str, ...] = ()
        if disk := [text for text in config.filters if read(text).name == "disk"]:
            self.notes = (
                f"{disk[0]} measures every step, so a step keeps its length; the rate found is "
                "that of the steps behind it",
            )
        self._stride = max(1, math.ceil(fits * K / PICTURES))
        self._steps = self._fits = self._refused = 0
        self._taken: dict[str, Any] | None = None

    @property
    def lr(self) -> float:
        """The rate of the next step, of the group that has the most parameters."""
        return float(self._optimizer.param_groups[self._largest]["lr"])

    def step(self) -> None:
        method, factor = self._method, self._factor(self._steps)
        decision = method.step(self._losses() if method.due else None)
        self._steps += 1
        self._optimizer.zero_grad()
        method.log.clear()  # it goes to the run's own
        if decision is not None:
            whose = "public" if self._public else "none"
            self._taken = {"protection": whose, "factor": factor, **self._record(decision)}

    def take(self) -> dict[str, Any] | None:
        """The fields of a "rate" event, where the latest step made a fit; None otherwise.

        rates: of each group behind the fit, without the schedule's factor. fits: of each group that
        was looked at. points: of some of them, x in multiples of the step; see `PICTURES`.
        """
        taken, self._taken = self._taken, None
        return taken

    def again(self) -> None:
        """The factor is another one from here on: set the next step's rates anew."""
        self._method.load_state_dict(self._method.state_dict())

    def _losses(self) -> list[Callable[[], Tensor]]:
        """Of one fresh batch, in micro-batches."""
        drawn = torch.randperm(self._n, generator=self._draws)[: self._size]
        read = self._problem.public_batch if self._public else self._problem.batch
        batches = [read(piece) for piece in drawn.split(self._micro_batch)]
        return [lambda x=x, y=y: self._problem.losses(self._model, x, y) for x, y in batches]

    def _record(self, decision: gen.Decision | hidlr.Decision) -> dict[str, Any]:
        said: dict[str, Any] = {}
        fits: dict[str, dict[str, Any]] = {}
        curves: dict[str, Quadratic | None] = {}
        if isinstance(decision, gen.Decision):
            rates = {ALL: decision.lr}
            fits[ALL] = _fit(decision) | {"multiple": decision.multiple, "reason": decision.reason}
            curves[ALL] = decision.fitted
        else:
            rates = dict(decision.rates)
            for name, one in decision.parabolas.items():
                words = filter(None, (one.reason, decision.reactions.get(name)))
                of = {"multiple": decision.multipliers[name], "reason": "; ".join(words)}
                fits[name], curves[name] = _fit(one) | of, one.fitted
            said = {"rescale": decision.rescale, "diagonal": decision.diagonal}
        refused = any(not fit["accepted"] for fit in fits.values())
        kept = self._fits % self._stride == 0 or (refused and self._refused < REFUSED)
        self._fits, self._refused = self._fits + 1, self._refused + refused
        points = {n: _points(q) for n, q in curves.items() if q is not None} if kept else {}
        return {"rates": rates, "fits": fits, **said, "points": points}

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": self._method.state_dict(),
            "draws": self._draws.get_state(),
            "counts": [self._steps, self._fits, self._refused],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Behind the optimizer's."""
        self._method.load_state_dict(state["method"])
        self._draws.set_state(state["draws"])
        self._steps, self._fits, self._refused = state["counts"]


def step_size(
    problem: Problem,
    config: TrainConfig,
    model: nn.Module,
    optimizer: Optimizer,
    factor: Factor,
    steps: int,
) -> Scheduled | Found:
    """As the settings have it. factor: of the rate at step t = 0, 1, ...; steps: of the run."""
    if config.step == "fixed":
        return Scheduled(optimizer, factor)
    return Found(problem, config, model, optimizer, factor, steps)


def _fit(one: gen.Decision | Parabola) -> dict[str, Any]:
    return {
        "slope": one.slope,
        "curvature": one.curvature,
        "r2": one.r2,
        "accepted": one.accepted,
    }


def _points(fitted: Quadratic) -> dict[str, Any]:
    """By x, in single precision's digits: for a picture."""
    points = fitted.points
    rows = sorted(
        {(float(x), float(y)) for x, y in zip(points.x[:, 0], points.y[:, 0], strict=True)}
    )
    return {
        "x": [float(f"{x:.7g}") for x, _ in rows],
        "loss": [float(f"{y:.9g}") for _, y in rows],
        "noise": float(points.sigma[0]),
    }
