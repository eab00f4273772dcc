"""The cost of a private step, as a ratio to the plain step, side by side in one process.

    python benchmarks/step_cost.py [--quick] [--only mlp,gpt-128] [--json FILE] [--markdown FILE]

Engines take turns step by step (interleaved), so a slow moment of the machine hits all alike. A
row's ratio is the median over rounds of (private step / the same round's plain step); its spread
is the quartiles of the same ratios. Peak memory is the growth of the resident set over the model
and data, measured in a process of its own for each engine. "opacus" rows do the same work: flat
clipping, noise, SGD.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from lib.engines import ENGINES, WORKLOADS

WARM = 4  # the first batches also prove coverage and independence


def measure(name: str, engines: list[str], rounds: int, seconds: float) -> list[dict[str, object]]:
    workload = WORKLOADS[name]
    steps = {engine: ENGINES[engine][2](workload) for engine in engines}
    for step in steps.values():
        for _ in range(WARM):
            step()
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    began = time.perf_counter()
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for engine, step in steps.items():
            start = time.perf_counter()
            step()
            times[engine].append(time.perf_counter() - start)
        if time.perf_counter() - began > seconds and len(times["plain"]) >= 5:
            break
    gc.enable()
    rows = []
    for engine in engines:
        ratios = [t / p for t, p in zip(times[engine], times["plain"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "workload": name,
                "engine": ENGINES[engine][0],
                "groups": ENGINES[engine][1],
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(low, 3),
                "ratio_max": round(high, 3),
                "milliseconds": round(1e3 * statistics.median(times[engine]), 2),
                "rounds": len(ratios),
                "peak_mb": peak(name, engine),
            }
        )
    return rows


def peak(name: str, engine: str) -> float:
    """Growth of the peak resident set over five steps, in a process of its own, MiB."""
    command = [sys.executable, __file__, "--child", name, engine]
    # every larger block straight from the system and back to it: what is resident is in use
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return float(done.stdout.split()[-1])


def child(name: str, engine: str) -> None:
    warnings.simplefilter("ignore")
    step = ENGINES[engine][2](WORKLOADS[name])
    before = resident("VmRSS")
    for _ in range(WARM):
        step()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    for _ in range(5):
        step()
    print(round(resident("VmHWM") - before, 1))


def resident(field: str) -> float:
    """A field of this process's memory status, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status: peak memory is measured on Linux")


def machine() -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown(rows: list[dict[str, object]]) -> str:
    columns = ("workload", "engine", "groups", "ratio", "quartiles", "ms", "peak MiB")
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    lines = [
        f"| {r['workload']} | {r['engine']} | {r['groups']} | **{r['ratio']}** | {r['ratio_min']}-"
        f"{r['ratio_max']} | {r['milliseconds']} | {r['peak_mb']} |"
        for r in rows
    ]
    about = ", ".join(f"{k} {v}" for k, v in machine().items())
    return (
        f"# Cost of a private step over the plain step\n\nMachine: {about}.\n\n{head}"
        + "\n".join(lines)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of a private step over the plain step")
    parser.add_argument("--quick", action="store_true", help="few rounds, no slow peers")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, comma-separated")
    parser.add_argument("--engines", default=",".join(ENGINES), help="engines, comma-separated")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    warnings.simplefilter("ignore")
    rounds, seconds = (8, 10.0) if args.quick else (60, 45.0)
    rows: list[dict[str, object]] = []
    for name in args.only.split(","):
        engines = args.engines.split(",")
        if args.quick or not WORKLOADS[name].hooks:
            engines = [e for e in engines if e != "opacus-hooks"]
        rows += measure(name, engines, rounds, seconds)
        for row in rows[-len(engines) :]:
            print(
                f"{row['workload']:9} {row['engine']:24} {row['groups']:6} {row['ratio']:7} "
                f"[{row['ratio_min']}, {row['ratio_max']}] {row['milliseconds']:9} ms "
                f"{row['peak_mb']:8} MiB"
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
