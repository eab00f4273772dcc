"""Two measures of a step's memory.

live: the highest sum of bytes that torch's CPU allocator had handed out, and not got back, at any
moment of a step: everything an engine has made since it was created, what it keeps from step to
step included. Every tensor counts, those inside an operator too. Exact, and the same in every run.

resident: growth of the process' resident set, which also holds what libraries and the allocator
keep for themselves; Linux only, and only meaningful in a process of its own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler writes two lines per use
MEASURED = "the measured step"
STEPS = 3
MIB = 2.0**20


def live_peak(before: Callable[[], Callable[[], object]]) -> int:
    """Bytes alive at the peak of a step, of those made by `before` or by the step.

    before() sets up, warms up, and returns the step. What is older, or made by another thread, is
    not seen.
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # or a collection in the middle frees at a moment of its own
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step = before()
            gc.collect()
            with record_function(MEASURED):
                step()
    finally:
        if collecting:
            gc.enable()
    assert seen.profiler is not None
    results = seen.profiler.kineto_results
    assert results is not None
    return _peak(results.experimental_event_tree())


def _peak(events: list[Any]) -> int:
    (start,) = (e.start_time_ns for e in _all(events) if e.name == MEASURED)
    changes = sorted(
        (e.start_time_ns, e.extra_fields.alloc_size)
        for e in _all(events)
        if e.tag == _EventType.Allocation
    )
    live = sum(size for moment, size in changes if moment < start)
    peak = live
    for moment, size in changes:
        if moment >= start:
            live += size
            peak = max(peak, live)
    return peak


def _all(events: list[Any]) -> Iterator[Any]:
    stack = list(events)
    while stack:
        event = stack.pop()
        stack += event.children
        yield event


def model_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers, a shared storage once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def resident_growth(make: Callable[[], Callable[[], object]], warm: int) -> float:
    """MiB by which the peak of three steps passes what was resident before the first."""
    step = make()
    before = resident("VmRSS")
    for _ in range(warm):
        step()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for _ in range(STEPS):
        step()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A field of this process's memory status, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status: resident memory is measured on Linux")


def available() -> float:
    """MiB that the system could still hand out; infinite where it does not say."""
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 1024
    return float("inf")
