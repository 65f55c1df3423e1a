"""Owned tasks on the pages of Dask's own dashboard: progress, groups, times, exceptions.

Those pages read the scheduler's `TaskPrefix` and `TaskGroup` objects and its list of failed
tasks. While somebody looks, each name of owned tasks has a group of its own there, called
``"inc (owned)"``, whose counts and times are those that owners and workers report. Groups and
tasks of the scheduler itself are not touched: a prefix is the sum of its groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distributed.scheduler import ErredTask, TaskGroup, TaskPrefix

STATES = {
    "waiting": "waiting",
    "ready": "queued",
    "pushed": "processing",
    "inline": "memory",
    "stored": "memory",
    "error": "erred",
    "dormant": "released",
}
"""What Dask calls the states of owned objects."""

OWNED = " (owned)"
"""What the names of groups of owned tasks end with; no key of a task gives such a name."""


class StockPages:
    """Keeps the scheduler's groups of owned tasks.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._groups: dict[str, Any] = {}
        self._tallies: dict[str, dict[str, Any]] = {}

    # ---- progress and groups ----

    def show(self, owners: Iterable[dict[str, Any]]) -> None:
        """What owners have now, by name of the task and state."""
        wanted: dict[str, dict[str, int]] = {}
        for owner in owners:
            for name, states in owner["groups"].items():
                sums = wanted.setdefault(name, {})
                for state, number in states.items():
                    known = STATES[state]
                    sums[known] = sums.get(known, 0) + number
        for name in [*self._groups]:
            if name not in wanted:
                self._forget(name)
        for name, sums in wanted.items():
            self._set(self._group(name), sums)

    def hide(self) -> None:
        """Nobody looks any more: numbers that nobody keeps up to date are not left."""
        for name in [*self._groups]:
            self._forget(name)

    def _group(self, name: str) -> Any:
        groups = self.scheduler.task_groups
        group = self._groups.get(name)
        if group is None or groups.get(group.name) is not group:  # as after a restart
            prefix = self._prefix(name)
            group = self._groups[name] = groups[name + OWNED] = TaskGroup(name + OWNED, prefix)
        return group

    def _prefix(self, name: str) -> Any:
        prefixes = self.scheduler.task_prefixes
        if name not in prefixes:
            prefixes[name] = TaskPrefix(name)
        return prefixes[name]

    @staticmethod
    def _set(group: Any, sums: dict[str, int]) -> None:
        prefix = group.prefix
        for state, before in group.states.items():
            more = sums.get(state, 0) - before
            if more:
                group.states[state] += more
                group._size += more
                prefix.states[state] += more
                prefix._size += more

    def _forget(self, name: str) -> None:
        group = self._groups.pop(name)
        self._set(group, {})
        if self.scheduler.task_groups.get(group.name) is group:
            del self.scheduler.task_groups[group.name]
            group.prefix.remove_group(group)

    # ---- times ----

    def ran(self, worker: str, tallies: dict[str, Any]) -> None:
        """A worker told how long tasks of each name took there for what, in all."""
        before = self._tallies.get(worker, {})
        self._tallies[worker] = tallies
        for name, actions in tallies.items():
            told = before.get(name, {})
            for action, seconds in actions.items():
                more = seconds - told.get(action, 0.0)
                if more > 0:
                    _add_time(self._prefix(name), action, more)
                    if name in self._groups:
                        _add_time(self._groups[name], action, more)

    def worker_gone(self, worker: str) -> None:
        self._tallies.pop(worker, None)

    # ---- exceptions ----

    def failed(self, worker: str, failures: Iterable[Any]) -> None:
        """A worker told which tasks failed there."""
        for _, key, when, exception, traceback in failures:
            task = ErredTask(key, when, {worker}, exception, traceback)
            self.scheduler.erred_tasks.appendleft(task)


def _add_time(collection: Any, action: str, seconds: float) -> None:
    """Time that tasks took, without touching the averages by which Dask schedules its own."""
    collection._all_durations_us[action] += round(seconds * 1e6)
    collection._duration_us += round(seconds * 1e6)
