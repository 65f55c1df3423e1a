"""Departures of workers: which task is blamed for a death, and which tasks run again elsewhere.

Only the scheduler says that a worker is gone: `scheduler.plugin` tells all owners, `Members` in the
runtime ends the link, and `Membership.left` calls `OwnerCore.remove_worker`, which is
`Departures.remove`. Then `Peers` tells all features that the owners at the worker are gone. A
worker that refuses the link is removed in the same way, though the worker lives.
"""

from __future__ import annotations

from dask_ownership.core.owner.references.posting import Posting
from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.attempts import Death
from dask_ownership.core.owner.rows.failure_counts import KILLED_WORKER, WORKERS_DIED
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.limits import Limits
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.owner.scheduling.suspension import Suspensions
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import ERROR, PUSHED

REMEMBERED = 1000
"""Number of dead workers of which an owner remembers what ended their processes."""


class Departures:
    """Takes workers that are gone away from one owner.

    Parameters
    ----------
    lifecycle : Lifecycle
    placement : Placement
    suspensions : Suspensions
    posting : Posting
    limits : Limits

    Attributes
    ----------
    exits : dict of str to str
        Incarnation of a dead worker to what ended its process, as far as its nanny knows.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        placement: Placement,
        suspensions: Suspensions,
        posting: Posting,
        limits: Limits,
    ) -> None:
        self._lifecycle = lifecycle
        self._placement = placement
        self._suspensions = suspensions
        self._posting = posting
        self._limits = limits
        self.exits: dict[str, str] = {}

    def exited(self, incarnation: str, how: str) -> None:
        """Take in what ended the process of a worker, which its nanny says after the departure."""
        self.exits[incarnation] = how
        if len(self.exits) > REMEMBERED:
            del self.exits[next(iter(self.exits))]

    def remove(self, view: WorkerView, reason: str, reached: bool) -> None:
        """Remove a worker: its tasks are tried elsewhere, and values it alone had are made again.

        A value without lineage is lost.

        Parameters
        ----------
        view : WorkerView
        reason : str
            What became of the worker, for people.
        reached : bool
            False when no message to the worker can have arrived.
        """
        if not view.alive:
            return
        view.alive = False
        view.accepting = False
        self._placement.remove_worker(view)
        self._suspensions.gone(view)
        pushed = list(view.pushed.values())
        # Pushes that never left, or never arrived: their tasks cannot have run there.
        if reached:
            unsent = {message[m.ATTEMPT] for message in view.outbox if message[m.KIND] == m.PUSH}
        else:
            unsent = {row.attempt for row in pushed}
        # A suspect begins alone only after the worker has received `GO`.
        goes = [message for message in view.outbox if message[m.KIND] == m.GO]
        may_not_begin = any(yes for _, _, _, yes in goes)
        view.pushed.clear()
        view.outbox.clear()
        self._posting.way_is_gone(view)
        for row in self._lifecycle.table.all():
            if view in row.locations:
                self._lifecycle.drop_locations(row, {view}, reason)
        alone = view.alone
        suspects = self._suspects(view, pushed, unsent)
        if suspects or alone is not None:
            self._lifecycle.losses[WORKERS_DIED] += 1
        if alone is not None:
            # Nothing runs beside a task that has the worker for itself.
            suspects = {alone} if reached and not may_not_begin else set()
        for row in pushed:
            if row.state != PUSHED or row.worker is not view:
                continue  # the row has ended or moved meanwhile
            death = f"{view.address} {reason}"
            path = restarts.NEVER_SENT if row.attempt in unsent else restarts.WORKER_DIED
            suspect = row in suspects and restarts.may(path, row.options)
            if suspect and self._is_given_up(row, Death(view.incarnation, death), row is alone):
                continue
            ran = "it may have run there" if row in suspects else "it waited there"
            ran = "nothing else ran there" if row in suspects and row is alone else ran
            self._lifecycle.try_again(row, path, f"{death}; {ran}")

    def _suspects(self, view: WorkerView, pushed: list[Row], unsent: set[int]) -> set[Row]:
        """Return the rows that may have run when a worker died: the oldest, one for each slot."""
        # A row cannot have run when its push was not sent, or when the row waited there for an
        # input. A suspect of earlier deaths runs alone: it counts here only if the worker has
        # said (`ALONE`) that it runs beside other tasks.
        could = [
            row
            for row in pushed
            if row.attempt not in unsent
            and not any(d.state == PUSHED for d in row.dependencies)
            and (
                not (tried := self._lifecycle.attempts.of(row)).died or tried.beside == row.attempt
            )
        ]
        return set(could[: max(1, view.nthreads)])

    def _is_given_up(self, row: Row, death: Death, alone: bool) -> bool:
        """Count the death of a worker against a task, and fail the task after too many deaths.

        Parameters
        ----------
        row : Row
        death : Death
        alone : bool
            Whether the task ran alone at the worker.

        Returns
        -------
        bool
            Whether the task has failed, as `KilledWorker`.
        """
        record = self._lifecycle.attempts.change(row)
        record.died += (death,)
        record.deaths += alone
        times = len(record.died)
        allowed = self._limits.allowed_failures
        # A death beside other tasks, as the first always is, proves nothing: any of the tasks may
        # be to blame. So as many deaths as are allowed have to come while the task ran alone.
        if record.deaths < max(1, allowed) or times <= allowed:
            return False
        deaths = "; ".join(
            f"{what}, and its process {exited}" if (exited := self.exits.get(worker)) else what
            for worker, what in record.died
        )
        detail = (
            f"{times} workers died while it ran there, {record.deaths} of them while nothing "
            f"else of any owner ran there: {deaths}. Code of the task that crashes ends a worker, "
            "and so does too little memory: the logs of these workers and of their nannies say "
            "more. Have the task take less memory at once, give the workers more, or run code that "
            "may crash in a process of its own. distributed.scheduler.allowed-failures, where the "
            f"task was submitted, is how many such deaths are allowed ({allowed})"
        )
        self._lifecycle.losses[KILLED_WORKER] += 1
        self._lifecycle.fail(row, ERROR, Failure("killed-worker", row.key, detail))
        return True
