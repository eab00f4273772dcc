"""The one training loop: private or not, micro-batched, evaluated, logged, checkpointed, resumable.

    for step in steps:
        actions that are due at this step
        Poisson batch -> micro-batches -> rows.backward(losses)   (not private: losses.backward())
        optimizer.step()                                          (hook: pay, noise, filter)
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
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steelyard.filters.attach import attach
from steelyard.filters.gaussian import Gaussian
from steelyard.filters.grid import GridGaussian
from steelyard.plans.privacy import PrivacyPlan
from steelyard.rows.per_sample import PerSample
from steelyard.rows.sampling import PoissonSampler, microbatches
from steelyard.runs.checkpoint import (
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from steelyard.runs.config import TrainConfig, parse_groups
from steelyard.runs.events import Events
from steelyard.runs.interrupt import Interrupted, interruptible
from steelyard.runs.ledger import Ledger
from steelyard.runs.optimizers import make_optimizer, rate
from steelyard.runs.problem import Problem
from steelyard.runs.progress import RunProgress
from steelyard.weightings.clip import parse_clip

MECHANISMS = {"gaussian": Gaussian, "grid": GridGaussian}


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
        self.schedule = LambdaLR(self.optimizer, lambda step: rate(config, step, steps))
        self.expected_batch = float(config.batch)
        seed = config.noise_seed
        self.sampler = PoissonSampler(
            problem.n,
            config.batch / problem.n,
            steps,
            # without privacy, who takes part is no secret: the run's seed decides
            seed=config.seed if plan is None else seed,
        )
        self.rows, self.mechanism, self.ledger = None, None, None
        if plan is not None:
            clip = parse_clip(config.clip)
            if math.isinf(clip.bound):
                raise ValueError(f"--clip {config.clip} bounds nothing: give a bound, as in flat:1")
            self.rows = PerSample(
                self.model,
                clip,
                expected_batch=self.expected_batch,
                groups=parse_groups(config.groups),
                strict=config.strict,
            )
            self.mechanism = MECHANISMS[config.noise](plan.noise_multiplier, seed=seed)
            if isinstance(
                self.mechanism, GridGaussian
            ):  # refuses now what it would at the first step
                self.mechanism.spacing(clip.bound / self.expected_batch, self.sizes[1])
            self.ledger = Ledger(plan)
            self.ledger.noise = config.noise
            self.ledger.noise_seeded_by_user = seed is not None
            self.ledger.note_public("test loss and accuracy: the test set is treated as public")
            for note in problem.public:
                self.ledger.note_public(note)
            attach(self.optimizer, self.rows, self.mechanism, ledger=self.ledger)

    @property
    def engine(self) -> str:
        """What makes the gradients."""
        return self.rows.engine if self.rows is not None else "autograd"

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
                lr, began = self.optimizer.param_groups[0]["lr"], time.monotonic()
                samples, loss = self._one_step()
                self.step += 1
                took = time.monotonic() - began
                seen, busy, self.seconds = seen + samples, busy + took, self.seconds + took
                last = self.step == self.steps
                epsilon = self.plan.spent(self.step) if self.plan else None
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
                    progress.update(
                        self.step, speed, epsilon, loss, accuracy=measured.get("accuracy")
                    )
                stop = pressed.is_set()
                if self.step % checkpoint_every == 0 or last or stop:
                    self.save(folder, events)
                if stop:
                    events.emit("interrupt", self.step)
                    raise Interrupted(self.step)
        return measured or self.evaluate()  # nothing was left to do after a resume

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
        indices = self.sampler.draw()
        total = 0.0
        for piece in microbatches(indices, self.config.micro_batch):
            if self.rows is not None:
                self.rows.backward(self._losses(piece))
            elif len(piece):
                losses = self._losses(piece)
                (losses.sum() / self.expected_batch).backward()
                total += float(losses.detach().sum())
        if self.rows is None and not math.isfinite(total):
            raise FloatingPointError(
                f"the loss is not finite at step {self.step}: lower --lr (now {self.config.lr})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if self.rows is not None:
            return self.expected_batch, None
        return len(indices), total / max(len(indices), 1)

    def _losses(self, piece: Tensor) -> Tensor:
        if len(piece) == 0:  # an empty batch arms the step; no model needs to accept it
            return torch.zeros(0, device=self.problem.device)
        x, y = self.problem.batch(piece)
        return self.problem.losses(self.model, x, y)

    def states(self) -> dict[str, Any]:
        """All but the model's tensors: what `resume` needs to go on bit for bit."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "sampler": self.sampler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "mechanism": None if self.mechanism is None else self.mechanism.state_dict(),
            "ledger": None if self.ledger is None else self.ledger.state_dict(),
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
        if self.mechanism is not None and self.ledger is not None:
            self.mechanism.load_state_dict(states["mechanism"])
            self.ledger.load_state_dict(states["ledger"])
        self.step, self.seconds = saved.step, states["seconds"]
        return [*saved.notices, *restore_random_states(states["random"])]
