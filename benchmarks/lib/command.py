"""The command line that the cost benchmarks share: which workloads, for how long, written where."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def run(
    about: str,
    known: Collection[str],
    measure: Callable[[str, float], Iterable[Row]],
    page: Callable[[list[Row]], str],
    *,
    only: str,
    seconds: float,
) -> None:
    """measure(workload, seconds) -> rows; page(rows) is printed, and written after every workload,
    so that an interrupted run leaves what it has. only, seconds: defaults."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--only", default=only, help="workloads")
    parser.add_argument("--seconds", type=float, default=seconds, help="timed per workload, about")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for name in args.only.split(","):
        if name not in known:
            parser.error(f"unknown workload {name!r}: use {', '.join(known)}")
        rows += measure(name, args.seconds)
        if args.markdown:
            args.markdown.write_text(page(rows), encoding="utf-8")
    print(page(rows))
