"""Tasks that no worker of the cluster may run: they wait for one that joins, as in Dask."""

from __future__ import annotations

from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import ERROR, READY


class Infeasible:
    """Says why they wait, and ends them when that is known to be for ever, or for too long.

    Parameters
    ----------
    placement : Placement
    lifecycle : Lifecycle
    functions : BuiltinFunctions
    refused : dict of str to str
        Why members do not take part, by their addresses.
    """

    def __init__(
        self,
        placement: Placement,
        lifecycle: Lifecycle,
        functions: BuiltinFunctions,
        refused: dict[str, str],
    ) -> None:
        self._placement = placement
        self._lifecycle = lifecycle
        self._functions = functions
        self._refused = refused
        self._since: dict[Row, float] = {}

    def why(self, row: Row) -> str | None:
        """What a row that is ready waits for, if no worker there is may run it."""
        placement = self._placement
        if row.state != READY or placement.allowed(row):
            return None
        there = ", ".join(sorted(placement.workers)) or "none"
        options = row.options
        if options.workers is not None and not placement.matching(options.workers):
            reason = (
                f"workers=[{', '.join(options.workers)}] names no worker of the cluster (its "
                f"workers: {there}); use allow_other_workers=True to run it elsewhere"
            )
        elif options.resources:
            amounts = ", ".join(
                [f"{view.address} has {view.resources}" for view in placement.workers.values()]
            )
            reason = f"no worker has resources={options.resources} ({amounts})"
        else:
            reason = "there is no worker"
        if self._refused:
            reason += "; workers that do not take part: " + "; ".join(self._refused.values())
        return reason

    def hopeless(self, row: Row) -> bool:
        """Whether nobody would be served by waiting for a worker that may run it.

        So it is for what may run only where owned tasks are not taken; for a copy that was to be
        made where nothing is any more; and for a task that runs again for what it submitted when
        the worker that it names is gone, because those who ask for that wait with it.
        """
        if row.function is self._functions.nothing:
            return True
        options = row.options
        workers = options.workers
        if not workers:
            return False
        if options.repeats is not None:
            return not self._placement.matching(workers)
        return all(name in self._refused for name in workers)

    def fail(self, row: Row) -> None:
        """End a row that is ready: no worker runs it."""
        detail = self.why(row) or "no worker took it"
        self._lifecycle.fail(row, ERROR, Failure("no-worker", row.key, detail))

    def expire(self, now: float, timeout: float) -> None:
        """End those that have waited for longer than ``timeout``, in the unit of ``now``."""
        waiting = self._placement.infeasible()
        self._since = {row: self._since.get(row, now) for row in waiting}
        for row, since in self._since.items():
            if now - since > timeout and row.state == READY:
                self.fail(row)
