"""Where the time of our step goes, beside the plain step: by stage, by operator, by function.

Operators: self time in torch's profiler, plain and ours, sorted by the difference. Functions: time
inside each function of the library, everything it calls included (cProfile), so that the parts of
`backward` - rules, norms, sums, noise - can be told apart without a mark in the library.
"""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

import steelyard

from .engines import Engine

HOME = str(Path(steelyard.__file__).parent)
STAGES = ("forward", "backward", "apply", "zero")


def report(plain: Engine, ours: Engine, *, steps: int, top: int = 25) -> str:
    """Both engines must be warm. Milliseconds per step."""
    columns = [_profiled(engine, steps) for engine in (plain, ours)]
    lines = [_head("stage, ms per step", "plain", "ours", "more")]
    for stage in STAGES:
        before, after = (stages.get(stage, 0.0) for stages, _ in columns)
        lines.append(_line(stage, before, after))
    lines += ["", _head("operator, its own ms", "plain", "ours", "more")]
    names = {name for _, operators in columns for name in operators}
    pairs = {n: tuple(operators.get(n, 0.0) for _, operators in columns) for n in names}
    order = sorted(names, key=lambda n: -abs(pairs[n][1] - pairs[n][0]))
    lines += [_line(name, *pairs[name]) for name in order[:top]]
    rest = [pairs[name] for name in order[top:]]
    lines.append(_line("all others", sum(p for p, _ in rest), sum(o for _, o in rest)))
    lines += ["", _head("function of ours, ms", "all in it", "its own", "calls")]
    return "\n".join([*lines, *_functions(ours, steps, top)])


def _head(name: str, *columns: str) -> str:
    return f"{name:44} " + " ".join(f"{column:>9}" for column in columns)


def _line(name: str, plain: float, ours: float) -> str:
    return f"{name[:44]:44} {plain:9.2f} {ours:9.2f} {ours - plain:+9.2f}"


def _profiled(engine: Engine, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds per step by stage (all in it), and by operator (its own)."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            with record_function("stage forward"):
                losses = engine.forward()
            with record_function("stage backward"):
                engine.backward(losses)
            with record_function("stage apply"):
                engine.apply()
            with record_function("stage zero"):
                engine.zero()
    stages: dict[str, float] = {}
    operators: dict[str, float] = {}
    for event in seen.key_averages():
        if event.key.startswith("stage "):
            stages[event.key.removeprefix("stage ")] = event.cpu_time_total / 1e3 / steps
        # between the operators: Python, and what it waits for
        key = "Python and the engine" if event.key.startswith("stage ") else event.key
        own = event.self_cpu_time_total / 1e3 / steps
        operators[key] = operators.get(key, 0.0) + own
    return stages, operators


def _functions(engine: Engine, steps: int, top: int) -> list[str]:
    watch = cProfile.Profile()
    watch.enable()
    for _ in range(steps):
        engine.step()
    watch.disable()
    rows = []
    for (file, _, name), (_, calls, own, inclusive, _) in pstats.Stats(watch).stats.items():  # pyright: ignore[reportAttributeAccessIssue]
        if file.startswith(HOME):
            path = f"{Path(file).relative_to(HOME)} {name}"
            rows.append((inclusive / steps * 1e3, own / steps * 1e3, calls / steps, path))
    rows.sort(reverse=True)
    return [f"{p[:44]:44} {i:9.2f} {o:9.2f} {c:9.1f}" for i, o, c, p in rows[:top]]


def warm(engine: Engine, steps: int) -> Engine:
    for _ in range(steps):
        engine.step()
    return engine
