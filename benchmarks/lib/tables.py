"""A run's rows as text: for the terminal and as a Markdown page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .verdicts import Verdict
from .workloads import WORKLOADS

Row = dict[str, Any]
HEAD = (
    "engine",
    "groups",
    "error",
    "cost",
    "quartiles",
    "ms",
    "speed-up",
    "noise",
    "step MiB",
    "whole",
    "step",
    "resident MiB",
)


def cells(row: Row) -> list[str]:
    """One row under `HEAD`."""

    def of(key: str, form: str = "{}") -> str:
        return form.format(row[key]) if row.get(key) is not None else "-"

    quartiles = f"{row['low']:.2f}-{row['high']:.2f}" if "low" in row else "-"
    return [
        row["label"],
        row["groups"],
        row["reason"] or ("-" if row["family"] == "plain" else of("error", "{:.0e}")),
        of("ratio", "{:.2f}"),
        quartiles,
        of("milliseconds", "{:.1f}"),
        of("speed_up", "{:.2f}"),
        of("noise", "{:.3f}"),
        of("live_mib", "{:.1f}"),
        of("whole", "{:.2f}"),
        of("step", "{:.2f}"),
        of("resident_mib", "{:.0f}"),
    ]


def line(row: Row) -> str:
    """One row for the terminal."""
    if "ratio" not in row:
        return f"{row['workload']:8} {row['label']:25} {row['groups']:6} {row['reason']}"
    extra = f" x{row['speed_up']:.2f}" if "speed_up" in row else ""
    noise = f" noise {row['noise']:.3f}" if "noise" in row else ""
    return (
        f"{row['workload']:8} {row['label']:25} {row['groups']:6} {row['ratio']:7.3f} "
        f"[{row['low']:.3f}, {row['high']:.3f}] {row['milliseconds']:8.1f} ms "
        f"whole {row['whole']:.3f} step {row['step']:.3f}{extra}{noise}"
    )


def markdown(report: dict[str, Any], verdicts: Sequence[Verdict], notices: Sequence[str]) -> str:
    about = ", ".join(f"{k} {v}" for k, v in report["machine"].items())
    parts = [
        "# Cost of a private step over the plain step",
        f"Machine: {about}.",
        "Made by `python benchmarks/step_cost.py`; what each column means: "
        "[README.md](README.md). Every engine clips flat at the median norm (half of the samples "
        "are clipped), adds Gaussian noise with multiplier 1, and steps SGD.",
        *notices,
        "## Targets",
        table(
            ("target", "asked", "found", "met"),
            [(v.target, v.asked, v.found, word(v.met)) for v in verdicts],
        ),
    ]
    for name, floors in report["workloads"].items():
        rows = [r for r in report["rows"] if r["workload"] == name]
        parts += [
            f"## {name}: {WORKLOADS[name].about}",
            operations(floors),
            table(HEAD, [cells(r) for r in rows]),
        ]
    return "\n\n".join(parts) + "\n"


def operations(floors: dict[str, float]) -> str:
    if not floors:
        return "Operations were not counted: steelyard, all-layer, was not timed."
    return (
        f"Operations of the plain step: {floors['plain_gflop']:.2f} GFLOP; of a private step, as a "
        f"multiple: at least {floors['least']:.2f}, by the paper's rule (BK-MixOpt) "
        f"{floors['mixopt']:.2f}, measured in ours {floors['measured']:.2f}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(c.replace('|', '/') for c in row)} |" for row in rows]
    return "\n".join(lines)


def word(met: bool | None) -> str:
    return {True: "yes", False: "**no**", None: "no comparison"}[met]


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
