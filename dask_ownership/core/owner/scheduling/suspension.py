"""Workers that fall silent: frozen, cut off, or kept from answering by what they run.

Silence is not death. A worker that owes an answer and gives no sign of life for a while
is *suspended*: it gets nothing more, and what it was given is tried elsewhere. Its values
stay where they are, nobody is blamed, and when it is heard again it is used again. What it
still does for an attempt that was moved changes nothing: a `CANCEL` waits for it.

A task may be the reason for the silence itself, as C code that keeps the interpreter's
lock for a minute. So the next worker may be silent for twice as long as the last was when
the task was taken from it, and it is moved only when another worker could run it: in the
end it finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.states import INLINE, PUSHED, STORED


class Suspensions:
    """Suspended workers of one owner, and what they were given.

    Parameters
    ----------
    placement : Placement
    lifecycle : Lifecycle
    gone_quiet, awake : callable
        Told of a worker that is suspended, and of one that takes tasks again.

    Attributes
    ----------
    suspended : set of WorkerView
    """

    def __init__(
        self,
        placement: Placement,
        lifecycle: Lifecycle,
        gone_quiet: Callable[[WorkerView], None],
        awake: Callable[[], None],
    ) -> None:
        self._placement = placement
        self._lifecycle = lifecycle
        self._gone_quiet = gone_quiet
        self._awake = awake
        self.suspended: set[WorkerView] = set()

    def silent(self, found: Iterable[tuple[WorkerView, float]]) -> None:
        """Workers that owe an answer were silent for so many times what is allowed.

        All together: what one had must not go to another that is silent, too.
        """
        found = [(view, times) for view, times in found if times >= 1 and view.alive]
        for view, _ in found:
            self._suspend(view)
        for view, times in found:
            self._move(view, times)

    def _suspend(self, view: WorkerView) -> None:
        if view.suspended:
            return
        view.suspended = True
        view.would_accept = view.accepting
        view.accepting = False
        self.suspended.add(view)
        self._gone_quiet(view)

    def heard(self, view: WorkerView) -> None:
        """A suspended worker gave a sign of life: it is used again."""
        if view.suspended:
            view.suspended = False
            view.accepting = view.would_accept
            self.suspended.discard(view)
            if view.accepting:  # it takes copies again
                self._awake()

    def gone(self, view: WorkerView) -> None:
        """It left the cluster."""
        self.suspended.discard(view)

    def _move(self, view: WorkerView, times: float) -> None:
        """Have what others can run tried there, the oldest first."""
        for row in list(view.pushed.values()):
            if row.state != PUSHED or row.worker is not view:
                continue
            path = restarts.SILENT
            why = "it does not answer, and another worker can run it"
            if any(d.state < INLINE and d.worker is not view for d in row.dependencies):
                path = restarts.INPUT_ELSEWHERE
                why = "what it waited for there is tried elsewhere"
            if not restarts.may(path, row.options):
                continue  # it goes on when the worker does
            if path is restarts.SILENT:
                attempts = self._lifecycle.attempts
                if times < attempts.of(row).patience or not self._elsewhere(row):
                    continue
                attempts.change(row).patience = 2 * times
            row.worker.take_back(row)
            self._lifecycle.try_again(row, path, f"{view.address}: {why}")

    def _elsewhere(self, row: Row) -> bool:
        return any(view.accepting for view in self._placement.allowed(row))

    def unanswered(self, row: Row) -> None:
        """A stored value could not be had where it is said to be.

        When all who have it are suspended and it can be made again, their copies are given up.
        Otherwise readers wait for those workers to wake up or to be removed. Another holder
        may only be about to fetch it from there; when that failed it says so.
        """
        if row.state != STORED or row.lineage is None:
            return
        holders = set(row.locations)
        if holders <= self.suspended:
            self._lifecycle.drop_locations(row, holders, "does not answer")
