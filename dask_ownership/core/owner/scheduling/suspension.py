"""Suspension of silent workers: frozen, cut off, or kept from answering by the tasks they run.

Silence is not death. A worker that owes an answer and gives no sign of life for a while is
*suspended*: the worker gets no more tasks, and its tasks are tried elsewhere. Its values stay where
they are, no task is blamed, and after the next sign of life the worker is used again. Work that the
worker still does for a moved attempt changes nothing: a `CANCEL` waits in the worker's outbox.

A task may be the reason for the silence, as C code that keeps the interpreter's lock for a minute.
So a moved task has more patience with the next worker, which may be silent for twice as long as the
last worker was at the time of the move. And a task is moved only when another worker could run the
task. So the task finishes in the end.
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
    """Suspends the silent workers of one owner, and moves their tasks.

    Parameters
    ----------
    placement : Placement
    lifecycle : Lifecycle
    gone_quiet : callable
        Told of a worker that is suspended.
    awake : callable
        Called when a suspended worker takes tasks again.

    Attributes
    ----------
    suspended : set of WorkerView
        Workers that are suspended now.
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
        """Suspend workers that owe an answer and were silent for too long, and move their tasks.

        Parameters
        ----------
        found : iterable of (WorkerView, float)
            Silent workers, each with the length of its silence in multiples of the allowed
            silence. Below 1 nothing happens.
        """
        found = [(view, times) for view, times in found if times >= 1 and view.alive]
        # All workers are suspended before any task is moved: no task moves to a silent worker.
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
        """Use a suspended worker again, after a sign of life."""
        if view.suspended:
            view.suspended = False
            view.accepting = view.would_accept
            self.suspended.discard(view)
            if view.accepting:  # copies of values may go to the worker again
                self._awake()

    def gone(self, view: WorkerView) -> None:
        """Forget a worker that left the cluster."""
        self.suspended.discard(view)

    def _move(self, view: WorkerView, times: float) -> None:
        """Have tasks of a silent worker tried at other workers, the oldest first."""
        for row in list(view.pushed.values()):
            if row.state != PUSHED or row.worker is not view:
                continue
            path = restarts.SILENT
            why = "it does not answer, and another worker can run it"
            if any(d.state < INLINE and d.worker is not view for d in row.dependencies):
                path = restarts.INPUT_ELSEWHERE
                why = "what it waited for there is tried elsewhere"
            if not restarts.may(path, row.options):
                continue  # a task that runs at most once goes on when the worker does
            # A task whose input moved has to follow, also to a worker that comes later. Other
            # tasks move when their patience is over and another worker can run them now.
            if path is restarts.SILENT:
                attempts = self._lifecycle.attempts
                if times < attempts.of(row).patience or not self._elsewhere(row):
                    continue
                attempts.change(row).patience = 2 * times
            row.worker.take_back(row)
            self._lifecycle.try_again(row, path, f"{view.address}: {why}")

    def _elsewhere(self, row: Row) -> bool:
        """Return whether another worker takes tasks and may run the row."""
        # The silent worker itself is suspended, and so does not accept tasks.
        return any(view.accepting for view in self._placement.allowed(row))

    def unanswered(self, row: Row) -> None:
        """Give up the copies of a stored value that no location sends, if all are suspended.

        The value is made again then, which needs a lineage. Otherwise readers wait for the
        suspended workers to wake up or to be removed.
        """
        if row.state != STORED or row.lineage is None:
            return
        # A location that answers may only be about to fetch the value from a suspended location,
        # and says so when that has failed.
        locations = set(row.locations)
        if locations <= self.suspended:
            self._lifecycle.drop_locations(row, locations, "does not answer")
