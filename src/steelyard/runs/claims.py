"""What the papers claim beside what we measured: recipes in claims/, committed results beside them.

A claim is claims/<name>.py with a function `run() -> dict` that returns one row, and
claims/<name>.json, the committed row:

    paper, claim, topic, published, setting, numbers, baselines, seeds, verdict, cost_s, command

A comparison of arms has more: comparisons, and table, a list of data, arm, epsilon, mean, sd,
seeds, lr and values. Other claims have sheets and panels (`steelyard.report.sheets`). Then `run`
takes the pool that trains, and a constant TOPIC in the recipe says to which topic it belongs before
it was ever run; the rows of a topic are shown together, on claims/<topic>.md with one picture
beside it, claims/<topic>.png. DEVICE = "cuda" in a recipe: where there is no such device, measuring
a topic or all leaves it out, and its committed row stays.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.data.suggest import did_you_mean
from steelyard.runs import claim_tables
from steelyard.runs.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

    from steelyard.runs.config import TrainConfig
    from steelyard.runs.pool import Pool
    from steelyard.runs.problem import Problem

VERDICTS = ("holds", "partly", "within noise", "fails", "not here")
FIELDS = (
    *("paper", "claim", "topic", "published", "setting", "numbers", "baselines"),
    *("seeds", "verdict", "cost_s", "command"),
)
ENTRY = ("data", "arm", "epsilon", "mean", "sd", "seeds", "lr", "values")


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
    if not found and _of_topic(name):
        raise ValueError(f"topic {name!r} has no result yet: steelyard claims {name} --run")
    if not found:
        choices = [*rows, *(row["topic"] for row in rows.values())]
        hint = did_you_mean(name, choices)
        raise ValueError(f"unknown claim or topic {name!r}{hint} `steelyard claims` lists all")
    return found


def measure(name: str, pool: Pool | None = None) -> dict[str, Any]:
    """Run a claim's recipe again and write its result. Raises ValueError for an unknown name.

    pool: what trains the arms of a comparison; default: two processes, cache in runs/claims.
    """
    path = folder() / f"{name}.py"
    if not path.is_file():
        known = [p.stem for p in folder().glob("*.py")]
        hint = did_you_mean(name, known)
        raise ValueError(f"unknown claim {name!r}{hint} there are {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"steelyard_claim_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    began = time.monotonic()
    if inspect.signature(module.run).parameters:
        from steelyard.runs.pool import Pool

        with nullcontext(pool) if pool else Pool() as trainer:
            row = module.run(trainer)
    else:
        row = module.run()
    row["command"] = f"steelyard claims {name} --run"
    # runs that are already in the cache cost what they cost when they were trained
    row.setdefault("cost_s", round(time.monotonic() - began, 1))
    _check(row, path)
    write_atomically(path.with_suffix(".json"), json.dumps(row, indent=1) + "\n")
    return row


def accuracy(config: TrainConfig, problem: Problem | None = None, *, quiet: bool = False) -> float:
    """Test accuracy in % of these settings, trained in a temporary folder: what recipes share.

    problem: the data and the fresh model, where they are not just those that the settings name.
    quiet: show no progress.
    """
    from rich.console import Console

    from steelyard.runs.events import Events
    from steelyard.runs.loop import Training
    from steelyard.runs.pool import plan_of
    from steelyard.runs.problem import make_problem
    from steelyard.runs.progress import RunProgress

    problem = problem or make_problem(config)
    plan, steps = plan_of(config, problem.n)
    config = config.replace(evaluate_every=steps, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as name:
        training = Training(problem, config, plan, steps, run_id="claim")
        with (
            Events(Path(name) / "events.jsonl") as events,
            RunProgress(steps, plan is not None, Console(stderr=True, quiet=quiet)) as progress,
        ):
            return 100 * training.run(Path(name), events, progress)["accuracy"]


def show(
    name: str | None,
    *,
    run: bool,
    as_json: bool,
    console: Console,
    cache: Path | None = None,
    workers: int | None = None,
) -> None:
    """Print the rows, after measuring them again if `run`; then tables and plots are written too.

    cache, workers: of the pool that trains the arms of comparisons.
    """
    if run:
        with _pool(cache, workers) as pool:
            rows = {key: measure(key, pool) for key in _runnable(name, pool.say)}
    else:
        rows = committed(name)
    written = [path for topic in _topics(rows) if (path := _write(topic, again=run))]
    if as_json:
        console.file.write(json.dumps(list(rows.values()), indent=1) + "\n")
        return
    if not rows:
        console.print("no claim has a committed result yet")
        return
    claim_tables.show(rows, console)
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _pool(cache: Path | None, workers: int | None) -> Pool:
    from steelyard import terminal
    from steelyard.runs.pool import CACHE, WORKERS, Pool

    return Pool(
        cache=CACHE if cache is None else cache,
        workers=WORKERS if workers is None else workers,
        say=terminal.line,
    )


def _topics(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Topics of the rows that have a table or sheets."""
    return list(dict.fromkeys(r["topic"] for r in rows.values() if r.get("table") or _sheets(r)))


def _sheets(row: dict[str, Any]) -> list[dict[str, Any]]:
    return row.get("sheets") or []


def _write(topic: str, *, again: bool) -> Path:
    """claims/<topic>.md, and .png beside it, from all committed rows of the topic."""
    from steelyard.report import claims, sheets

    rows = {key: row for key, row in committed().items() if row["topic"] == topic}
    page = sheets if any(_sheets(row) for row in rows.values()) else claims
    drawn = page is claims or bool(sheets.panels_of(rows))
    path = folder() / f"{topic}.{'png' if drawn else 'md'}"
    if again or not path.is_file():
        write_atomically(path.with_suffix(".md"), page.markdown(rows, topic))
        if drawn:
            write_atomically(path, page.png(rows))
    return path


def _runnable(name: str | None, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Claims to measure: all recipes, one (which may have no result yet), or those of a topic."""
    recipes = sorted(path.stem for path in folder().glob("*.py"))
    if name in recipes:
        return [name]
    if name is not None:
        measured = [key for key, row in committed().items() if row["topic"] == name]
        recipes = sorted({*_of_topic(name), *measured}) or list(committed(name))
    here = [key for key in recipes if _can_run(folder() / f"{key}.py")]
    for key in sorted({*recipes} - {*here}):
        say(f"{key} needs a CUDA device: left out")
    return here


def _can_run(recipe: Path) -> bool:
    if _constant(recipe, "DEVICE") != "cuda":
        return True
    import torch

    return torch.cuda.is_available()


def _of_topic(name: str) -> list[str]:
    """Recipes that say that they belong to this topic."""
    return [path.stem for path in folder().glob("*.py") if _constant(path, "TOPIC") == name]


def _constant(recipe: Path, constant: str) -> str | None:
    """What the recipe calls TOPIC or DEVICE, read without running it."""
    if not recipe.is_file():
        return None
    for node in ast.parse(recipe.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if constant in names:
                return str(node.value.value)
    return None


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
    for entry in row.get("table", ()):
        absent = [field for field in ENTRY if field not in entry]
        if absent:
            raise ValueError(f"{path.name}: a line of its table has no {', '.join(absent)}")
        if len(entry["values"]) != len(entry["seeds"]):
            raise ValueError(
                f"{path.name}: {entry['arm']!r} has {len(entry['values'])} values for "
                f"{len(entry['seeds'])} seeds"
            )
