"""The inbox of an owner, filled by any thread: rows to run, dropped references, calls to the core.

A submitting thread makes a row, adds the row to the table and appends it to the inbox, and never
blocks. The first item wakes the event loop, which then takes in all items at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from time import time
from typing import Any, NoReturn

from dask.utils import parse_timedelta

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.scheduling.task_order import TaskOrder
from dask_ownership.core.protocol.messages import Origin
from dask_ownership.core.protocol.order import ordered
from dask_ownership.core.protocol.states import DORMANT, WAITING
from dask_ownership.errors import CLOSED, ClosedOwner, SchedulerGone
from dask_ownership.runtime.owner.gc import untrack
from dask_ownership.runtime.owner.home import Home
from dask_ownership.runtime.owner.waiting import Gate
from dask_ownership.runtime.serialize import arriving, unpickling

logger = logging.getLogger("dask_ownership.owner")

DROPPED_AT_ONCE = 1000
"""Dropped local references above which the loop is woken to count them off."""

FIND_TIMEOUT = 5.0
"""Seconds for which `find` waits for the event loop, at most."""


class Inbox:
    """The inbox of one owner, between any thread and the loop that drives the core.

    Each method is one thing that a thread may ask of the owner: hence the number of methods.

    Parameters
    ----------
    core : OwnerCore
    executor : Home or None
        The executor in this process.
    step : callable
        Has the owner send the messages that the core decided on. Loop thread.

    Attributes
    ----------
    task_order : TaskOrder
        Gives each task its place in the order of tasks.
    gone : deque
        A row for each dropped local reference that is not counted off yet. Also pairs of a row and
        the rows of the futures inside its value, from `open`: the row is kept until the owners of
        these futures count this process.
    closed : bool
        Whether the owner takes no more tasks.
    lost : str
        The reason when the owner closed by itself, because the scheduler is gone; else empty. The
        values and errors that were here by then can still be read.
    """

    def __init__(self, core: OwnerCore, executor: Home | None, step: Callable[[], None]) -> None:
        self.core = core
        self._executor = executor
        self._step = step
        self.task_order = TaskOrder(time)
        self.gone: deque[Any] = deque()
        self.closed = False
        self.lost = ""
        # Rows to take in, and pairs of a function and its arguments to call.
        self._items: deque[Any] = deque()
        # Whether a call of `process` is on its way.
        self._awake = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._context: contextvars.Context | None = None
        self._on_submitted: Callable[[list[Row]], None] | None = None

    def start(self) -> None:
        """Begin on the running event loop: take in the items that are there already."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._context = contextvars.copy_context()
        self._wake()

    def check_open(self) -> None:
        """Raise an error when the owner is closed, and no unfinished row will ever end.

        Raises
        ------
        ClosedOwner
        SchedulerGone
            When the owner closed because the scheduler is gone.
        """
        if self.closed:
            if self.lost:
                raise SchedulerGone(self.core.name, self.lost)
            raise ClosedOwner(
                f"{self.core.name} is closed; its futures cannot be waited for. {CLOSED}"
            )

    # ---- any thread: tasks ----

    def place(self, dependencies: tuple[Row, ...], depth: int, fifo_timeout: Any) -> int:
        """Return the place of one task in the order of tasks; lower places run first. Any thread.

        Parameters
        ----------
        dependencies : tuple of Row
        depth : int
            The nesting of the task.
        fifo_timeout : object
            As the option of this name in Dask: a time such as ``"100ms"``.
        """
        order = self.task_order
        # A task that goes on with recent work comes next to it, any other task behind all tasks.
        place = order.behind(dependencies, depth) if dependencies else None
        if place is None:
            if order.shared:  # a graph came just before, and the task may belong beside it
                place = order.beside(parse_timedelta(fifo_timeout))
            else:  # `order.one` without a call, or a lock: two threads may get one place
                place = order.next
                order.next += 1
        return ordered(place, 0, depth) if depth else place

    def submit(self, row: Row) -> Row:
        """Add a row to the table, and have its task run. Any thread.

        Returns
        -------
        Row
            The given row, or the row already in the table under the same key.

        Raises
        ------
        ClosedOwner
        SchedulerGone
        """
        if self.closed:
            self._refuse(row)
        try:
            adopted = self.core.table.adopt(row)
            if adopted is row:
                untrack(row)
                self._items.append(row)
                if not self._awake:  # one wake of the loop serves all rows until it runs
                    self._wake()
            elif adopted.state == DORMANT:
                self.call(self.core.lifecycle.wake, adopted)  # its value was freed: make it again
            return adopted
        except BaseException:  # Ctrl-C comes between any two instructions
            self.call(self._left_behind, row, True)
            raise

    def expect(self, row: Row) -> Row:
        """Add a row whose task waits for an event outside of this owner, until `begin`. Any thread.

        Return the given row, or the row already in the table under the same key.
        """
        if self.closed:
            self._refuse(row)
        adopted = self.core.table.adopt(row)
        if adopted is row:
            untrack(row)
        return adopted

    def _refuse(self, row: Row) -> NoReturn:
        """Raise for a row that comes after the end."""
        if self.lost:
            raise SchedulerGone(row.key, f"it cannot be submitted: {self.lost}")
        raise ClosedOwner(f"{self.core.name} is closed; make a new one to submit {row.key!r}")

    def begin(self, row: Row) -> None:
        """Have the task of an expected row run, unless the row has ended meanwhile. Any thread."""
        self._items.append(row)
        if not self._awake:
            self._wake()

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function on the loop, after all rows submitted before. Any thread."""
        self._items.append((function, args))
        if not self._awake:
            self._wake()

    def _left_behind(self, row: Row, local_ref: bool) -> None:
        """Repair the state of a row after an interrupt of the thread that added it. Loop thread.

        Another thread may have found the row under its key, and would wait for ever for a row that
        the core has not taken in. With ``local_ref`` a local reference is dropped, whose future is
        not made any more.
        """
        if self.core.table.rows.get(row.key) is row:
            if row.state == WAITING and not row.waiting and not row.attempt:
                self.core.submit((row,))
            if local_ref:
                self.core.release((row,))

    # ---- any thread: local references ----

    def dropped(self, row: Row) -> int:
        """Return how many dropped local references of a row are not counted off yet."""
        return list(self.gone).count(row) if self.gone else 0

    def drop(self, row: Row) -> None:
        """Drop one local reference of a row. Called by finalizers, in any thread, at any moment."""
        self.gone.append(row)
        # The loop sweeps at regular times while the table has rows (`owner.SWEEP`). Waking the loop
        # each time would cost more than all the rest of a round trip.
        if len(self.gone) > DROPPED_AT_ONCE and not self._awake:
            self._wake()

    def drop_all(self, rows: Iterable[Row]) -> None:
        """Drop one local reference of each row, as `drop`; an interrupt drops all or none."""
        self.gone.extend(rows)
        if len(self.gone) > DROPPED_AT_ONCE and not self._awake:
            self._wake()

    def find(self, key: Hashable, parent: Any = None) -> Row | None:
        """Return the row of a key chosen by a user, with one more local reference, or None.

        When all futures of such a key are gone the user may give the key to another call. So the
        dropped references are counted off before the answer.
        """
        row = self.known(key, parent)
        if row is None or not self.gone or self._loop is None:
            return row
        self.gone.append(row)  # the local reference that `known` took
        if threading.get_ident() == self._loop_thread:
            self._release_gone()
        else:  # only the loop may change the core
            gate = Gate()
            self.call(self._release_gone, gate)
            gate.lock.acquire(True, FIND_TIMEOUT)
        return self.known(key, parent)

    def known(self, key: Hashable, parent: Any = None) -> Row | None:
        """Return the row of a key as `find` does, but take the table as it is.

        For keys of pure calls, which always mean the same object.
        """
        row = self.core.table.find(key, parent)
        if row is not None and row.state == DORMANT:
            self.call(self.core.lifecycle.wake, row)
        return row

    # ---- any thread: futures that travel ----

    def arrive(self, origin: Origin) -> Row:
        """Return the row of a future unpickled in this process. Any thread.

        The row has one more local reference, for the future. A future of another owner makes this
        process a borrower.
        """
        row: Row | None = None
        try:
            row, new = self.core.borrowing.arrive(origin)
            # The origin may tell that a known row is held by another process now.
            owner_ref = None if new else self.core.borrowing.held_elsewhere(row, origin)
            if owner_ref is not None:
                self.call(self.core.borrowing.borrow_at, row, owner_ref)
            if row.state == DORMANT:
                self.call(self.core.lifecycle.wake, row)
            elif new:
                untrack(row)
                self._items.append(row)
                if not self._awake:
                    self._wake()
        except BaseException:
            if row is not None:
                self.call(self._left_behind, row, True)
            raise
        if unpickling.arrived is not None:
            unpickling.arrived.append(row)
        return row

    def export(self, row: Row) -> None:
        """Note that a future of a row is about to leave this process. Any thread.

        The parent task of the row, if any, is retained from then on: it can submit the row again
        after the death of this owner.
        """
        heir = row.options.heir
        if heir is not None and row not in self.core.retention.exported:
            if self._executor is not None:
                self._executor.mark_exported(heir)
            self.call(self.core.retention.export, row)

    def pin(self, row: Row) -> None:
        """Keep a row for as long as this owner. Any thread.

        For a row whose future stands in a pickle that a process may read at any time.
        """
        self.core.table.pin(row)
        self.export(row)

    def open(self, client: Any, row: Row, load: Callable[[], Any]) -> Any:
        """Unpickle the value of a row. Any thread.

        The row, and with it the futures inside its value, is kept until the owners of these futures
        count this process.

        Parameters
        ----------
        client : object
            The client that the futures inside are made for.
        row : Row
        load : callable
            Unpickles and returns the value.
        """
        with arriving(client) as arrived:
            value = load()
        if arrived:
            # In `gone` and not among the items, to stay in order with dropped references, such as
            # the caller's own of this row.
            self.gone.append((row, arrived))
            if not self._awake:
                self._wake()
        return value

    # ---- the loop ----

    def _wake(self) -> None:
        """Have the loop call `process`. Any thread."""
        if self._loop is None:
            return  # not started yet: `start` takes in the items
        try:
            self._awake = True
            # In the context of the loop: the caller's may be that of a task.
            self._loop.call_soon_threadsafe(self.process, context=self._context)
        except RuntimeError:
            pass  # the loop is closed: nothing of this owner lives any more
        except BaseException:  # Ctrl-C: no call may be on its way, so the next item wakes the loop
            self._awake = False
            raise

    def process(self) -> None:
        """Take in the items of all threads, have the core decide, and send. Loop thread."""
        # Before the loop below: a later item wakes the loop again, and none is left behind.
        self._awake = False
        items = self._items
        core = self.core
        rows: list[Row] = []
        while items:
            item = items.popleft()
            if type(item) is not tuple:
                rows.append(item)
                continue
            # Calls run in order with rows: a call may cancel a row that was submitted before.
            if rows:
                core.submit(rows)
                rows = []
            function, args = item
            try:
                function(*args)
            except Exception:
                logger.exception("an operation on the ownership table failed")
        if rows:
            if self._on_submitted is not None:
                self._on_submitted(rows)
            core.submit(rows)
        self._release_gone()
        if self.closed:
            self._settle_all()  # a thread was in the middle of `submit` while this owner closed
        self._step()

    def _release_gone(self, gate: Gate | None = None) -> None:
        """Count off the dropped local references, then open the gate. Loop thread."""
        todo = self.gone
        rows: list[Row] = []
        while todo:
            item = todo.popleft()
            if type(item) is not tuple:
                rows.append(item)
                continue
            # A pair of `open`: what was dropped before is released before, and the rest later.
            self.core.release(rows)
            rows = []
            self.core.borrowing.hold_until_acknowledged(*item)
        if rows:
            self.core.release(rows)
        if gate is not None:
            gate.open()

    def watch(self, on_submitted: Callable[[list[Row]], None] | None) -> None:
        """Call a function with batches of rows about to be taken in; None ends the calls."""
        self._on_submitted = on_submitted

    @property
    def watched(self) -> bool:
        """Whether a function is called with submitted rows, see `watch`."""
        return self._on_submitted is not None

    # ---- the end ----

    def close(self, lost: str = "") -> None:
        """Take no more tasks, and end all unfinished rows. Loop thread.

        Parameters
        ----------
        lost : str
            Why the scheduler is gone, when the owner closes because of it. Rows with a value or an
            error here keep it then; else they end as well.
        """
        self.lost = lost
        self.closed = True
        self._settle_all()

    def _settle_all(self) -> None:
        """End the rows of a closed owner."""
        if self.lost:
            self.core.abandon(self.lost)
        else:
            self.core.close(f"its client {self.core.name} is closed, which freed it")
