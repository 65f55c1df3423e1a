"""Lineage: how to make a stored value again.

A value that travelled to its owner is safe there. One that stays at a worker goes with
that worker, so its row keeps the task that made it (`Lineage`) for as long as someone may
ask for the value, and with it the rows of that task's inputs (`Row.lineage_refs` counts
who keeps a row so). Rows only, not values: a value that only lineage needs is freed, and
its row is `DORMANT` until it has to be made again.

What is kept is counted in bytes, and the oldest is evicted when it is too much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.limits import Limits
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import RETAINED, TRACED, Lineage, Row
from dask_ownership.core.owner.rows.table import Table
from dask_ownership.core.protocol.states import DORMANT, ERROR, INLINE, STORED, WAITING

RECOVERIES = 50
"""Of how many it is remembered how long they took."""


class Lineages(RowListener):
    """All lineage of one owner.

    Parameters
    ----------
    table : Table
    lifecycle : Lifecycle
    log : callable
        Remembers something unusual: the row, the event and what happened.
    clock : callable
    can_keep, only_kept : callable
        Whether it is known how to run a row's task, and whether a row is there for what it
        submitted alone (`references.retention`).
    limits : Limits
    of_inline : bool
        How inline values were made is kept, too: not to make them again, but to tell.

    Attributes
    ----------
    nbytes : int
        Of all that is kept: payloads, and inline values that only lineage needs.
    pinned : set of Row
        Inline values that only lineage needs.
    given_up : set of Row
        Those whose lineage was evicted.
    evicted : int
        How many were given up to keep within the limit.
    recovered : int
        How many values were made again, or are being made.
    recoveries : deque of tuple
        When a value was there again, and how many seconds that took; the latest of them.
    """

    def __init__(
        self,
        table: Table,
        lifecycle: Lifecycle,
        *,
        log: Callable[[Row, str, str], None],
        clock: Callable[[], float],
        can_keep: Callable[[Row], bool],
        only_kept: Callable[[Row], bool],
        limits: Limits,
        of_inline: bool,
    ) -> None:
        self._table = table
        self._lifecycle = lifecycle
        self._log = log
        self._clock = clock
        self._can_keep = can_keep
        self._only_kept = only_kept
        self.limits = limits
        self.of_inline = of_inline
        if of_inline:
            lifecycle.of_all |= TRACED
        self.nbytes = 0
        self.evicted = 0
        self.recovered = 0
        self.recoveries: deque[tuple[float, float]] = deque(maxlen=RECOVERIES)
        self._since: dict[Row, float] = {}
        self.given_up: set[Row] = set()
        self.pinned: set[Row] = set()
        self._oldest: deque[Row] = deque()
        self._live = 0

    @property
    def making(self) -> int:
        """How many values are being made again."""
        return len(self._since)

    # ---- keeping ----

    def finishing(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """Keep how a stored value was made; one that is here does not need that."""
        if row.state == STORED or self.of_inline or row.roles & RETAINED:
            if row.function is not None:
                self.keep(row, arguments)
        elif row.lineage is not None:
            self.made_again(row)
            self.drop(row)  # it was made again, and travelled this time

    def failing(self, row: Row) -> None:
        """Keep how to run a task for what it submitted, before its arguments cannot be told from
        what is inside its error."""
        if row.function is not None:
            self.keep(row, row.contains)

    def ended(self, row: Row) -> None:
        """Let go of how a value was made, but for a task that failed and is kept."""
        if row.state != ERROR or not row.roles & RETAINED:
            self.drop(row)

    def forgotten(self, row: Row) -> None:
        """Let go of how its value was made."""
        self.drop(row)

    def keep(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """A task ended with a stored value, or is kept: keep how to run it.

        Call it before that is cleared. ``arguments`` are rows of the futures in its payload.
        """
        if row.lineage is not None:
            self.made_again(row)
            return
        if row.options.adopted is not None and not self._can_keep(row):
            return  # another process has what made it
        if not restarts.may(restarts.RECOVERED, row.options):
            return
        lineage = row.lineage = Lineage(row, arguments)
        row.roles |= TRACED
        self._table.retain((*lineage.dependencies, *lineage.contains))
        self.nbytes += lineage.nbytes
        self._live += 1
        self._oldest.append(row)
        if self.nbytes > self.limits.lineage_bytes:
            self._evict(row)

    def drop(self, row: Row) -> None:
        """A row needs its lineage no more."""
        lineage, row.lineage = row.lineage, None
        self._since.pop(row, None)
        self.given_up.discard(row)
        if lineage is None:
            return
        self.nbytes -= lineage.nbytes
        self._live -= 1
        if len(self._oldest) > 2 * self._live + 64:
            self._oldest = deque(r for r in self._oldest if r.lineage is not None)
        self.let_go((*lineage.dependencies, *lineage.contains))

    def made_again(self, row: Row) -> None:
        """A value that was lost, or freed when only lineage needed it, is there again."""
        since = self._since.pop(row, None)
        if since is not None:
            now = self._clock()
            self.recoveries.append((now, now - since))

    def let_go(self, rows: Sequence[Row]) -> None:
        """Each of these has one descendant less."""
        for row in rows:
            self._table.unretain(row)
            if row in self.pinned and (row.lineage_refs <= 0 or self._only_kept(row)):
                self.pinned.discard(row)
                self.nbytes -= row.nbytes
                if row.lineage_refs:
                    self.unheld(row)
        self._lifecycle.forget_unneeded(rows)

    def _evict(self, newest: Row) -> None:
        """Give up the oldest until half of what is allowed is left."""
        oldest = self._oldest
        while oldest and self.nbytes > self.limits.lineage_bytes // 2:
            row = oldest.popleft()
            if row.lineage is None:
                continue
            self.evicted += 1
            self.drop(row)
            self.given_up.add(row)
            self._log(row, "evicted", "its lineage: more than is allowed was kept")

    def why_not(self, row: Row) -> str:
        """Why a value cannot be made again."""
        if row in self.given_up:
            return (
                "its lineage was evicted, because more than ownership.lineage.max-bytes "
                f"({self.limits.lineage_bytes:,d}) of it was kept"
            )
        if row.options.adopted is not None:
            return f"it was taken over from {row.options.adopted[2]}, which left, without lineage"
        if not restarts.may(restarts.RECOVERED, row.options):
            return "its task runs at most once and is not run again to make it"
        return "it has no lineage: it was scattered, not computed"

    # ---- values that only lineage needs ----

    def unheld(self, row: Row) -> None:
        """Nobody holds the value, but it may be needed to make another again."""
        state = row.state
        again = self._can_keep(row)
        if row.lineage is None and row.roles & RETAINED and again:
            # What is inside of an error cannot be told from its arguments any more.
            again = state != ERROR or not row.contains
            if again:
                self.keep(row, row.contains)
        if self._only_kept(row) and not again and state <= ERROR:
            # It cannot run again, and what is inside of it may be what it is kept for.
            detail = f"it was freed when nobody held it, and {self.why_not(row)}"
            self._lifecycle.lose(row, detail)
        elif state == INLINE and row.lineage is None:
            if row not in self.pinned:
                self.pinned.add(row)
                self.nbytes += row.nbytes
        elif row.lineage is not None and state <= ERROR and state != DORMANT:
            self._since.pop(row, None)
            self._lifecycle.sleep(row)

    # ---- making again ----

    def recover(self, row: Row) -> bool:
        """Make a value again whose every copy is gone; False when that cannot be.

        What it needs that is dormant is made again with it.
        """
        if row.lineage is None:
            return False
        lifecycle = self._lifecycle
        lifecycle.withdraw(row)
        stack = [row]
        restored: list[Row] = []
        while stack:
            one = stack.pop()
            if one is not row and one.state != DORMANT:
                continue  # another needs it, too
            lifecycle.restore(one)
            stack.extend(d for d in one.dependencies if d.state == DORMANT and d.lineage)
            restored.append(one)
            whom = "" if one is row else f", for {row.key!r}"
            self._log(one, "recovered", f"it is made again from its lineage{whom}")
            self._since[one] = self._clock()
        self.recovered += len(restored)
        for one in restored:
            if one.state == WAITING:
                lifecycle.wait(one)
        return True
