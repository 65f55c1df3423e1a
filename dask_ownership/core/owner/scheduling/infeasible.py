"""Infeasible tasks: no worker of the cluster may run such a task, which waits for a new worker."""

from __future__ import annotations

from collections.abc import Mapping

from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import ERROR, READY

NAMED = 5
"""Workers that a reason names, at most."""


def _listed(words: list[str]) -> str:
    """Return the first words as text, and how many more there are."""
    more = f"; and {len(words) - NAMED:,d} more" if len(words) > NAMED else ""
    return "; ".join(sorted(words)[:NAMED]) + more


def _amounts(resources: Mapping[str, float]) -> dict[str, float]:
    """Return resources as a user writes them: 1 and not 1.0."""
    return {name: int(n) if n == int(n) else n for name, n in resources.items()}


class Infeasible:
    """Says why infeasible tasks wait, and ends the tasks that would wait for ever or too long.

    As in Dask, an infeasible task waits for a worker that joins and may run the task.

    Parameters
    ----------
    placement : Placement
    lifecycle : Lifecycle
    functions : BuiltinFunctions
    refusals : dict of str to str
        Addresses of members that do not take part, each with the reason.
    """

    def __init__(
        self,
        placement: Placement,
        lifecycle: Lifecycle,
        functions: BuiltinFunctions,
        refusals: dict[str, str],
    ) -> None:
        self._placement = placement
        self._lifecycle = lifecycle
        self._functions = functions
        self._refusals = refusals
        self._since: dict[Row, float] = {}

    def why(self, row: Row) -> str | None:
        """Return why a ready row is infeasible, for people; None when a worker may run the row.

        Any thread.
        """
        placement = self._placement
        if row.state != READY or placement.allowed(row):
            return None
        there = list(placement.workers.values())  # a copy: any thread may ask
        options = row.options
        if not there:
            reason = "there is no worker"
        elif options.workers is not None and not placement.matching(options.workers):
            workers = _listed([f"{view.address}, named {view.name!r}" for view in there])
            reason = (
                f"workers=[{', '.join(options.workers)}] names no worker of the cluster (its "
                f"workers: {workers}); use allow_other_workers=True to run it elsewhere"
            )
        elif options.resources:
            amounts = _listed([f"{v.address} has {_amounts(v.resources) or 'none'}" for v in there])
            reason = f"no worker has resources={_amounts(options.resources)} ({amounts})"
            if options.workers is not None:
                reason = f"{reason} and is one of workers=[{', '.join(options.workers)}]"
        else:
            reason = "no worker takes it"
        if self._refusals:
            reason += f"; workers that do not take part: {_listed(list(self._refusals.values()))}"
        return reason

    def hopeless(self, row: Row) -> bool:
        """Return whether an infeasible row should fail now, because waiting serves no purpose."""
        # A copy was to be made at a worker that is gone.
        if row.function is self._functions.nothing:
            return True
        options = row.options
        workers = options.workers
        if not workers:
            return False
        # A parent runs again for its children: the borrowers of the children would wait as well,
        # and the worker that the parent names is gone.
        if options.repeats is not None:
            return not self._placement.matching(workers)
        # The task names only workers that do not take owned tasks.
        return all(name in self._refusals for name in workers)

    def fail(self, row: Row) -> None:
        """End a ready row, with the error that no worker runs the task."""
        detail = self.why(row) or "no worker took it"
        self._lifecycle.fail(row, ERROR, Failure("no-worker", row.key, detail))

    def expire(self, now: float, timeout: float) -> None:
        """End infeasible rows after a wait longer than ``timeout``, in the unit of ``now``.

        The wait of a row begins with the first call that finds the row infeasible.
        """
        waiting = self._placement.infeasible()
        self._since = {row: self._since.get(row, now) for row in waiting}
        for row, since in self._since.items():
            if now - since > timeout and row.state == READY:
                self.fail(row)
