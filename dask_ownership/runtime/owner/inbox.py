"""What threads leave for an owner: rows to run, handles that went away, things to do.

A thread that submits makes a row, adds it to the table and appends it to the inbox; it never
blocks. The event loop, which is woken for the first of them, takes in what is there.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from time import time
from typing import Any

from dask.utils import parse_timedelta

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.scheduling.task_order import TaskOrder
from dask_ownership.core.protocol.messages import Origin
from dask_ownership.core.protocol.order import ordered
from dask_ownership.core.protocol.states import DORMANT, WAITING
from dask_ownership.errors import ClosedOwner, SchedulerGone
from dask_ownership.runtime.owner.gc import untrack
from dask_ownership.runtime.owner.home import Home
from dask_ownership.runtime.owner.waiting import Gate
from dask_ownership.runtime.serialize import arriving, unpickling

logger = logging.getLogger("dask_ownership.owner")

DROPPED_AT_ONCE = 1000
"""Handles that may be gone before the loop is woken for them."""

FIND_TIMEOUT = 5.0
"""Seconds for which looking a key up waits for an event loop that does not answer."""


class Inbox:
    """Takes what any thread has for the core of one owner.

    Parameters
    ----------
    core : OwnerCore
    executor : Home or None
        The one in this process.
    step : callable
        Has the owner send what the core decided. Loop thread.

    Attributes
    ----------
    places : TaskOrder
        Which task comes before which.
    gone : deque
        Rows, one for each handle that went away and is not counted off yet; and pairs of a row
        and what is kept until it is counted.
    closed : bool
    lost : str
        Why the owner closed by itself: the scheduler is gone. What was here by then stays.
    """

    def __init__(self, core: OwnerCore, executor: Home | None, step: Callable[[], None]) -> None:
        self.core = core
        self._executor = executor
        self._step = step
        self.places = TaskOrder(time)
        self.gone: deque[Any] = deque()
        self.closed = False
        self.lost = ""
        self._items: deque[Any] = deque()
        self._awake = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._context: contextvars.Context | None = None
        self._on_submitted: Callable[[list[Row]], None] | None = None

    def start(self) -> None:
        """Begin on the event loop that is running: take in what is there."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._context = contextvars.copy_context()
        self._wake()

    def check_open(self) -> None:
        """Raise when nothing that was submitted ends any more.

        Raises
        ------
        ClosedOwner
        SchedulerGone
        """
        if self.closed:
            if self.lost:
                raise SchedulerGone(self.core.name, self.lost)
            raise ClosedOwner(f"{self.core.name} is closed; its futures cannot be waited for")

    # ---- any thread: tasks ----

    def place(self, dependencies: tuple[Row, ...], depth: int, fifo_timeout: Any) -> int:
        """The place of one task; lower first. Any thread."""
        places = self.places
        place = places.behind(dependencies, depth) if dependencies else None
        if place is None:
            if places.shared:
                place = places.beside(parse_timedelta(fifo_timeout))
            else:
                place = places.next
                places.next += 1
        return ordered(place, 0, depth) if depth else place

    def submit(self, row: Row) -> Row:
        """Add a row and have it run; the row that is known under its key, if any.

        Raises
        ------
        ClosedOwner
        """
        if self.closed:
            if self.lost:
                raise SchedulerGone(row.key, f"it cannot be submitted: {self.lost}")
            raise ClosedOwner(f"{self.core.name} is closed; it cannot submit {row.key!r}")
        try:
            adopted = self.core.table.adopt(row)
            if adopted is row:
                untrack(row)
                self._items.append(row)
                if not self._awake:
                    self._wake()
            elif adopted.state == DORMANT:
                self.call(self.core.lifecycle.wake, adopted)
            return adopted
        except BaseException:  # Ctrl-C comes between any two instructions
            self.call(self._left_behind, row, True)
            raise

    def expect(self, row: Row) -> Row:
        """Add a row that waits for something outside, until `begin` has it run."""
        if self.closed:
            raise ClosedOwner(f"{self.core.name} is closed; it cannot submit {row.key!r}")
        adopted = self.core.table.adopt(row)
        if adopted is row:
            untrack(row)
        return adopted

    def begin(self, row: Row) -> None:
        """Have a row run that was expected, unless it ended in the meantime. Any thread."""
        self._items.append(row)
        if not self._awake:
            self._wake()

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Do something to the core on the loop, in order with what was submitted before."""
        self._items.append((function, args))
        if not self._awake:
            self._wake()

    def _left_behind(self, row: Row, handle: bool) -> None:
        """A thread was interrupted while it added this row. Loop thread.

        Others may find it under its key, and would wait for ever for one that nobody took
        in. The ``handle`` was for a future that is not made.
        """
        if self.core.table.rows.get(row.key) is row:
            if row.state == WAITING and not row.waiting and not row.attempt:
                self.core.submit((row,))
            if handle:
                self.core.release((row,))

    # ---- any thread: handles ----

    def dropped(self, row: Row) -> int:
        """How many handles of a row were dropped and not yet counted off."""
        return list(self.gone).count(row) if self.gone else 0

    def drop(self, row: Row) -> None:
        """One handle of a row went away. Called by finalizers, at any moment."""
        self.gone.append(row)
        # A sweep is on its way while the table holds rows; waking the loop for each
        # handle would cost more than all the rest of a round trip.
        if len(self.gone) > DROPPED_AT_ONCE and not self._awake:
            self._wake()

    def drop_all(self, rows: Iterable[Row]) -> None:
        """As `drop`, for one handle of each of these: all of them, or none when interrupted."""
        self.gone.extend(rows)
        if len(self.gone) > DROPPED_AT_ONCE and not self._awake:
            self._wake()

    def find(self, key: Hashable, parent: Any = None) -> Row | None:
        """The row of a key that a user chose, with one more handle on it, or None.

        Such a key may name something else once its futures are gone, so those that are
        gone are looked at first.
        """
        row = self.known(key, parent)
        if row is None or not self.gone or self._loop is None:
            return row
        self.gone.append(row)
        if threading.get_ident() == self._loop_thread:
            self._release_gone()
        else:
            gate = Gate()
            self.call(self._release_gone, gate)
            gate.lock.acquire(True, FIND_TIMEOUT)
        return self.known(key, parent)

    def known(self, key: Hashable, parent: Any = None) -> Row | None:
        """As `find`, for a key that means the same whenever it is made."""
        row = self.core.table.find(key, parent)
        if row is not None and row.state == DORMANT:
            self.call(self.core.lifecycle.wake, row)
        return row

    # ---- any thread: futures that travel ----

    def arrive(self, origin: Origin) -> Row:
        """The row of a future that was unpickled here, with one handle more. Any thread."""
        row: Row | None = None
        try:
            row, new = self.core.borrowing.arrive(origin)
            place = None if new else self.core.borrowing.held_elsewhere(row, origin)
            if place is not None:
                self.call(self.core.borrowing.borrow_at, row, place)
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
        """A future of this row may be in another process soon. Any thread."""
        heir = row.options.heir
        if heir is not None and row not in self.core.retention.exported:
            if self._executor is not None:
                self._executor.say_escaped(heir)
            self.call(self.core.retention.export, row)

    def pin(self, row: Row) -> None:
        """Keep a row for whoever reads what of it is pickled somewhere. Any thread."""
        self.core.table.pin(row)
        self.export(row)

    def open(self, client: Any, row: Row, load: Callable[[], Any]) -> Any:
        """Unpickle the value of a row, which is kept until the futures inside are counted."""
        with arriving(client) as arrived:
            value = load()
        if arrived:
            # In order with handles that are dropped, the caller's own on this row too.
            self.gone.append((row, arrived))
            if not self._awake:
                self._wake()
        return value

    # ---- the loop ----

    def _wake(self) -> None:
        if self._loop is None:
            return  # not started: `start` takes in what is there
        try:
            self._awake = True
            self._loop.call_soon_threadsafe(self.process, context=self._context)
        except RuntimeError:
            pass  # the loop is closed: nothing of this owner lives any more
        except BaseException:  # Ctrl-C: it may not be on its way, so the next one wakes it
            self._awake = False
            raise

    def process(self) -> None:
        """Take in what threads left, have the core decide, and send. Loop thread."""
        self._awake = False
        items = self._items
        core = self.core
        rows: list[Row] = []
        while items:
            item = items.popleft()
            if type(item) is not tuple:
                rows.append(item)
                continue
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
            self._settle_all()  # a thread was about to submit while this owner closed
        self._step()

    def _release_gone(self, gate: Gate | None = None) -> None:
        todo = self.gone
        rows: list[Row] = []
        while todo:
            item = todo.popleft()
            if type(item) is not tuple:
                rows.append(item)
                continue
            self.core.release(rows)
            rows = []
            self.core.borrowing.hold_until_counted(*item)
        if rows:
            self.core.release(rows)
        if gate is not None:
            gate.open()

    def watch(self, on_submitted: Callable[[list[Row]], None] | None) -> None:
        """Call this with each batch of rows that is about to be taken in; None: no more."""
        self._on_submitted = on_submitted

    @property
    def watched(self) -> bool:
        """Whether somebody is told of what is submitted."""
        return self._on_submitted is not None

    # ---- the end ----

    def close(self, lost: str = "") -> None:
        """Take no more tasks, and end those that are there. Loop thread.

        ``lost`` says why the scheduler is gone, if that is the reason.
        """
        self.lost = lost
        self.closed = True
        self._settle_all()

    def _settle_all(self) -> None:
        if self.lost:
            self.core.abandon(self.lost)
        else:
            self.core.close(f"its client {self.core.name} is closed, which freed it")
