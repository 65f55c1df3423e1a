"""Lineage: how to make a stored value again.

A value that travelled to the owner is safe there. A value that stays at a worker is lost with
the worker. So the row of a stored value keeps the task that made the value (`Lineage`), for as
long as a process may ask for the value. The lineage also keeps the rows of the task's inputs;
`Row.lineage_refs` counts the lineages that keep a row (and the processes, see
`references.retention`). Lineage keeps rows and not values: a stored value that only lineage needs
is freed, and the row is `DORMANT` until the value has to be made again.

The owner counts the bytes of all lineage, and evicts the oldest lineage when the bytes exceed a
limit.
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
from dask_ownership.core.protocol.names import NAME
from dask_ownership.core.protocol.states import DORMANT, ERROR, INLINE, STORED, WAITING

RECOVERIES = 50
"""How many of the latest recoveries are remembered, with their durations."""


class Lineages(RowListener):
    """Keeps all lineage of one owner, and makes lost values again.

    The counts that people see are kept here as well: hence the many attributes.

    Parameters
    ----------
    table : Table
        Counts the lineage references.
    lifecycle : Lifecycle
        Takes rows from state to state.
    log : callable
        Remembers an unusual event: the row, the event and a text.
    clock : callable
        The time in seconds.
    can_keep, only_kept : callable
        Whether the owner knows how to run a row's task, and whether a row is kept for its
        children alone (`references.retention`).
    limits : Limits
        ``lineage_bytes`` limits the bytes of all lineage.
    of_inline : bool
        Whether inline values have a lineage too. The lineage of an inline value makes nothing
        again: `recreate_task_locally` reads it.

    Attributes
    ----------
    nbytes : int
        Bytes of all lineage: payloads, `OVERHEAD` per row, and pinned values.
    pinned : set of Row
        Rows of inline values that only lineage needs.
    given_up : set of Row
        Rows whose lineage was evicted.
    evicted : int
        How many lineages were evicted to keep within the limit.
    recovered : int
        How many values were made again, or are being made again.
    recoveries : deque of tuple
        For the latest `RECOVERIES` values made again: the time at which the value was back, and
        how many seconds the recovery took.
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
        # By row: the time at which the making again began.
        self._since: dict[Row, float] = {}
        self.given_up: set[Row] = set()
        self.pinned: set[Row] = set()
        # Rows in the order in which lineage was kept. Some have no lineage any more; ``_live``
        # counts the rest.
        self._oldest: deque[Row] = deque()
        self._live = 0

    @property
    def making(self) -> int:
        """Return how many values are being made again now."""
        return len(self._since)

    # ---- keeping ----

    def finishing(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """Keep the lineage of a stored value, and drop the lineage of an inline value.

        An inline value has a lineage only when ``of_inline`` is set or the row is kept for its
        children.
        """
        if row.state == STORED or self.of_inline or row.roles & RETAINED:
            if row.function is not None:
                self.keep(row, arguments)
        elif row.lineage is not None:
            self.made_again(row)
            self.drop(row)  # the value was made again, and travelled to the owner this time

    def failing(self, row: Row) -> None:
        """Keep the lineage of a failing task that is kept for its children.

        After this moment ``row.contains`` mixes the futures of the arguments with the futures of
        the error, so the arguments could not be told apart.
        """
        if row.function is not None:
            self.keep(row, row.contains)

    def ended(self, row: Row) -> None:
        """Drop the lineage of an ended row, unless the task failed and is kept for its children."""
        if row.state != ERROR or not row.roles & RETAINED:
            self.drop(row)

    def forgotten(self, row: Row) -> None:
        """Drop the lineage of a forgotten row."""
        self.drop(row)

    def keep(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """Give a row a `Lineage`: its task made a stored value, or is kept for its children.

        The caller calls this while the row still has the task's function, payload and
        dependencies. ``arguments`` are the rows of the futures in the payload.
        """
        if row.lineage is not None:
            self.made_again(row)
            return
        if row.options.adopted is not None and not self._can_keep(row):
            return  # the task that made the value is at the process that handed the object over
        if not restarts.may(restarts.RECOVERED, row.options):
            return
        lineage = row.lineage = Lineage(row, arguments)
        row.roles |= TRACED
        # Inputs stay in the table, so that their values can be made again as well.
        self._table.retain((*lineage.dependencies, *lineage.contains))
        self.nbytes += lineage.nbytes
        self._live += 1
        self._oldest.append(row)
        if self.nbytes > self.limits.lineage_bytes:
            self._evict(row)

    def drop(self, row: Row) -> None:
        """Take a row's lineage away, and release the rows of the task's inputs."""
        lineage, row.lineage = row.lineage, None
        self._since.pop(row, None)
        self.given_up.discard(row)
        if lineage is None:
            return
        self.nbytes -= lineage.nbytes
        self._live -= 1
        # To remove one row costs a walk through the deque. So rows without lineage stay until
        # they are more than half of it.
        if len(self._oldest) > 2 * self._live + 64:
            self._oldest = deque(r for r in self._oldest if r.lineage is not None)
        self.let_go((*lineage.dependencies, *lineage.contains))

    def made_again(self, row: Row) -> None:
        """Take note that a lost or dormant value is back, and of how long the recovery took."""
        since = self._since.pop(row, None)
        if since is not None:
            now = self._clock()
            self.recoveries.append((now, now - since))

    def let_go(self, rows: Sequence[Row]) -> None:
        """Take one lineage reference from each row, and forget rows that nothing counts then."""
        for row in rows:
            self._table.unretain(row)
            if row in self.pinned and (row.lineage_refs <= 0 or self._only_kept(row)):
                self.pinned.discard(row)
                self.nbytes -= row.nbytes
                if row.lineage_refs:
                    # The row is kept for its children alone, and they do not need its value.
                    self.only_lineage_left(row)
        self._lifecycle.forget_unneeded(rows)

    def _evict(self, newest: Row) -> None:
        """Evict the oldest lineage until half of the allowed bytes is left.

        ``newest`` is the row whose lineage exceeded the limit.
        """
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
        """Return the reason, as text, why the value of a row cannot be made again."""
        if row in self.given_up:
            return (
                "its lineage was evicted, because more than ownership.lineage.max-bytes "
                f"({self.limits.lineage_bytes:,d}) of it was kept"
            )
        if row.options.adopted is not None:
            return (
                f"it was taken over from {row.options.adopted[NAME]}, which left, without lineage"
            )
        if not restarts.may(restarts.RECOVERED, row.options):
            return "its task runs at most once and is not run again to make it"
        return "it has no lineage: it was scattered, not computed"

    # ---- values that only lineage needs ----

    def only_lineage_left(self, row: Row) -> None:
        """Free the value of a row that only lineage references keep, if a task can make it again.

        An inline value without lineage stays, and counts as bytes of lineage. A row that is kept
        for its children alone, and whose task cannot run again, is lost.
        """
        state = row.state
        again = self._can_keep(row)
        if row.lineage is None and row.roles & RETAINED and again:
            # In a failed row the futures of the arguments are mixed with those of the error.
            again = state != ERROR or not row.contains
            if again:
                self.keep(row, row.contains)
        if self._only_kept(row) and not again and state <= ERROR:
            # The task cannot run again, so keeping the row helps no child. And the value may
            # contain the future of the very child that the row is kept for: a ring.
            detail = f"it was freed when nobody held it, and {self.why_not(row)}"
            self._lifecycle.lose(row, detail)
        elif state == INLINE and row.lineage is None:
            if row not in self.pinned:
                self.pinned.add(row)
                self.nbytes += row.nbytes
        elif row.lineage is not None and state <= ERROR and state != DORMANT:
            self._since.pop(row, None)  # a recovery under way is given up
            self._lifecycle.sleep(row)

    # ---- making again ----

    def recover(self, row: Row) -> bool:
        """Make a lost or dormant value again, and the dormant inputs of its task with it.

        Return False when the row has no lineage.
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
                continue  # another row of this recovery needs the input too, and has restored it
            lifecycle.restore(one)
            stack.extend(d for d in one.dependencies if d.state == DORMANT and d.lineage)
            restored.append(one)
            whom = "" if one is row else f", for {row.key!r}"
            self._log(one, "recovered", f"it is made again from its lineage{whom}")
            self._since[one] = self._clock()
        self.recovered += len(restored)
        # Only now, when all rows of the recovery wait: a row with nothing to wait for goes on at
        # once, and may end other rows of the recovery.
        for one in restored:
            if one.state == WAITING:
                lifecycle.wait(one)
        return True
