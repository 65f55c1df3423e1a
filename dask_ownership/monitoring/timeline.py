"""Timelines: tasks of Dask's task stream as a Chrome trace, which Perfetto and Chrome display."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dask_ownership.monitoring.owner_report import group_of

FAILED = "terrible"
"""Chrome's name of its color for errors: red. It chooses the colors of all else by name."""


def chrome_trace(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return records of the task stream in Chrome's trace event format.

    Parameters
    ----------
    records : iterable of dict
        As in the buffer of Dask's ``TaskStreamPlugin``.

    Returns
    -------
    dict
        Of plain values, for JSON. Each worker is a process of the trace, and each of its threads a
        thread. Times are microseconds since the epoch.
    """
    events: list[dict[str, Any]] = []
    processes: dict[str, int] = {}
    threads: dict[tuple[str, Any], int] = {}
    for record in records:
        worker = record["worker"]
        thread = worker, record["thread"]
        if worker not in processes:
            processes[worker] = len(processes) + 1
            events.append(_named("process_name", worker, processes[worker], 0))
        pid = processes[worker]
        if thread not in threads:
            # Numbers of threads are large and mean nothing to people.
            threads[thread] = 1 + sum(at == worker for at, _ in threads)
            events.append(_named("thread_name", f"thread {threads[thread]}", pid, threads[thread]))
        name = group_of(record["key"])
        failed = record.get("status") == "error"
        for step in record["startstops"]:
            action = step["action"]
            events.append(
                {
                    "ph": "X",
                    "name": name if action == "compute" else f"{action} of {name}",
                    "cat": action,
                    "ts": round(step["start"] * 1e6),
                    "dur": max(1, round((step["stop"] - step["start"]) * 1e6)),
                    "pid": pid,
                    "tid": threads[thread],
                    "args": {"key": str(record["key"]), "status": record.get("status", "")},
                    **({"cname": FAILED} if failed and action == "compute" else {}),
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _named(what: str, name: str, pid: int, tid: int) -> dict[str, Any]:
    """Return the event that gives a process or a thread its name."""
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}
