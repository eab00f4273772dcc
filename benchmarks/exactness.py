"""Whose clipped gradients are right: steelyard's and Opacus' in four modes, case by case.

    python benchmarks/exactness.py [--quick] [--only NAME] [--json FILE] [--markdown FILE]

Every cell is computed by running it against the right answer (benchmarks/lib/case.py): each sample
alone, in float64. `exact (e)`: relative error e of the clipped sum, as small as rounding; `wrong
(e)`: an answer, but not the right one; `refuses`: an error that says so; `fails`: another error;
`accepts`: an answer where none exists, because the samples mix.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lib.case import Answer, Case, Row, right
from lib.cases import CASES
from lib.cases_hf import CASES_HF
from lib.opacus_engines import wrap
from lib.tables import machine, table
from torch import Tensor, nn

from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import FlatClip

ALL = [*CASES, *CASES_HF]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one engine did: exact, wrong, refuses, fails or accepts; error is relative."""

    verdict: str
    error: float | None = None
    detail: str = ""

    def __str__(self) -> str:
        number = "" if self.error is None else f" ({self.error:.0e})"
        detail = f": {self.detail}" if self.verdict in ("refuses", "fails") else ""
        return f"{self.verdict}{number}{detail}"


def ours(case: Case, bound: float) -> tuple[Row, str]:
    """The clipped sum, and the engine of the library that served it."""
    model, x = case.build()
    with PerSample(model, FlatClip(bound), expected_batch=1.0) as rows:
        for losses in parts(case, model, x):
            rows.backward(losses)
        return dict(zip(rows.names, rows.take().tensors, strict=True)), rows.engine


def opacus(mode: str) -> Callable[[Case, float], tuple[Row, str]]:
    """Opacus as its PrivacyEngine sets it up, without noise, with a learning rate of 0."""

    def run(case: Case, bound: float) -> tuple[Row, str]:
        from opacus.optimizers import DPOptimizer
        from opacus.optimizers.optimizer_fast_gradient_clipping import (
            DPOptimizerFastGradientClipping,
        )
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        model, x = case.build()
        wrapped = wrap(mode, model, bound)
        kind = DPOptimizerFastGradientClipping if mode == "ghost" else DPOptimizer
        private = kind(
            torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0),
            noise_multiplier=0.0,
            max_grad_norm=bound,
            expected_batch_size=1,
        )

        class Given(nn.Module):
            reduction = "mean"

            def forward(self, losses: Tensor) -> Tensor:
                return losses

        two_passes: Any = private
        criterion = DPLossFastGradientClipping(wrapped, two_passes, Given(), "mean")
        for i, losses in enumerate(parts(case, wrapped, x)):
            if case.micro > 1:  # what Opacus' BatchMemoryManager does
                private.signal_skip_step(do_skip=i < case.micro - 1)
            if mode == "ghost":
                criterion(losses).backward()
            else:
                losses.mean().backward()
            private.step()
            if i < case.micro - 1:
                private.zero_grad()
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
            if p.requires_grad
        }, ""

    return run


def parts(case: Case, model: nn.Module, x: Tensor) -> Iterable[Tensor]:
    """The losses of one micro-batch after the other; each sample keeps the scale of its place."""
    size = max(1, len(x) // case.micro)
    for i in range(case.micro):
        piece = x[i * size : (i + 1) * size]
        losses = case.losses(case.call(model, piece))
        place = torch.arange(1, len(piece) + 1, dtype=losses.dtype, device=losses.device)
        yield losses * (place + i * size) / place if i else losses


ENGINES: dict[str, Callable[[Case, float], tuple[Row, str]]] = {
    "steelyard": ours,
    "Opacus hooks": opacus("hooks"),
    "Opacus ghost": opacus("ghost"),
    "Opacus functorch": opacus("functorch"),
    "Opacus expanded weights": opacus("ew"),
}


def cell(case: Case, engine: str, answer: Answer | None) -> Cell:
    """Run one engine on one case. answer: None where the samples mix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            got, served = ENGINES[engine](case, answer.bound if answer else 1.0)
        except Exception as error:  # what others raise is the result that we are after
            return Cell(verdict=kind_of(error), detail=short(error))
    if answer is None:
        return Cell(verdict="accepts", detail=served)
    error = answer.error(got)
    exact = error <= case.tolerance  # never true of nan
    return Cell(verdict="exact" if exact else "wrong", error=error, detail=served)


def kind_of(error: Exception) -> str:
    """An error raised on purpose, or one from within (Python's own unpacking among them)."""
    on_purpose = isinstance(error, ValueError | NotImplementedError)
    return "refuses" if on_purpose and "to unpack" not in str(error) else "fails"


def short(error: BaseException) -> str:
    """One line of at most 70 characters; Opacus' validator raises a list of errors."""
    first = error.args[0] if error.args else ""
    if isinstance(first, list) and first and isinstance(first[0], BaseException):
        return short(first[0])
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 70 else text[:67] + "..."


def row(case: Case) -> dict[str, Cell]:
    answer = None if case.refusal else right(case)
    return {engine: cell(case, engine, answer) for engine in ENGINES}


def sound(case: Case, found: Cell) -> bool:
    """Whether a cell is what it should be: exact, or refused where no answer exists."""
    if case.refusal:
        return found.verdict == "refuses"
    return found.verdict == "exact" or (case.may_refuse and found.verdict == "refuses")


def markdown(rows: dict[str, dict[str, Cell]]) -> str:
    about = ", ".join(f"{k} {v}" for k, v in machine().items() if k in ("torch", "python"))
    lines: list[list[str]] = []
    notes: list[str] = []
    for case in (c for c in ALL if c.name in rows):
        cells = rows[case.name]
        own = cells["steelyard"]
        served = f", {own.detail}" if own.verdict == "exact" else ""
        mark = ""
        if case.note:
            notes = list(dict.fromkeys([*notes, case.note]))
            mark = f" [{notes.index(case.note) + 1}]"
        others = [str(c) for engine, c in cells.items() if engine != "steelyard"]
        lines.append([case.name + mark, f"{own}{served}", *others])
    right_ones = ", ".join(
        f"{engine} {sum(sound(c, rows[c.name][engine]) for c in ALL if c.name in rows)}"
        for engine in ENGINES
    )
    return "\n\n".join(
        [
            "# Whose clipped gradients are right",
            f"Made by `python benchmarks/exactness.py` ({about}, Opacus {version()}). "
            + " ".join((__doc__ or "").split("\n\n")[2].split()),
            f"Right (exact, or refused where samples mix or seem to) in {len(lines)} cases: "
            f"{right_ones}.",
            table(("case", *ENGINES), lines),
            *(f"[{i}] {note}." for i, note in enumerate(notes, start=1)),
        ]
    ) + "\n"  # fmt: skip


def version() -> str:
    import opacus

    return opacus.__version__


def main() -> None:
    parser = argparse.ArgumentParser(description="whose clipped gradients are right")
    parser.add_argument("--quick", action="store_true", help="only what needs torch alone")
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--json", type=Path, help="write the cells here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    args = parser.parse_args()
    rows: dict[str, dict[str, Cell]] = {}
    for case in ALL:
        if (args.quick and not case.quick) or (args.only and args.only not in case.name):
            continue
        rows[case.name] = row(case)
        print(case.name)
        for engine, found in rows[case.name].items():
            print(f"    {engine:24} {found} {found.detail if found.verdict == 'exact' else ''}")
    if args.json:
        plain = {n: {e: asdict(c) for e, c in cells.items()} for n, cells in rows.items()}
        for cells in plain.values():
            for found in cells.values():
                if found["error"] is not None and not math.isfinite(found["error"]):
                    found["error"] = None  # JSON knows no nan
        args.json.write_text(json.dumps(plain, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
