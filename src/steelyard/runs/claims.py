"""What the papers claim beside what we measured: recipes in claims/, committed results beside them.

A claim is claims/<name>.py with a function `run() -> dict` that returns one row, and
claims/<name>.json, the committed row:

    paper, claim, topic, published, setting, numbers, baselines, seeds, verdict, cost_s, command
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.data.suggest import did_you_mean
from steelyard.runs.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

    from steelyard.runs.config import TrainConfig
    from steelyard.runs.problem import Problem

VERDICTS = ("holds", "partly", "not here")
FIELDS = (
    *("paper", "claim", "topic", "published", "setting", "numbers", "baselines"),
    *("seeds", "verdict", "cost_s", "command"),
)


def folder() -> Path:
    """Where the recipes lie: in the source tree, or beside the installed package's modules."""
    here = Path(__file__).resolve().parents[1]
    packaged = here / "claims"
    return packaged if packaged.is_dir() else here.parents[1] / "claims"


def committed(name: str | None = None) -> dict[str, dict[str, Any]]:
    """The rows of a topic, of one claim, or all, by claim name.

    Raises ValueError for an unknown name, or a result that is not a row.
    """
    rows = {path.stem: _read(path) for path in sorted(folder().glob("*.json"))}
    if name is None:
        return rows
    found = {key: row for key, row in rows.items() if name in (key, row["topic"])}
    if not found and (folder() / f"{name}.py").is_file():
        raise ValueError(f"claim {name!r} has no result yet: steelyard claims {name} --run")
    if not found:
        choices = [*rows, *(row["topic"] for row in rows.values())]
        hint = did_you_mean(name, choices)
        raise ValueError(f"unknown claim or topic {name!r}{hint} `steelyard claims` lists all")
    return found


def measure(name: str) -> dict[str, Any]:
    """Run a claim's recipe again and write its result. Raises ValueError for an unknown name."""
    path = folder() / f"{name}.py"
    if not path.is_file():
        known = [p.stem for p in folder().glob("*.py")]
        hint = did_you_mean(name, known)
        raise ValueError(f"unknown claim {name!r}{hint} there are {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"steelyard_claim_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    began = time.monotonic()
    row = module.run() | {"command": f"steelyard claims {name} --run"}
    row["cost_s"] = round(time.monotonic() - began, 1)
    _check(row, path)
    write_atomically(path.with_suffix(".json"), json.dumps(row, indent=1) + "\n")
    return row


def accuracy(config: TrainConfig, problem: Problem | None = None) -> float:
    """Test accuracy in % of these settings, trained in a temporary folder: what recipes share.

    problem: the data and the fresh model, where they are not just those that the settings name.
    """
    from steelyard.runs.events import Events
    from steelyard.runs.loop import Training
    from steelyard.runs.preview import plan_for
    from steelyard.runs.problem import make_problem
    from steelyard.runs.progress import RunProgress

    problem = problem or make_problem(config)
    plan, steps = plan_for(config, problem.n)
    config = config.replace(evaluate_every=steps, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as name:
        training = Training(problem, config, plan, steps, run_id="claim")
        with (
            Events(Path(name) / "events.jsonl") as events,
            RunProgress(steps, plan is not None) as progress,
        ):
            return 100 * training.run(Path(name), events, progress)["accuracy"]


def show(name: str | None, *, run: bool, as_json: bool, console: Console) -> None:
    """Print the rows, after measuring them again if `run`."""
    rows = {key: measure(key) for key in _runnable(name)} if run else committed(name)
    if as_json:
        console.file.write(json.dumps(list(rows.values()), indent=1) + "\n")
        return
    if not rows:
        console.print("no claim has a committed result yet")
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="claims", show_lines=True)
    for column in ("claim", "published", "here", "verdict"):
        table.add_column(column, overflow="fold")
    for key, row in rows.items():
        numbers = "\n".join(f"{what}: {value}" for what, value in row["numbers"].items())
        title = f"{escape(row['claim'])}\n[dim]{escape(row['paper'])}; {key}[/dim]"
        table.add_row(title, escape(str(row["published"])), escape(numbers), row["verdict"])
    console.print(table)


def _runnable(name: str | None) -> list[str]:
    """Claims to measure: all recipes, one (which may have no result yet), or those of a topic."""
    recipes = sorted(path.stem for path in folder().glob("*.py"))
    if name is None:
        return recipes
    return [name] if name in recipes else list(committed(name))


def _read(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}; measure it again with --run") from None
    _check(row, path)
    return row


def _check(row: object, path: Path) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{path.name} is not a claim's result: it holds a {type(row).__name__}")
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise ValueError(f"{path.name} is not a claim's result: no {', '.join(missing)}")
    if row["verdict"] not in VERDICTS:
        raise ValueError(f"{path.name}: verdict {row['verdict']!r} is not one of {VERDICTS}")
