"""Placement: which worker a ready task goes to.

Binding is late: a ready task waits at the owner until a worker wants more tasks. Each worker has a
*window* of queued work, counted in measured time and not in tasks: about ten milliseconds per
slot, which is one long task, or hundreds of tasks that do nothing. A worker with a free slot comes
before a worker with only room in its window. A task goes to the worker that holds most bytes of
its stored inputs when that worker has room.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dask_ownership.core.owner.rows.options import NO_OPTIONS
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.owner.rows.worker_view import WINDOW, WorkerView
from dask_ownership.core.protocol.amounts import provides
from dask_ownership.core.protocol.order import URGENT, urgency
from dask_ownership.core.protocol.states import READY, STORED
from dask_ownership.core.queue import OrderedQueue

UNKNOWN_DURATION = 5_000.0
"""Microseconds that an unmeasured function is expected to run."""

SHORTEST = 12.0
"""Least microseconds that a task takes of a window: below, the handling costs more than the run."""

RUN_LENGTH = 16
"""How many tasks one after the other go to one worker, so that neighbours in a graph meet."""

OVERTAKING = 16
"""How many tasks beyond its slots a worker may have before no further task may overtake there."""

BANDWIDTH = 200.0
"""Bytes per microsecond between workers: a rough figure, which only serves the choice."""

STALLED = 5_000.0
"""Microseconds without an answer after which a worker's queue may be recalled."""

HELD_UP = 300_000.0
"""The same for a worker that has no more tasks of this owner than the worker can run at once."""


class Placement:
    """The ready rows of one owner, and the workers that may take them.

    Rows with ``workers``, ``resources`` or ``at_most_once`` are *restricted*: they wait in a queue
    for each kind of restriction. All other rows wait in one queue.

    Parameters
    ----------
    home : str, optional
        Address of the worker in this process, preferred for tasks without data elsewhere: nested
        tasks stay near their parent.

    Attributes
    ----------
    home : str or None
    workers : dict of str to WorkerView
        The members that this owner uses, by address.
    kept : list of WorkerView
        Workers that get nothing more until a slot is free, see `keep_for_waiting`.
    any_low : bool
        Whether a task with a priority below the usual was pushed, ever.
    """

    def __init__(self, home: str | None = None) -> None:
        self.home = home
        self.workers: dict[str, WorkerView] = {}
        self._free: OrderedQueue[Row] = OrderedQueue()
        self._restricted: dict[Any, OrderedQueue[Row]] = {}
        self._rotation: list[WorkerView] = []
        self.kept: list[WorkerView] = []
        self.any_low = False
        self._next = 0
        self._run_worker: WorkerView | None = None
        self._run_left = 0

    # ---- members ----

    def add_worker(self, view: WorkerView) -> None:
        """Use a worker from now on."""
        self.workers[view.address] = view
        self._rotation.append(view)

    def remove_worker(self, view: WorkerView) -> None:
        """Use a worker no more."""
        self.workers.pop(view.address, None)
        if view in self._rotation:
            self._rotation.remove(view)
        if self._run_worker is view:
            self._run_worker = None

    def matching(self, names: Iterable[str]) -> list[WorkerView]:
        """Return the workers with an address, name or host among ``names``."""
        names = tuple(names)
        return [w for w in list(self.workers.values()) if any(w.answers_to(n) for n in names)]

    # ---- ready rows ----

    def add_ready(self, row: Row) -> None:
        """Queue a ready row until a worker takes the row."""
        options = row.options
        if options is NO_OPTIONS:  # nearly all rows: one test
            self._free.push(row)
            return
        if options.restricted:
            kind = options.restriction()
            queue = self._restricted.get(kind)
            if queue is None:
                queue = self._restricted[kind] = OrderedQueue()
            queue.push(row)
            return
        self._free.push(row)

    @property
    def ready_count(self) -> int:
        """How many rows are queued, rows that are not ready any more included."""
        waiting = sum(map(len, self._restricted.values()))
        return len(self._free) + waiting

    def take_ready(self) -> tuple[Row, WorkerView] | None:
        """Remove the first unrestricted row that is still ready, and choose a worker.

        Return None when no row is ready, or when no worker wants the first ready row.
        """
        queue = self._free
        while queue.size:
            row = queue.pop()
            if row.state != READY:
                continue  # rows that ended or were taken stay in the queue until here
            view = self.choose(row) if row.dependencies else self._any_open()
            if view is None and (row.order < URGENT or self.any_low):
                view = self._overtaking(row, self.workers.values())
            if view is None:
                queue.put_back(row)
                return None
            return row, view
        return None

    @property
    def any_ready(self) -> bool:
        """Whether an unrestricted row waits for a worker."""
        queue = self._free
        while queue.size:
            if queue.peek().state == READY:
                return True
            queue.pop()
        return False

    def restricted(self) -> list[tuple[Row, list[WorkerView]]]:
        """Return the first ready row of each kind of restriction, with the workers for the row.

        The rows stay queued. A row without workers is infeasible: no member may run the row.
        """
        found = []
        for kind, queue in list(self._restricted.items()):
            while queue.size and queue.peek().state != READY:
                queue.pop()
            if not queue.size:
                del self._restricted[kind]
                continue
            found.append((queue.peek(), self.allowed(queue.peek())))
        return found

    @property
    def any_restricted(self) -> bool:
        """Whether a restricted row waits for a worker."""
        return bool(self._restricted)

    def infeasible(self) -> list[Row]:
        """Return the ready rows that no member may run."""
        if not self.workers:
            queues = [self._free, *self._restricted.values()]
            return [row for queue in queues for row in queue.items() if row.state == READY]
        # Rows of one kind may run at the same workers: the first row speaks for all.
        return [
            row
            for first, views in self.restricted()
            if not views
            for row in self._restricted[first.options.restriction()].items()
            if row.state == READY
        ]

    def untaken_kinds(self) -> list[tuple[Any, Row, int]]:
        """Return the kinds of ready rows that no member takes at present, or ever.

        Each kind comes with its first row, and with the number of queued rows, rows that are not
        ready any more included. All unrestricted rows are a kind, None. The cost is that of the
        kinds, and not of the rows.
        """
        found: list[tuple[Any, Row, int]] = [
            (row.options.restriction(), row, len(self._restricted[row.options.restriction()]))
            for row, views in self.restricted()
            if not any(view.accepting for view in views)
        ]
        if self.any_ready and not any(view.accepting for view in self.workers.values()):
            found.append((None, self._free.peek(), len(self._free)))
        return found

    def take_restricted(self, row: Row) -> None:
        """Remove a row that `restricted` returned.

        A row that is not the first of its kind any more stays, and is dropped when its turn comes.
        """
        queue = self._restricted[row.options.restriction()]
        if queue.peek() is row:
            queue.pop()

    def allowed(self, row: Row) -> list[WorkerView]:
        """Return the members that the row's ``workers`` and ``resources`` allow."""
        options = row.options
        views = list(self.workers.values())
        if options.workers is not None:
            named = self.matching(options.workers)
            if options.loose:
                # A preference: another worker may run what a silent worker would keep waiting.
                named = [view for view in named if not view.suspended]
            if named or not options.loose:
                views = named
        if options.resources:
            views = [w for w in views if provides(w.resources, options.resources)]
        return views

    def keep_for_waiting(self) -> None:
        """Have tasks that run at most once get the next free slot when their turn comes.

        Such a task goes to a free slot only, and no slot comes free while the windows of all
        workers are filled again and again. So the tasks after such a task wait, too.
        """
        if not any(at_most_once for *_, at_most_once in self._restricted):
            return
        for row, views in self.restricted():
            if row.options.at_most_once and not self._any_ready_before(row):
                for view in views:
                    if not view.reserved:
                        view.reserved = True
                        self.kept.append(view)

    def _any_ready_before(self, row: Row) -> bool:
        return self.any_ready and self._free.peek().order < row.order

    def let_go_of_kept(self) -> None:
        """Undo `keep_for_waiting`, before the workers are chosen anew."""
        for view in self.kept:
            view.reserved = False
        self.kept.clear()

    # ---- choosing ----

    def choose(self, row: Row, among: list[WorkerView] | None = None) -> WorkerView | None:
        """Return the worker that should take a row now; None while no worker wants more.

        Parameters
        ----------
        row : Row
        among : list of WorkerView, optional
            The workers that may run a restricted row.
        """
        best: WorkerView | None = None
        if among is not None and row.options.at_most_once:
            # A free slot only: of a task that was pushed to a dead worker the owner cannot tell
            # whether the task has run, so such a task should not wait there.
            among = [view for view in among if view.idle]
        if row.dependencies:
            best = self._nearest(row, among)
        if among is not None:
            if best is not None:
                return best
            candidates = [w for w in among if w.open]
            if not candidates:
                return self._overtaking(row, among)
            return min(candidates, key=lambda w: w.load)
        other = self._any_open()
        if best is None or other is None or best is other:
            return best or other
        if best.idle:
            return best
        # The location is busy: moving the data may be faster than waiting there. A request is taken
        # to cost a millisecond.
        nbytes = sum(
            d.nbytes for d in row.dependencies if d.state == STORED and best in self.locations_of(d)
        )
        if other.idle and best.load / best.nthreads > nbytes / BANDWIDTH + 1000.0:
            return other
        return best

    @staticmethod
    def _overtaking(row: Row, among: Iterable[WorkerView]) -> WorkerView | None:
        """Return a worker that takes a row though the window is full, and runs the row first.

        A row with a priority above the usual overtakes at any worker, other rows only at a worker
        with tasks of a lower priority. A worker takes a few such rows only (`OVERTAKING`).
        """
        mine = urgency(row.order)
        found = [
            view
            for view in among
            if view.accepting
            and not view.reserved
            and (mine < 0 or urgency(view.low) > mine)
            and view.active < view.nthreads + OVERTAKING
        ]
        return min(found, key=lambda view: view.load, default=None)

    def _nearest(self, row: Row, among: list[WorkerView] | None) -> WorkerView | None:
        """Return the worker with room that holds most bytes of the row's stored inputs."""
        held: dict[WorkerView, int] = {}
        for dependency in row.dependencies:
            if dependency.state == STORED:
                for view in self.locations_of(dependency):
                    held[view] = held.get(view, 0) + dependency.nbytes
        best = None
        most = 0
        for view, nbytes in held.items():
            if nbytes > most and view.open and (among is None or view in among):
                best = view
                most = nbytes
        return best

    def locations_of(self, row: Row) -> Iterable[WorkerView]:
        """Return the locations of a stored value, also of a borrowed value."""
        if not isinstance(row, Borrowed):
            return row.locations
        there = (self.workers.get(address) for address in row.addresses)
        return dict.fromkeys(view for view in (*row.locations, *there) if view is not None)

    def _any_open(self) -> WorkerView | None:
        """Return a worker for a row that may run anywhere; None while no worker wants more.

        First the worker of the present run, then the worker in this process, then the next worker
        with a free slot, then the next worker with room in its window.
        """
        view = self._run_worker
        if view is not None and self._run_left > 0 and view.accepting and not view.reserved:
            nthreads = view.nthreads
            if view.load < WINDOW * nthreads or view.active < nthreads:
                self._run_left -= 1
                return view
        home = self.workers.get(self.home) if self.home is not None else None
        if home is not None and home.open:
            return home
        # In turn, or the first workers of the list would get most of the tasks.
        rotation = self._rotation
        count = len(rotation)
        start = self._next
        second = None
        for step in range(count):
            candidate = rotation[(start + step) % count]
            if candidate.idle:
                self._next = (start + step + 1) % count
                return self._start_run(candidate)
            if second is None and candidate.open:
                second = step
        if second is None:
            return None
        self._next = (start + second + 1) % count
        return self._start_run(rotation[(start + second) % count])

    def _start_run(self, view: WorkerView) -> WorkerView:
        """Begin a run: a few further tasks follow to the same worker."""
        # With few ready rows a run is short, so that every worker gets a share.
        share = self.ready_count // (2 * len(self._rotation))
        self._run_worker = view
        self._run_left = min(RUN_LENGTH, share)
        return view
