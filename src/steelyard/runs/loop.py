"""The one training loop: private or not, micro-batched, evaluated, logged, checkpointed, resumable.

    for step in public steps, if any:
        public batch -> losses.mean().backward(), optimizer.step()
    the optimizer's state is carried over, the rows are connected
    for step in the others:
        actions that are due at this step
        Poisson batch -> micro-batches -> rows.backward(losses)   (not private: losses.backward())
        optimizer.step(), perhaps a fit of its rates              (hook: pay, noise, filter)
        events, evaluation, checkpoint

Everything that decides the next step is in the checkpoint (model, optimizer, filters, ledger,
sampler, schedule, averages, random states), so a resumed run is bit for bit the run that was not
interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steelyard.plans.pretraining import split_steps
from steelyard.plans.privacy import PrivacyPlan
from steelyard.rows.sampling import PoissonSampler
from steelyard.runs.checkpoint import (
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from steelyard.runs.config import TrainConfig
from steelyard.runs.events import Events
from steelyard.runs.gradients import Gradients
from steelyard.runs.interrupt import Interrupted, interruptible
from steelyard.runs.optimizers import make_optimizer, rate
from steelyard.runs.private import PrivateSide
from steelyard.runs.problem import Problem
from steelyard.runs.progress import RunProgress
from steelyard.runs.public import PublicPhase
from steelyard.runs.step_size import step_size
from steelyard.steps.switch import carry_over


@dataclass(frozen=True, kw_only=True)
class At:
    """Something that happens once, before step `step` (counted from 0), also across a resume."""

    step: int
    name: str
    action: Callable[[Training], None]


class Training:
    """One run: its parts, `run()` to the end, `states()` for a checkpoint.

    plan: the privacy plan, or None for training without privacy (the same Poisson batches, plain
    gradients). actions: see `At`. Raises ValueError for settings that do not fit the model.
    """

    def __init__(
        self,
        problem: Problem,
        config: TrainConfig,
        plan: PrivacyPlan | None,
        steps: int,
        *,
        run_id: str,
        actions: Sequence[At] = (),
    ):
        self.problem, self.config, self.plan, self.steps = problem, config, plan, steps
        self.run_id, self.actions = run_id, actions
        self.step, self.seconds = 0, 0.0
        self.model = problem.model.train()
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
            if config.average
            else None
        )
        self.optimizer = make_optimizer(config, self.model)
        first = split_steps(steps, config.public_first)[0] if plan is None else steps - plan.steps
        self.phase = PublicPhase(problem, config, plan, first) if problem.n_public else None
        self.schedule = step_size(problem, config, self.model, self.optimizer, self._rate, steps)
        self.expected_batch = float(config.batch)
        self.sampler = PoissonSampler(
            problem.n,
            config.batch / problem.n,
            steps - first,
            # without privacy, who takes part is no secret: the run's seed decides
            seed=config.seed if plan is None else config.noise_seed,
        )
        self.private = None if plan is None else PrivateSide(problem, config, plan, self.model)
        self.rows = None if self.private is None else self.private.rows
        self.ledger = None if self.private is None else self.private.ledger
        self.gradients = Gradients(
            problem, self.model, config, self.sampler, self.private, self.phase
        )
        self._public = self.phase is not None and first > 0
        if not self._public:
            self._connect()

    @property
    def public_steps(self) -> int:
        """Steps on public samples alone, before all others."""
        return 0 if self.phase is None else self.phase.steps

    def _rate(self, step: int) -> float:
        config, first = self.config, self.public_steps
        if not config.reschedule:
            factor = rate(config, step, self.steps)
        elif step < first:
            factor = rate(config, step, first)
        else:
            factor = rate(config, step - first, self.steps - first)
        own = config.public_lr is not None and step < first
        return factor * (config.public_lr or 0.0) / config.lr if own else factor

    def _connect(self) -> None:
        if self.private is not None:
            self.private.connect(self.optimizer)
        self._public = False

    def _switch(self, events: Events) -> None:
        """From the public steps to the others, where a rule may have cut the former short."""
        assert self.phase is not None
        planned = self.phase.steps
        if not self.phase.over(self.step, self.model):
            return
        self.steps -= planned - self.phase.steps
        carried = carry_over(self.optimizer, self.config.at_switch)
        self.schedule.again()
        kind = "all samples" if self.private is None else "private"
        events.emit("phase", self.step, name=f"{kind}, {carried}")
        self._connect()

    @property
    def engine(self) -> str:
        """What makes the gradients."""
        return "autograd" if self.rows is None else self.rows.engine

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers the model has, and how many of them are trained."""
        parameters = list(self.model.parameters())
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        return sum(p.numel() for p in parameters), trainable

    @property
    def released(self) -> nn.Module:
        """The model that is evaluated and saved: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    def run(self, folder: Path, events: Events, progress: RunProgress) -> dict[str, float]:
        """Train to the last step; the final evaluation. Raises Interrupted after Ctrl-C."""
        evaluate_every = self.config.evaluate_every or max(1, self.steps // 20)
        checkpoint_every = self.config.checkpoint_every or math.ceil(self.steps / 10)
        log_every = max(1, self.steps // 200)
        if self.step == 0:
            torch.manual_seed(self.config.seed)  # dropout
            # whatever happens from here on, a resume draws the same noise again: one release, paid
            # for once
            self.save(folder, events)
        if self.plan is not None:
            self.plan.curve()  # seconds, once, that are no part of the first step's speed
        measured: dict[str, float] = {}
        # samples and seconds of training since the last line of the log
        seen, busy, speed = 0.0, 0.0, 0.0
        with interruptible() as pressed:
            while self.step < self.steps:
                self._act(events)
                lr, began = self.schedule.lr, time.monotonic()
                samples, loss = self._one_step()
                self.step += 1
                if self._public:
                    self._switch(events)
                took = time.monotonic() - began
                seen, busy, self.seconds = seen + samples, busy + took, self.seconds + took
                if (found := self.schedule.take()) is not None:
                    events.emit("rate", self.step, **found)
                last = self.step == self.steps
                epsilon = self.spent()
                if log := self.step % log_every == 0 or last:
                    speed, seen, busy = seen / max(busy, 1e-9), 0.0, 0.0
                    events.emit(
                        "train",
                        self.step,
                        samples_per_s=speed,
                        lr=lr,
                        epsilon=epsilon,
                        loss=loss,
                    )
                if self.step % evaluate_every == 0 or last:
                    measured = self.evaluate()
                    events.emit(
                        "eval",
                        self.step,
                        split="test",
                        n=len(self.problem.test_x),
                        epsilon=epsilon,
                        **measured,
                    )
                if log:
                    shown = loss if self.plan is None else None
                    progress.update(
                        self.step, speed, epsilon, shown, accuracy=measured.get("accuracy")
                    )
                stop = pressed.is_set()
                if self.step % checkpoint_every == 0 or last or stop:
                    self.save(folder, events)
                if stop:
                    events.emit("interrupt", self.step)
                    raise Interrupted(self.step)
        return measured or self.evaluate()  # nothing was left to do after a resume

    def spent(self) -> float | None:
        """Epsilon of the private steps so far, as the plan has it; None without privacy."""
        if self.plan is None:
            return None
        return self.plan.spent(max(0, self.step - self.public_steps))

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy (perplexity for language) of the released model on the test set."""
        return self.problem.evaluate(self.released, batch=max(256, self.config.micro_batch))

    def _act(self, events: Events) -> None:
        for at in self.actions:
            if at.step == self.step:
                events.emit("phase", self.step, name=at.name)
                at.action(self)

    def _one_step(self) -> tuple[float, float | None]:
        """One optimizer step on one logical batch: its size, and its loss.

        Under privacy neither leaves this function: the size is the expected one, the loss None.
        """
        gradients = self.gradients
        if self._public:
            size, loss = gradients.public()
        else:
            size, loss = gradients.private() if self.private is not None else gradients.plain()
        if loss is not None and not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is not finite at step {self.step}: lower --lr (now {self.config.lr})"
            )
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return size, loss

    def states(self) -> dict[str, Any]:
        """All but the model's tensors: what `resume` needs to go on bit for bit."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "sampler": self.sampler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "private": None if self.private is None else self.private.state_dict(),
            "public": None if self.phase is None else self.phase.state_dict(),
            "in_public": self._public,
            "random": random_states(),
            "seconds": self.seconds,
        }

    def save(self, folder: Path, events: Events) -> None:
        path = save_checkpoint(
            folder / "checkpoints",
            self.step,
            run_id=self.run_id,
            model=self.model.state_dict(),
            states=self.states(),
        )
        events.emit("checkpoint", self.step, path=f"checkpoints/{path.name}")

    def resume(self, folder: Path) -> list[str]:
        """Go to the newest usable checkpoint of this run in `folder`; notices of refused ones."""
        saved = load_checkpoint(folder / "checkpoints", run_id=self.run_id)
        self.model.load_state_dict(saved.model)
        states = saved.states
        self.optimizer.load_state_dict(states["optimizer"])
        self.schedule.load_state_dict(states["schedule"])
        self.sampler.load_state_dict(states["sampler"])
        if self.average is not None:
            self.average.load_state_dict(states["average"])
        if self.phase is not None:
            self.phase.load_state_dict(states["public"])
            self.steps = self.phase.steps + self.sampler.steps
        if self._public and not states["in_public"]:
            self._connect()
        if self.private is not None:
            self.private.load_state_dict(states["private"])
        self.step, self.seconds = saved.step, states["seconds"]
        return [*saved.notices, *restore_random_states(states["random"])]
