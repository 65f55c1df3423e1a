"""Owned tasks on the pages of Dask's own dashboard: progress, groups, times, exceptions.

Dask's pages read the `TaskPrefix` and `TaskGroup` objects of the scheduler and the scheduler's list
of failed tasks. While the cluster is watched, each name of owned tasks has a group there called
``"inc (owned)"``, whose counts and times are the reports of owners and workers. Groups and tasks of
the scheduler itself are not touched: a prefix is the sum of its groups.
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
"""Name of the state on Dask's pages, for each state of an owned object."""

OWNED = " (owned)"
"""End of the names of groups of owned tasks; no key of a task gives a group with such a name."""


class StockPages:
    """Keeps the groups of owned tasks in the scheduler up to date.

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
        """Set the groups to the numbers that owners reported last, by task name and state."""
        wanted: dict[str, dict[str, int]] = {}
        for owner in owners:
            for name, states in owner["groups"].items():
                sums = wanted.setdefault(name, {})
                for state, number in states.items():
                    # Two states of owned objects may be one state of Dask's tasks.
                    known = STATES[state]
                    sums[known] = sums.get(known, 0) + number
        for name in [*self._groups]:
            if name not in wanted:
                self._forget(name)
        for name, sums in wanted.items():
            self._set(self._group(name), sums)

    def hide(self) -> None:
        """Remove all groups of owned tasks: without viewers no reports keep their numbers true."""
        for name in [*self._groups]:
            self._forget(name)

    def _group(self, name: str) -> Any:
        """Return the group of a name of owned tasks; make the group if the scheduler has none."""
        groups = self.scheduler.task_groups
        group = self._groups.get(name)
        # A restart of the cluster clears the scheduler's groups.
        if group is None or groups.get(group.name) is not group:
            prefix = self._prefix(name)
            group = self._groups[name] = groups[name + OWNED] = TaskGroup(name + OWNED, prefix)
        return group

    def _prefix(self, name: str) -> Any:
        """Return the prefix of a name; make the prefix if the scheduler has none."""
        prefixes = self.scheduler.task_prefixes
        if name not in prefixes:
            prefixes[name] = TaskPrefix(name)
        return prefixes[name]

    @staticmethod
    def _set(group: Any, sums: dict[str, int]) -> None:
        """Set the counts of a group, and change the counts of its prefix by the difference."""
        prefix = group.prefix
        for state, before in group.states.items():
            more = sums.get(state, 0) - before
            if more:
                # ``_size`` is what Dask's pages take for the number of all tasks of a group or
                # prefix.
                group.states[state] += more
                group._size += more
                prefix.states[state] += more
                prefix._size += more

    def _forget(self, name: str) -> None:
        """Take the counts of a group off its prefix, and remove the group from the scheduler."""
        group = self._groups.pop(name)
        self._set(group, {})
        if self.scheduler.task_groups.get(group.name) is group:
            del self.scheduler.task_groups[group.name]
            group.prefix.remove_group(group)

    # ---- times ----

    def ran(self, worker: str, tallies: dict[str, Any]) -> None:
        """Add the times that a worker reported to groups and prefixes.

        Parameters
        ----------
        worker : str
            Address of the worker.
        tallies : dict
            Seconds by task name and action, in total since the worker counts.
        """
        before = self._tallies.get(worker, {})
        self._tallies[worker] = tallies
        for name, actions in tallies.items():
            # The worker reports totals. Only the growth since the last report is new.
            told = before.get(name, {})
            for action, seconds in actions.items():
                more = seconds - told.get(action, 0.0)
                if more > 0:
                    _add_time(self._prefix(name), action, more)
                    if name in self._groups:
                        _add_time(self._groups[name], action, more)

    def worker_gone(self, worker: str) -> None:
        """Forget the totals of a worker; another worker at this address counts from zero."""
        self._tallies.pop(worker, None)

    # ---- exceptions ----

    def failed(self, worker: str, failures: Iterable[Any]) -> None:
        """Add the tasks that failed at a worker to the scheduler's list of failed tasks."""
        for _, key, when, exception, traceback, *_ in failures:
            task = ErredTask(key, when, {worker}, exception, traceback)
            # The newest failure comes first in Dask's list.
            self.scheduler.erred_tasks.appendleft(task)


def _add_time(collection: Any, action: str, seconds: float) -> None:
    """Add seconds to a prefix or group, without touching the averages by which Dask schedules."""
    collection._all_durations_us[action] += round(seconds * 1e6)
    collection._duration_us += round(seconds * 1e6)
