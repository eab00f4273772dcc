"""The unlearning loop: two losses in one step, stopped at a reference, kept within a tolerance.

    for step in planned steps:
        forget batch, retain batch -> Tasks.backward(retain=R, forget=F) -> weighted gradient
        optimizer.step(), or GeN's step on a fresh retain batch               (lr None)
        evaluation: mean loss of answer tokens on some rows of both sets          (`steps.stop`)
            forgotten: forget loss at the reference           -> stop
            lost: retain loss above its tolerance             -> back to the last state within, stop

Which rows a step reads is a function of seed and step alone, so a resumed run is the run that was
not interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.objectives import CE, Pair, Reference, Tokens, idk_rows, swapped_rows
from steelyard.objectives.negation import negate
from steelyard.rows.tasks import Tasks
from steelyard.runs.checkpoint import (
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from steelyard.runs.events import Events
from steelyard.runs.interrupt import Interrupted, interruptible
from steelyard.runs.methods import METHODS, objectives_of, weighting_of
from steelyard.runs.progress import RunProgress
from steelyard.runs.unlearn_config import UnlearnConfig
from steelyard.runs.unlearn_eval import (
    encoded,
    evaluating,
    mean_loss,
    placed,
    put,
    rows_of_step,
    without_dropout,
)
from steelyard.runs.unlearn_stop import Kept
from steelyard.steps.gen import GeN

Row = dict[str, Any]
STARTS = {"lora": 1e-4, "full": 1e-5}  # learning rates from which GeN begins, unless told
FIT_EVERY = 10  # steps between two of its fits, as in NGDiff
FORGET, RETAIN, PROBES = range(3)  # streams of rows


class Unlearning:
    """One run: its parts, `run()` to the end, `states()` for a checkpoint.

    model, tokenizer: a causal language model that is changed in place. forget, retain: rows as of
    `steelyard.data.prompts`. stop_forget: the forget loss to stop at, where the settings have none.
    Raises ValueError for rows that do not fit, and settings that do not fit the model.
    """

    def __init__(
        self,
        config: UnlearnConfig,
        model: nn.Module,
        tokenizer: Any,
        forget: Sequence[Row],
        retain: Sequence[Row],
        *,
        run_id: str,
        stop_forget: float | None = None,
    ):
        self.config, self.model, self.tokenizer, self.run_id = config, model, tokenizer, run_id
        self.method = METHODS[config.method]
        self.device = next(model.parameters()).device
        self.steps = max(1, math.ceil(config.epochs * len(forget) / config.batch))
        self.step, self.seconds, self.stopped = 0, 0.0, ""
        self.forget = encoded(tokenizer, forget, config, "forget")
        self.retain = encoded(tokenizer, retain, config, "retain")
        self._pairs = self._paired(forget)
        self._forget_loss, self._retain_loss = objectives_of(config)
        wanted = [loss for loss in (self._forget_loss, self._retain_loss) if loss is not None]
        asks = any(loss.needs_reference for loss in wanted)
        self._reference = Reference.of(model) if asks else None
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if config.method == "negation" and len(self.parameters) < len(list(model.parameters())):
            raise ValueError("--method negation walks back all weights: use --adapter full")
        self._kept = Kept(
            self.parameters,
            reference=config.stop_forget if stop_forget is None else stop_forget,
            tolerance=config.tolerance,
        )
        copied = self.parameters if config.method == "negation" else []
        self._start = [p.detach().clone() for p in copied]
        self.optimizer = self._optimizer()
        self.weighting = weighting_of(config)
        self._remembers = hasattr(self.weighting, "state_dict")
        self.tasks = Tasks(
            self.parameters,
            self.weighting,
            names=["retain", "forget"] if self.method.retains else ["forget"],
            optimizer=self.optimizer if self.method.metric else None,
        )
        self.rate = (
            GeN(self.optimizer, model=model, every=FIT_EVERY, seed=config.seed)
            if config.lr is None
            else None
        )
        self.first: dict[str, float] = {}

    def _paired(self, forget: Sequence[Row]) -> Tokens | None:
        """The other answers to the forget prompts, where the method prefers them."""
        if not self.method.pairs:
            return None
        seed = self.config.seed
        other = idk_rows if self.method.pairs == "idk" else swapped_rows
        return encoded(self.tokenizer, other(forget, seed=seed), self.config, "forget")

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        lr = config.lr or config.lr_start or STARTS[config.adapter]
        if config.optimizer == "sgd":
            return torch.optim.SGD(self.parameters, lr=lr)
        return torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)

    # -- one step ----------------------------------------------------------------------------------

    def _one_step(self) -> dict[str, Any]:
        """One optimizer step; what was weighed, in numbers."""
        rows: dict[str, list[Callable[[], Tensor]]] = {}
        if self._retain_loss is not None:
            rows["retain"] = self._parts(self.retain, None, RETAIN, self._retain_loss)
        rows["forget"] = self._parts(self.forget, self._pairs, FORGET, self._forget_loss)
        with without_dropout(self.model):
            record = self.tasks.backward(**rows)  # pyright: ignore[reportArgumentType]
        if self.rate is None:
            self.optimizer.step()
        else:
            probes = self._drawn(self.retain, PROBES)  # outside: all probes see the same batch
            self.rate.step(lambda: CE().per_sample(self.model, probes))
        self.optimizer.zero_grad()
        return {
            "losses": record.losses,
            "norms": record.norms,
            "weights": record.weights,
            "cosine": record.cosines.get(("retain", "forget")),
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def _parts(
        self, tokens: Tokens, chosen: Tokens | None, stream: int, loss: Any
    ) -> list[Callable[[], Tensor]]:
        """One function for each micro-batch of this step's rows: losses [B]."""
        index = self._index(len(tokens), stream)
        pieces: list[Callable[[], Tensor]] = []
        for piece in index.split(self.config.micro_batch):
            given: Tokens | Pair = tokens.rows(piece).trimmed().to(self.device)
            if chosen is not None:
                given = Pair(chosen.rows(piece).trimmed().to(self.device), given)
            pieces.append(partial(loss.per_sample, self.model, given, self._reference))
        return pieces

    def _drawn(self, tokens: Tokens, stream: int) -> Tokens:
        index = self._index(len(tokens), stream)
        return tokens.rows(index).trimmed().to(self.device)

    def _index(self, n: int, stream: int) -> Tensor:
        """The rows of this step: epochs over the set, each shuffled anew by seed and stream."""
        return rows_of_step(self.step, self.config.batch, n, 4 * self.config.seed + stream)

    # -- evaluation and stopping -------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Mean cross-entropy in nats a token of some rows' answers, of both sets."""
        there = nullcontext()
        if self.config.method == "negation":
            there = placed(self.parameters, self._negated())
        sets = {"forget_loss": self.forget, "retain_loss": self.retain}
        rows, batch = self.config.rows, self.config.micro_batch
        with evaluating(self.model), there:
            return {k: mean_loss(self.model, v, rows, batch) for k, v in sets.items()}

    def _negated(self) -> list[Tensor]:
        """The weights on the other side of where training on the forget set went."""
        before = {str(i): t for i, t in enumerate(self._start)}
        after = {str(i): p.detach() for i, p in enumerate(self.parameters)}
        return list(negate(before, after, self.config.gamma).values())

    @property
    def limit(self) -> float | None:
        """The retain loss to stay below; None without a tolerance, or before the run begins."""
        return self._kept.limit

    # -- the loop ----------------------------------------------------------------------------------

    def run(self, folder: Path, events: Events, progress: RunProgress) -> dict[str, float]:
        """To the last step, or to what stops it; the final losses. Raises Interrupted."""
        evaluate_every = self.config.evaluate_every or max(1, self.steps // 20)
        checkpoint_every = self.config.checkpoint_every or math.ceil(self.steps / 5)
        found = None
        if self.step == 0:
            torch.manual_seed(self.config.seed)  # of models that draw numbers
            found = self.first = self.evaluate()
            events.emit("eval", 0, **self.first)
        reason = self._kept.begin(self.first)
        self.stopped = reason if self.step == 0 else self.stopped
        with interruptible() as pressed:
            while self.step < self.steps and not self.stopped:
                began = time.monotonic()
                told = self._one_step()
                self.step += 1
                self.seconds += time.monotonic() - began
                events.emit("train", self.step, **told)
                last = self.step == self.steps
                if self.step % evaluate_every == 0 or last:
                    found = self.evaluate()
                    events.emit("eval", self.step, **found)
                    self.stopped = self._kept.judge(self.step, found)
                speed = 2 * self.config.batch * self.step / max(self.seconds, 1e-9)
                progress.update(self.step, speed, loss=found["retain_loss"] if found else None)
                stop = pressed.is_set()
                if self.step % checkpoint_every == 0 or last or stop or self.stopped:
                    self.save(folder, events)
                if stop:
                    events.emit("interrupt", self.step)
                    raise Interrupted(self.step)
        if self.stopped:
            events.emit("stop", self.step, reason=self.stopped)
            progress.note(f"stopped after step {self.step}: {self.stopped}")
        if found is None or self._kept.step != self.step:  # resumed at its end, or went back
            found = self.evaluate()
        if self.config.method == "negation":
            put(self.parameters, self._negated())
        self.model.eval()
        return found

    # -- state -------------------------------------------------------------------------------------

    def states(self) -> dict[str, Any]:
        """All but the trained tensors: what `resume` needs to go on bit for bit."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "rate": None if self.rate is None else self.rate.state_dict(),
            "weighting": self.weighting.state_dict() if self._remembers else None,
            "first": self.first,
            "kept": self._kept.state_dict(),
            "start": self._start,
            "random": random_states(),
            "seconds": self.seconds,
            "stopped": self.stopped,
        }

    def save(self, folder: Path, events: Events) -> None:
        path = save_checkpoint(
            folder / "checkpoints",
            self.step,
            run_id=self.run_id,
            model={str(i): p.detach() for i, p in enumerate(self.parameters)},
            states=self.states(),
        )
        events.emit("checkpoint", self.step, path=f"checkpoints/{path.name}")

    def resume(self, folder: Path) -> list[str]:
        """Go to the newest usable checkpoint of this run in `folder`; notices of refused ones."""
        saved = load_checkpoint(folder / "checkpoints", run_id=self.run_id)
        states = saved.states
        put(self.parameters, [saved.model[str(i)] for i in range(len(self.parameters))])
        self.optimizer.load_state_dict(states["optimizer"])
        if self.rate is not None:
            self.rate.load_state_dict(states["rate"])
        if self._remembers:
            self.weighting.load_state_dict(states["weighting"])
        self.first = states["first"]
        self._kept.load_state_dict(states["kept"])
        self._start = states["start"]
        self.step, self.seconds, self.stopped = saved.step, states["seconds"], states["stopped"]
        return [*saved.notices, *restore_random_states(states["random"])]
