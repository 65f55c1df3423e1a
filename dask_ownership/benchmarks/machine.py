"""Describes the machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from typing import Any

__all__ = ["describe"]


def _cpu_model() -> str:
    """Return the name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Return how many cores this process may use."""
    # A container may allow fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Return the processor, cores, memory, load, system, Python and the time."""
    import psutil

    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_before": list(psutil.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
