"""One unlearning run of a memorised benchmark, watched to its end: no stop rule, no tolerance.

| symbol | here |
|---|---|
| m_F, m_R | memory of forget and of retain rows: share of answer tokens that are the likeliest |
| target, reference | the memorised model; the one retrained without the forget rows |
| forget quality | max(0, 1 - |m_F - m_F(reference)| / (m_F(target) - m_F(reference))) |
| retain quality | min(1, m_R / m_R(target)) |

So the target is at (retain, forget) = (1, 0), exact unlearning at (1, 1), and forgetting more than
the reference counts as an error as forgetting less does. m is the mean over LUME's cells (task,
completion or question) of the rows' means, teacher-forced: no text is generated for it.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from steelyard.bench.lume_data import kind, subset
from steelyard.bench.metrics import exact_memorisation
from steelyard.bench.scoring import token_scores
from steelyard.bench.small_files import Small
from steelyard.objectives import Tokens
from steelyard.runs.unlearn_config import UnlearnConfig
from steelyard.runs.unlearn_eval import encoded, placed, put, without_dropout
from steelyard.runs.unlearning import FORGET, Unlearning
from steelyard.trials.memorised import memorised

RESULTS = 1  # raise it when a change alters what a trial computes
LENGTH = 256  # tokens of a row
NAMES: dict[str, Any] = dict.fromkeys(("model", "forget", "retain"), "the benchmark's")
FLAT = 1e-6  # a slope or a rise below this, relative to what it is a difference of, is rounding
NEW_TOKENS = 64
GENERATED = 4  # rows of every task and kind for which text is generated


def build(**benchmark: Any) -> dict[str, Any]:
    """Make the benchmark, see `memorised`, once for all trials that begin with it.

    Returns seconds that the training took, when it was done; parameters, rows to forget; steps,
    and losses of target and reference at the end of their training.
    """
    base = memorised(**benchmark)
    told = base.manifest
    return {
        "seconds": told["target"]["seconds"] + told["reference"]["seconds"],
        "parameters": sum(p.numel() for p in base.target.parameters()),
        "rows": len(base.forget),
        "steps": told["target"]["steps"],
        "target_loss": told["target"]["loss"],
        "reference_loss": told["reference"]["loss"],
    }


def reference(**benchmark: Any) -> dict[str, Any]:
    """LUME's `scores` of target and reference; seconds."""
    base = memorised(**benchmark)
    began = time.process_time()
    found = {name: scores(base, getattr(base, name)) for name in ("target", "reference")}
    return {**found, "seconds": time.process_time() - began}


def forget(
    *, benchmark: dict[str, Any], method: str, rate: float, weight: float = 1.0,
    optimizer: str = "adamw", automatic: bool = False, steps: int = 24, batch: int = 8,
    every: int = 4, each: int = 4, slopes: bool = False, generate: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Unlearn by `method` at `rate`; weight: of the retain row. automatic: by GeN from that rate.

    each: rows of every task and kind that are looked at, every `every` steps. slopes: also whether
    each step raised F to first order. generate: also LUME's `scores` of the chosen state: the first
    whose forget loss had reached the reference's, else the last.

    Returns seconds (of the process, without the benchmark's); diverged; trajectory: [step, forget
    loss, retain loss, forget quality, retain quality] from step 0 to the last finite one; reached:
    the chosen step, None where the reference's loss was not; raised: share of steps after which F
    was higher on the step's own batch; raised_first_order; rate: the last one; scores.
    """
    base = memorised(**benchmark)
    ends = _ends(json.dumps(benchmark), each)
    began = time.process_time()
    given: dict[str, Any] = {"lr_start" if automatic else "lr": rate}
    config = UnlearnConfig(
        **NAMES, **given, method=method, adapter="full", optimizer=optimizer,
        batch=batch, micro_batch=batch, length=LENGTH, retain_weight=weight, tolerance=None,
        evaluate_every=every, seed=benchmark["seed"],
    )  # fmt: skip
    run = Watched(config, base, each=each, slopes=slopes, enough=ends["reference"]["forget_loss"])
    run.steps = steps
    finite = run.to_the_end()
    found: dict[str, Any] = {
        "diverged": not finite,
        "trajectory": [[int(one["step"]), *qualities(one, ends)] for one in run.seen],
        "reached": run.chosen_at,
        "raised": fmean(run.raised) if run.raised else None,
        "raised_first_order": fmean(run.rising) if run.rising else None,
        "rate": float(run.optimizer.param_groups[0]["lr"]),
    }
    if generate:
        put(run.parameters, run.chosen)
        found["scores"] = scores(base, run.model)
    return {"seconds": time.process_time() - began, **found}


def scores(base: Small, model: Any) -> dict[str, float]:
    """Of some rows: mean ROUGE-L recall of completions and exact match of questions, by set; AUC of
    the loss attack; accuracy by choice of general facts; LUME's aggregate."""
    from steelyard.bench.choices import questions_of
    from steelyard.bench.generate import documents
    from steelyard.bench.lume import evaluate

    found = evaluate(
        model, base.tokenizer, base.forget, base.retain, members=documents(base.forget),
        non_members=documents(base.non_members), mmlu=questions_of(base.general), rows=GENERATED,
        new_tokens=NEW_TOKENS,
    )  # fmt: skip
    assert found.mia is not None
    assert found.utility is not None
    told = {"aggregate": found.aggregate, "auc": found.mia["auc"]}
    told["utility"] = found.utility["accuracy"]
    for which in ("forget", "retain"):
        for measure in ("regurgitation", "knowledge"):
            cells = [one[which][measure] for one in found.scores.values()]
            told[f"{which} {measure}"] = fmean(cells)
    return told


class Watched(Unlearning):
    """The library's loop, with a look at F around every step, and at both sets' memory in between.

    enough: the forget loss at which a user would have stopped: that state is kept, as `chosen`.
    """

    def __init__(
        self, config: UnlearnConfig, base: Small, *, each: int, slopes: bool, enough: float
    ):
        model = copy.deepcopy(base.target)
        super().__init__(config, model, base.tokenizer, base.forget, base.retain, run_id="trial")
        self.seen: list[dict[str, float]] = []
        self.raised: list[bool] = []
        self.rising: list[bool] = []
        self.chosen: list[Tensor] = []
        self.chosen_at: int | None = None
        self._views = [View(config, base, name, each) for name in ("forget", "retain")]
        self._slopes, self._enough = slopes, enough

    def to_the_end(self) -> bool:
        """Run; False where losses or gradients stopped being finite."""
        from rich.console import Console

        from steelyard.runs.events import Events
        from steelyard.runs.progress import RunProgress

        console = Console(quiet=True)
        with tempfile.TemporaryDirectory() as name:
            try:
                with (
                    Events(Path(name) / "events.jsonl") as events,
                    RunProgress(self.steps, False, console) as progress,
                ):
                    self.run(Path(name), events, progress)
            except FloatingPointError:
                return False
        return True

    def evaluate(self) -> dict[str, float]:
        there = nullcontext()
        if self.config.method == "negation":
            there = placed(self.parameters, self._negated())
        found: dict[str, float] = {}
        with there:
            for view in self._views:
                found |= view.look(self.model)
            if not all(map(math.isfinite, found.values())):
                raise FloatingPointError("the loss is not finite")
            if self.chosen_at is None:
                self.chosen = [p.detach().clone() for p in self.parameters]
                if found["forget_loss"] >= self._enough:
                    self.chosen_at = self.step
        self.seen.append({"step": self.step, **found})
        return found

    def _one_step(self) -> dict[str, Any]:
        parts = self._parts(self.forget, self._pairs, FORGET, self._forget_loss)
        before: list[Tensor] = []
        gradient: tuple[Tensor, ...] = ()
        if self._slopes:
            with without_dropout(self.model):
                loss = torch.cat([part() for part in parts]).mean()
            gradient = torch.autograd.grad(loss, self.parameters)
            before = [p.detach().clone() for p in self.parameters]
        told = super()._one_step()
        with torch.no_grad(), without_dropout(self.model):
            now = float(torch.cat([part() for part in parts]).mean())
            was = told["losses"]["forget"]
            self.raised.append(not now <= was + FLAT * max(1.0, abs(was)))
            if self._slopes:
                self.rising.append(_rises(gradient, before, self.parameters))
        return told

    def save(self, folder: Path, events: Any) -> None:
        """A trial is not resumed."""


class View:
    """The rows of one set that are looked at."""

    def __init__(self, config: UnlearnConfig, base: Small, name: str, each: int):
        rows = subset(getattr(base, name), each)
        self.name = name
        self.tokens: Tokens = encoded(base.tokenizer, rows, config)
        self.cells = [(row["task"], kind(row)) for row in rows]

    def look(self, model: Any) -> dict[str, float]:
        """Loss, the mean over answer tokens; memory, the mean over cells."""
        rows = token_scores(model, self.tokens, batch=32)
        count = sum(len(row.log_p) for row in rows)
        cells: dict[tuple[str, str], list[float]] = {}
        for cell, row in zip(self.cells, rows, strict=True):
            cells.setdefault(cell, []).append(exact_memorisation(row.right))
        return {
            f"{self.name}_loss": -sum(float(row.log_p.sum()) for row in rows) / count,
            f"{self.name}_memory": fmean(map(fmean, cells.values())),
        }


@lru_cache(maxsize=8)
def _ends(benchmark: str, each: int) -> dict[str, dict[str, float]]:
    """What the views show of target and reference."""
    base = memorised(**json.loads(benchmark))
    config = UnlearnConfig(**NAMES, lr=1.0, length=LENGTH)
    views = [View(config, base, name, each) for name in ("forget", "retain")]
    return {
        name: {k: v for view in views for k, v in view.look(getattr(base, name)).items()}
        for name in ("target", "reference")
    }


def qualities(found: dict[str, float], ends: dict[str, dict[str, float]]) -> list[float]:
    """Forget loss, retain loss, forget quality, retain quality of what two views showed.

    Raises ValueError for a target that remembers no more than the reference.
    """
    target, goal = ends["target"], ends["reference"]["forget_memory"]
    span = target["forget_memory"] - goal
    if not span > 0:
        raise ValueError(f"the target remembers {span:.3g} more than the reference: train longer")
    forgotten = max(0.0, 1 - abs(found["forget_memory"] - goal) / span)
    retained = min(1.0, found["retain_memory"] / target["retain_memory"])
    return [found["forget_loss"], found["retain_loss"], forgotten, retained]


def _rises(gradient: Any, before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether <f, step> > 0, beyond rounding."""
    sums = []
    for g, old, new in zip(gradient, before, after, strict=True):
        pair = torch.stack([g.double().flatten(), (new - old).double().flatten()])
        sums.append(pair @ pair.T)
    (size, slope), (_, length) = torch.stack(sums).sum(0).tolist()  # one wait for the device
    return slope > FLAT * (length * size) ** 0.5
