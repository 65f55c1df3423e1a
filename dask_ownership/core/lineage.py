"""Lineage: how to make a stored value again.

A value that travelled to its owner is safe there. One that stays at a worker goes with
that worker, so its row keeps the task that made it (`Lineage`) for as long as someone may
ask for the value, and with it the rows of that task's inputs (`Row.descendants` counts
who keeps a row so). Rows only, not values: a value that only lineage needs is freed, and
its row is `DORMANT` until it has to be made again.

What is kept is counted in bytes, and the oldest is evicted when it is too much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dask_ownership.core.table import (
    DORMANT,
    INLINE,
    PUSHED,
    STORED,
    WAITING,
    Function,
    Row,
)

if TYPE_CHECKING:
    from dask_ownership.core.ownership import Ownership

OVERHEAD = 600
"""Bytes that a row and its lineage take besides payload and value."""


class Lineage:
    """The task that made a stored value.

    Attributes
    ----------
    function, payload, dependencies, contains
        As in `Row`.
    nbytes : int
        What keeping it costs: the pickled arguments.
    """

    __slots__ = ("contains", "dependencies", "function", "nbytes", "payload")

    def __init__(
        self,
        function: Function,
        payload: bytes | None,
        dependencies: tuple[Row, ...],
        contains: tuple[Row, ...],
    ) -> None:
        self.function = function
        self.payload = payload
        self.dependencies = dependencies
        self.contains = contains
        self.nbytes = OVERHEAD + len(payload or b"")


class Lineages:
    """All lineage of one owner.

    Parameters
    ----------
    core : Ownership
    max_bytes : int

    Attributes
    ----------
    nbytes : int
        Of all that is kept: payloads, and inline values that only lineage needs.
    pinned : set of Row
        Inline values that only lineage needs.
    evicted : int
        How many were given up to keep within ``max_bytes``.
    recovered : int
        How many values were made again, or are being made.
    """

    def __init__(self, core: Ownership, max_bytes: int) -> None:
        self.core = core
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.evicted = 0
        self.recovered = 0
        self._given_up: set[Row] = set()
        self.pinned: set[Row] = set()
        self._oldest: deque[Row] = deque()
        self._live = 0

    # ---- keeping ----

    def keep(self, row: Row) -> None:
        """A task ended with a stored value: keep what made it. Call before it is cleared."""
        if row.lineage is not None or row.options.adopted is not None:
            return  # it was made again; or another process has what made it
        assert row.function is not None
        lineage = Lineage(row.function, row.payload, row.dependencies, row.contains)
        row.lineage = lineage
        for needed in (*lineage.dependencies, *lineage.contains):
            needed.descendants += 1
        self.nbytes += lineage.nbytes
        self._live += 1
        self._oldest.append(row)
        if self.nbytes > self.max_bytes:
            self._evict(row)

    def drop(self, row: Row) -> None:
        """A row needs its lineage no more."""
        lineage, row.lineage = row.lineage, None
        self._given_up.discard(row)
        if lineage is None:
            return
        self.nbytes -= lineage.nbytes
        self._live -= 1
        if len(self._oldest) > 2 * self._live + 64:
            self._oldest = deque(r for r in self._oldest if r.lineage is not None)
        self._let_go((*lineage.dependencies, *lineage.contains))

    def _let_go(self, rows: Sequence[Row]) -> None:
        core = self.core
        for row in rows:
            row.descendants -= 1
            if row.descendants <= 0 and row in self.pinned:
                self.pinned.discard(row)
                self.nbytes -= row.nbytes
        for row in core.table.unneeded(rows):
            core._clear(row)

    def _evict(self, newest: Row) -> None:
        """Give up the oldest until half of what is allowed is left."""
        oldest = self._oldest
        while oldest and self.nbytes > self.max_bytes // 2:
            row = oldest.popleft()
            if row.lineage is None:
                continue
            self.evicted += 1
            self.drop(row)
            self._given_up.add(row)
            self.core.log(row, "evicted", "its lineage: more than is allowed was kept")

    def why_not(self, row: Row) -> str:
        """Why a value cannot be made again."""
        if row in self._given_up:
            return (
                "its lineage was evicted, because more than ownership.lineage.max-bytes "
                f"({self.max_bytes:,d}) of it was kept"
            )
        if row.options.adopted is not None:
            return f"it was taken over from {row.options.adopted[2]}, which left, without lineage"
        return "it has no lineage: it was scattered, not computed"

    # ---- values that only lineage needs ----

    def sleep(self, row: Row) -> None:
        """Nobody holds the value, but it may be needed to make another again."""
        state = row.state
        if state == INLINE:
            if row not in self.pinned:
                self.pinned.add(row)
                self.nbytes += row.nbytes
        elif row.lineage is not None and state <= STORED and state != DORMANT:
            if state == PUSHED:
                self.core._take_back(row)
            elif state == STORED:
                self.core._unhold(row)
            self._call_off(row)
            row.state = DORMANT
            with self.core.table.lock:
                # A thread that found it by its key before it was dormant did not wake it.
                wanted = row.handles > 0 or row.uses > 0
            if wanted:
                self.wake(row)

    def _call_off(self, row: Row) -> None:
        """A task that was to make a value again is not needed after all."""
        needed = row.dependencies + row.contains
        row.dependencies = row.contains = ()
        row.function = None
        row.payload = None
        row.worker = None
        self.core._release_uses(needed)

    # ---- making again ----

    def recover(self, row: Row) -> bool:
        """Make a value again whose every copy is gone; False when that cannot be.

        What it needs that is dormant is made again with it.
        """
        if row.lineage is None:
            return False
        stack = [row]
        restored: list[Row] = []
        row.state = WAITING
        lock = self.core.table.lock
        while stack:
            one = stack.pop()
            lineage = one.lineage
            assert lineage is not None
            one.function = lineage.function
            one.payload = lineage.payload
            one.dependencies = lineage.dependencies
            one.contains = lineage.contains
            one.holders = ()
            one.value = None
            with lock:
                for needed in (*one.dependencies, *one.contains):
                    needed.uses += 1
            for needed in one.dependencies:
                if needed.state == DORMANT and needed.lineage is not None:
                    needed.state = WAITING
                    stack.append(needed)
            restored.append(one)
            whom = "" if one is row else f", for {row.key!r}"
            self.core.log(one, "recovered", f"it is made again from its lineage{whom}")
        self.recovered += len(restored)
        for one in restored:
            if one.state == WAITING:
                self.core._wait_for_dependencies(one)
        return True

    def wake(self, row: Row) -> None:
        """Somebody has the row: if its value is dormant, make it again."""
        if row.state == DORMANT and not self.recover(row):
            self.core.lose(row, f"it was freed when nobody held it, and {self.why_not(row)}")
