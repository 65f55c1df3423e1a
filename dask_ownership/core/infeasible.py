"""Tasks that no worker of the cluster may run: they wait for one that joins, as in Dask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_ownership.core.row import ERROR, READY, Failure, Row

if TYPE_CHECKING:
    from dask_ownership.core.ownership import Ownership


class Infeasible:
    """Says why they wait, and ends them when that is known to be for ever, or for too long.

    Parameters
    ----------
    core : Ownership
    """

    def __init__(self, core: Ownership) -> None:
        self.core = core
        self._since: dict[Row, float] = {}

    def why(self, row: Row) -> str | None:
        """What a row that is ready waits for, if no worker there is may run it."""
        core = self.core
        placement = core.placement
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
        if core.refused:
            reason += "; workers that do not take part: " + "; ".join(core.refused.values())
        return reason

    def hopeless(self, row: Row) -> bool:
        """Whether nobody would be served by waiting for a worker that may run it.

        So it is for what may run only where owned tasks are not taken; for a copy that was to be
        made where nothing is any more; and for a task that runs again for what it submitted when
        the worker that it names is gone, because those who ask for that wait with it.
        """
        if row.function is self.core.copies.function:
            return True
        options = row.options
        workers = options.workers
        if not workers:
            return False
        if options.repeats is not None:
            return not self.core.placement.matching(workers)
        return all(name in self.core.refused for name in workers)

    def fail(self, row: Row) -> None:
        """End a row that is ready: no worker runs it."""
        detail = self.why(row) or "no worker took it"
        self.core.lifecycle.fail(row, ERROR, Failure("no-worker", row.key, detail))

    def expire(self, now: float, timeout: float) -> None:
        """End those that have waited for longer than ``timeout``, in the unit of ``now``."""
        waiting = self.core.placement.infeasible()
        self._since = {row: self._since.get(row, now) for row in waiting}
        for row, since in self._since.items():
            if now - since > timeout and row.state == READY:
                self.fail(row)
