"""What a result depends on besides its settings: versions, processor, threads, device."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard import __version__

if TYPE_CHECKING:
    import torch


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """JSON-able; `cores` are those this process may use, `threads` those torch computes with.

    Guarantees: no user name, no host name and no path of this machine.
    """
    import torch

    device = torch.device(device)
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "steelyard": __version__,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": processor_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": f"{device}{gpu}",
    }


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """'AMD EPYC 7B13', or what the platform says where `cpuinfo` does not."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Cores this process may run on: what it was pinned to, not what the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
