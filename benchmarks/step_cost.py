"""The cost of a private step, as a ratio to the plain step, side by side in one process.

    python benchmarks/step_cost.py [--quick] [--only mlp,gpt-128] [--engines plain,steelyard]
                                   [--json FILE] [--markdown FILE] [--no-resident] [--seconds S]
    python benchmarks/step_cost.py --profile gpt-128

Every engine first proves on the workload that its clipped gradient is the one of each sample alone;
who errs or refuses is listed with the reason and not timed. What is measured, and how ratios,
spreads and verdicts are defined: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lib import memory, profiling, tables, timing
from lib.engines import OURS, Engine, Kind, Settings
from lib.floors import floors
from lib.opacus_engines import OPACUS
from lib.peers import PEERS
from lib.truth import TOLERANCE, Truth, check
from lib.verdicts import verdicts
from lib.workloads import WORKLOADS, Workload, notices

ENGINES: dict[str, Kind] = {**OURS, **PEERS, **OPACUS}
QUICK = ("plain", *list(OURS)[1:], "peer-ghost", "opacus-ghost")
WARM = 4
FEWEST, FEWEST_OTHERS = 5, 3  # rounds, whatever they cost
SLOW = 30.0  # seconds of one step: no comparison any more
Row = dict[str, Any]


def measure(
    workload: Workload, names: list[str], *, seconds: float, most: int, resident: bool
) -> tuple[list[Row], dict[str, float]]:
    """Rows of all engines, and the workload's operations."""
    truth = Truth(workload)
    settings = Settings(bound=truth.bound)
    rows = {name: start(name, workload, truth) for name in names}
    engines: dict[str, Engine] = {}
    for name, row in rows.items():
        if row["reason"] is None:
            engine = warm(name, workload, settings, row)
            if row["reason"] is None:
                engines[name] = engine
    counted: dict[str, float] = {}
    if "steelyard" in engines:
        counted = floors(workload, engines["plain"], engines["steelyard"]).as_dict()
    main = {name for name in engines if ENGINES[name].family in ("plain", "ours")}
    shares = {name: 3 if name in main else 1 for name in engines}
    times = timing.take_turns(
        {name: engine.step for name, engine in engines.items()},
        budget={name: seconds * s / sum(shares.values()) for name, s in shares.items()},
        fewest={name: FEWEST if name in main else FEWEST_OTHERS for name in engines},
        most=most,
    )
    model = memory.model_bytes(engines["plain"].model) / memory.MIB
    base = rows["plain"]["live_mib"]
    for name in engines:
        live = rows[name]["live_mib"]
        rows[name] |= {
            **timed(name, times),
            "whole": round((model + live) / (model + base), 4),
            "step": round(live / base, 4),
            "resident_mib": child(workload.name, name, truth.bound)
            if resident and ENGINES[name].family != "peer"
            else None,
        }
    return list(rows.values()), counted


def warm(name: str, workload: Workload, settings: Settings, row: Row) -> Engine:
    """The engine after its first steps; the row gets its live memory, or why it is not timed."""
    model, x, y = workload.build()
    built = replace(workload, model=lambda: model, batch=lambda: (x, y))
    made: list[Engine] = []

    def before() -> Callable[[], None]:
        made.append(ENGINES[name].make(built, settings))
        for _ in range(first_steps(ENGINES[name])):
            began = time.perf_counter()
            made[0].step()
            took = time.perf_counter() - began
            if took > SLOW:
                row["reason"] = f"too slow: {took:.0f} s a step"
                return lambda: None
        return made[0].step

    row["live_mib"] = round(memory.live_peak(before) / memory.MIB, 3)
    return made[0]


def start(name: str, workload: Workload, truth: Truth) -> Row:
    """The row of an engine after its check: error, or the reason why it is not timed."""
    kind = ENGINES[name]
    row: Row = {
        "workload": workload.name,
        "engine": name,
        "label": kind.label,
        "family": kind.family,
        "groups": kind.groups,
        "error": None,
        "reason": too_large(kind, truth),
    }
    if row["reason"] is None:
        try:
            row["error"] = check(kind, workload, truth)
        except Exception as error:  # whatever an engine of others raises is its result
            row["reason"] = f"refuses: {one_line(error)}"
        else:
            if not row["error"] <= TOLERANCE:
                row["reason"] = f"wrong ({row['error']:.2g})"
    if row["reason"] and kind.family == "plain":
        raise RuntimeError(f"{workload.name}, plain step: {row['reason']}")
    return row


def too_large(kind: Kind, truth: Truth) -> str | None:
    """Engines that hold all per-sample gradients: twice, while they arrive."""
    numbers = sum(p.numel() for p in truth.model.parameters() if p.requires_grad)
    needed = 2 * 4 * len(truth.y) * numbers / memory.MIB
    if kind.rows and needed > 0.8 * memory.available():
        return f"needs about {needed / 1024:.0f} GiB for per-sample gradients"
    return None


def first_steps(kind: Kind) -> int:
    """Steps before an engine is at its pace: ours proves coverage and independence first."""
    return WARM if kind.family == "ours" else 1


def timed(name: str, times: dict[str, list[float]]) -> Row:
    ratio = timing.spread(timing.ratios(times, name, "plain"))
    row: Row = {
        "ratio": round(ratio.median, 4),
        "low": round(ratio.low, 4),
        "high": round(ratio.high, 4),
        "rounds": ratio.rounds,
        "milliseconds": round(1e3 * timing.spread(times[name]).median, 3),
    }
    if ENGINES[name].family in ("peer", "opacus") and "steelyard" in times:
        gain = timing.spread(timing.ratios(times, name, "steelyard"))
        row["speed_up"] = round(gain.median, 4)
    if name == "steelyard" and "steelyard-quiet" in times:
        noise = timing.spread(timing.share(times, "steelyard", "steelyard-quiet", "plain"))
        row["noise"] = round(noise.median, 4)
    return row


def child(workload: str, engine: str, bound: float) -> float | None:
    """Resident memory of one engine alone, MiB, from a process of its own."""
    command = [sys.executable, __file__, "--child", workload, engine, str(bound)]
    # every larger block straight from the system and back to it: what is resident is in use
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings)
    return round(float(done.stdout.split()[-1]), 1) if done.returncode == 0 else None


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="cost of a private step over the plain step")
    parser.add_argument("--quick", action="store_true", help="seconds per workload, fewer peers")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, comma-separated")
    parser.add_argument("--engines", help="engines, comma-separated; plain is always one")
    parser.add_argument("--seconds", type=float, help="timed seconds per workload, about")
    parser.add_argument("--no-resident", action="store_true", help="skip resident memory")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    parser.add_argument("--profile", metavar="WORKLOAD", help="where the time goes, and stop")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.engines.split(",") if args.engines else QUICK if args.quick else ENGINES
    args.engines = ["plain", *(name for name in names if name != "plain")]
    args.only = [args.profile] if args.profile else args.only.split(",")
    for name in args.only:
        if name not in WORKLOADS:
            parser.error(f"unknown workload {name!r}: use {', '.join(WORKLOADS)}")
    for name in args.engines:
        if name not in ENGINES:
            parser.error(f"unknown engine {name!r}: use {', '.join(ENGINES)}")
    return args


def main() -> None:
    args = parse()
    warnings.simplefilter("ignore")
    if args.child:
        workload, name, bound = WORKLOADS[args.child[0]], args.child[1], float(args.child[2])
        make, steps = ENGINES[name].make, first_steps(ENGINES[name])
        print(memory.resident_growth(lambda: make(workload, Settings(bound=bound)).step, steps))
        return
    if args.profile:
        workload = WORKLOADS[args.profile]
        pair = [OURS[n].make(workload, Settings()) for n in ("plain", "steelyard")]
        print(profiling.report(*(profiling.warm(e, WARM) for e in pair), steps=5))
        return
    report: dict[str, Any] = {"machine": tables.machine(), "workloads": {}, "rows": []}
    for name in args.only:
        rows, counted = measure(
            WORKLOADS[name],
            args.engines,
            seconds=args.seconds or (5.0 if args.quick else 120.0),
            most=10 if args.quick else 200,
            resident=not (args.quick or args.no_resident),
        )
        report["rows"] += rows
        report["workloads"][name] = counted
        print("\n".join(tables.line(row) for row in rows), flush=True)
    found = verdicts(report["rows"])
    report["verdicts"] = [asdict(verdict) for verdict in found]
    for v in found:
        print(f"{v.target}: asked {v.asked}, found {v.found}: {tables.word(v.met)}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(tables.markdown(report, found, notices(args.only)))


if __name__ == "__main__":
    main()
