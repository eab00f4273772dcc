"""The command line in this process, and tiny data: what the tests of whole runs share."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from rich.console import Console

from steelyard import cli
from steelyard.data import Table
from steelyard.report.read import read_run
from steelyard.runs.config import TrainConfig
from steelyard.runs.events import Events
from steelyard.runs.loop import Training
from steelyard.runs.preview import plan_for
from steelyard.runs.problem import make_problem
from steelyard.runs.progress import RunProgress


def _module(path: str) -> ModuleType:
    """A module beside the tests; they are no package, so it is loaded by its path."""
    name = f"steelyard_tests_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def properties() -> ModuleType:
    """The contracts as functions: tests/contracts/properties.py."""
    return _module("contracts/properties.py")


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The slow, independent version of the clipped sum: tests/rows/oracle.py."""
    return _module("rows/oracle.py")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only line on standard error."""
        assert "Traceback" not in self.err
        (line,) = self.err.splitlines()
        return line


@pytest.fixture
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are tests/report's matter: here an empty page takes their place."""

    def write_report(folder: Path) -> Path:
        read_run(folder)  # refuses what is no run, as the real one
        (folder / "report.html").write_text("")
        return folder / "report.html"

    monkeypatch.setattr("steelyard.report.page.write_report", write_report)


@pytest.fixture
def command_line(tmp_path, monkeypatch, quick_report) -> Callable[..., Outcome]:
    """`command_line("train", "--steps", 3)`: what `steelyard train --steps 3` does in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    threads = torch.get_num_threads()

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["steelyard", *map(str, arguments)])
        out, err, code = io.StringIO(), io.StringIO(), 0
        torch.set_num_threads(1)
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("default")
                cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            torch.set_num_threads(threads)
        return Outcome(code=code, out=out.getvalue(), err=err.getvalue())

    return run


@pytest.fixture
def features_csv(tmp_path) -> Path:
    """240 rows of four numbers, two classes that a straight line parts."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(240, 4))
    labels = (rows.sum(1) > 0).astype(int)
    lines = [",".join(f"{value:.4f}" for value in row) for row in rows]
    path = tmp_path / "rows.csv"
    body = "\n".join(f"{line},{label}" for line, label in zip(lines, labels, strict=True))
    path.write_text(f"a,b,c,d,label\n{body}\n")
    return path


@pytest.fixture
def tiny_table() -> Table:
    """96 training and 32 test rows of five numbers; three classes."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(128, 5)).astype("float32")
    y = x[:, :3].argmax(1).astype("int64")
    return Table(
        name="tiny",
        kind="features",
        train_x=x[:96],
        train_y=y[:96],
        test_x=x[96:],
        test_y=y[96:],
        classes=("0", "1", "2"),
        source="made here",
        licence="none",
    )


@pytest.fixture
def tiny_config() -> TrainConfig:
    """Six private steps of an MLP, reproducible."""
    return TrainConfig(
        model="mlp",
        data="tiny",
        accountant="rdp",
        steps=6,
        batch=24,
        micro_batch=24,
        lr=0.5,
        noise_seed=3,
        evaluate_every=2,
        checkpoint_every=1,
        device="cpu",
    )


@pytest.fixture
def new_training(tiny_table, tiny_config) -> Callable[..., Training]:
    """`new_training(steps=3, epsilon=None, actions=[...])`: a run of `tiny_config` that has not
    begun."""

    def make(*, actions=(), model: torch.nn.Module | None = None, **changes: object) -> Training:
        config = tiny_config.replace(**changes)
        problem = make_problem(config, tiny_table)
        if model is not None:
            problem = dataclasses.replace(problem, model=model)
        plan, steps = plan_for(config, problem.n)
        return Training(problem, config, plan, steps, run_id="tiny", actions=actions)

    return make


@pytest.fixture
def carry_out() -> Callable[[Training, Path], dict[str, torch.Tensor]]:
    """`carry_out(training, folder)`: run it to its end; the released weights."""

    def run(training: Training, folder: Path) -> dict[str, torch.Tensor]:
        progress = RunProgress(
            training.steps, training.plan is not None, Console(file=io.StringIO())
        )
        with Events(folder / "events.jsonl") as events, progress:
            if training.step:
                events.resume(training.step, f"step {training.step}")
            training.run(folder, events, progress)
        return {k: v.detach().clone() for k, v in training.released.state_dict().items()}

    return run


@pytest.fixture(autouse=True)
def skipped_without_data(request, monkeypatch) -> None:
    """Trials and claims on a data set that is not on this machine are skipped, and say which."""
    if request.path.parent.name not in ("trials", "claims"):
        return
    from steelyard.trials import tasks

    load = tasks.load

    def load_or_skip(name: str) -> Table:
        try:
            return load(name)
        except ValueError as error:
            if "is not on this machine" in str(error):
                pytest.skip(str(error))
            raise

    monkeypatch.setattr(tasks, "load", load_or_skip)
