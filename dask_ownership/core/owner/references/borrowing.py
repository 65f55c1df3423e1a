"""Borrowing: a process has futures of objects that other processes own.

A borrowed object has a row (`Borrowed`) in the borrower's table. Futures wait for the row, and
tasks use the row, as any other row. The state of a borrowed row is what the owner said last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dask_ownership.core.owner.references.acknowledgements import Acknowledgements, Both
from dask_ownership.core.owner.references.peers import Peer, Peers
from dask_ownership.core.owner.rows.failure_counts import LOST_DATA, OWNER_LOST, OWNERS_GONE
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.limits import Limits
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.retries import revive
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Origin, OwnerRef, Process
from dask_ownership.core.protocol.names import (
    HEIR,
    INCARNATION,
    KEY,
    LIFE,
    NAME,
    Path,
    adopted_key,
    heir_of,
    holder_ref,
    is_adopted,
    owner_ref_of,
    owners_of,
    path_from,
    process_of,
)
from dask_ownership.core.protocol.outcomes import (
    InlineValue,
    NoValue,
    Outcome,
    Sent,
    StoredValue,
    TaskError,
    read_outcome,
)
from dask_ownership.core.protocol.peer_messages import (
    ADOPT,
    BORROW,
    BORROW_ACK,
    BORROW_RELEASE,
    FREED,
    MOVED,
    REQUEST,
    VALUE_UPDATE,
)
from dask_ownership.core.protocol.states import (
    CANCELLED,
    ERROR,
    FORGOTTEN,
    INLINE,
    LOST,
    STORED,
    WAITING,
)

MISSES = 20
"""How often in succession all locations of a borrowed value may fail, before the value is lost."""


class Borrowing(RowListener):
    """Borrows objects for one process, and takes in what their owners say.

    The class is a listener, a set of handlers for three messages of owners, and the calls by which
    futures come and go. They change the same state of a borrowed row: hence the number of
    methods.

    Parameters
    ----------
    lifecycle : Lifecycle
    peers : Peers
    hold_inside : callable
        Takes over the objects of futures inside a borrowed value, when this process is the
        holder, and returns their rows; else returns None.
    limits : Limits
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        peers: Peers,
        hold_inside: Callable[[Iterable[Origin]], tuple[Row, ...] | None],
        limits: Limits,
    ) -> None:
        self._lifecycle = lifecycle
        self._table = lifecycle.table
        self._peers = peers
        self._hold_inside = hold_inside
        self._limits = limits
        handlers = peers.handlers
        handlers[BORROW_ACK] = self._on_borrow_ack
        handlers[VALUE_UPDATE] = self._on_value_update
        handlers[MOVED] = self._on_moved
        peers.when_gone.append(self._on_gone)

    # ---- borrowing and giving back ----

    def arrive(self, origin: Origin) -> tuple[Row, bool]:
        """Return the row of a future that was unpickled here, with one local reference more.

        Any thread. When this process owned the object and freed it, the row is `LOST` and not in
        the table.

        Returns
        -------
        Row, bool
            The second says whether the row is new: then the caller submits the row.
        """
        key = origin[KEY]
        table = self._table
        if origin[INCARNATION] == self._peers.process[INCARNATION]:
            row = table.find(key, life=origin[LIFE])
            if row is not None:
                return row, False
            # Not here, not handed over and not held elsewhere: the object was freed.
            if key not in self._table.moved and holder_ref(origin) is None:
                name = self._peers.process[NAME]
                if self._peers.left:
                    failure = Failure("closed", key, f"its client {name} is closed, which freed it")
                else:
                    detail = f"its owner {name} freed it: nobody held it"
                    failure = Failure("lost-data", key, detail)
                return Row.without_value(key, LOST, failure), False
        made = self._borrowed(origin)
        row = table.adopt(made)
        return row, row is made

    def _borrowed(self, origin: Origin) -> Borrowed:
        """Return a new row for a borrowed object, which may be held or have been handed over."""
        made = Borrowed(origin)
        held = holder_ref(origin)
        if held is not None:
            made.owner_ref = held
        elif origin[INCARNATION] == self._peers.process[INCARNATION]:
            made.owner_ref = self._table.moved[origin[KEY]]
        return made

    def held_elsewhere(self, row: Row, origin: Origin) -> OwnerRef | None:
        """Return where an object is held, as ``origin`` says, if the row is borrowed elsewhere.

        A row may have been borrowed from the first owner before the object was held.
        """
        held = holder_ref(origin)
        if held is None or not isinstance(row, Borrowed) or owner_ref_of(row.owner_ref) == held:
            return None
        return held

    def rows_of(self, origins: Iterable[Origin]) -> tuple[Row, ...]:
        """Return rows of futures that arrived inside a value, each with one task reference more.

        Objects that this process owned and freed are left out; `arrive` says so to their futures.
        """
        table = self._table
        rows: list[Row] = []
        new: list[Borrowed] = []
        for origin in origins:
            if origin[INCARNATION] == self._peers.process[INCARNATION]:
                row = table.find_for_task(origin[KEY], origin[LIFE])
                if row is not None:
                    row.shared_with(None)  # cancelling the parent does not cancel the row any more
                    self._lifecycle.wake(row)
                    rows.append(row)
                    continue
                if origin[KEY] not in self._table.moved and holder_ref(origin) is None:
                    continue
            made = self._borrowed(origin)
            if made.owner_ref[INCARNATION] == self._peers.process[INCARNATION] and (
                row := table.find_for_task(made.owner_ref[KEY])
            ):
                rows.append(row)  # this process holds the object, as a row of its own
                continue
            adopted = table.adopt_for_task(made)
            if adopted is made:
                new.append(made)
            elif (owner_ref := self.held_elsewhere(adopted, origin)) is not None:
                assert isinstance(adopted, Borrowed)
                self.borrow_at(adopted, owner_ref)
            rows.append(adopted)
        for made in new:
            self.borrow(made)
        return tuple(rows)

    def borrow(self, row: Borrowed) -> None:
        """Have the owner of a new or moved row count this process as a borrower (`BORROW`)."""
        owner_ref = row.owner_ref
        peer = self._peers.known.get(owner_ref[INCARNATION]) or self._peers.peer(
            process_of(owner_ref)
        )
        if peer.gone:
            self._ask_heir(row)
            return
        # The same as `_borrow_from` and `Peers.say`, without the calls: one value may contain very
        # many futures.
        lifecycle = self._lifecycle
        lifecycle.numbers += 1
        row.attempt = lifecycle.numbers
        peer.borrowed[row.attempt] = row
        if row.path is None:
            # A life is a number of the first owner. A new owner does not know the number.
            life = row.origin[LIFE] if owner_ref is row.origin else 0
            peer.outbox.append((BORROW, owner_ref[KEY], row.attempt, life))
        else:
            peer.outbox.append((BORROW, owner_ref[KEY], row.attempt, 0, row.path, ""))
        self._peers.talking[owner_ref[INCARNATION]] = peer

    def _borrow_from(self, peer: Peer, row: Borrowed) -> None:
        """Give a row the number of a new borrowing from a peer."""
        self._lifecycle.numbers += 1
        row.attempt = self._lifecycle.numbers
        peer.borrowed[row.attempt] = row

    def adopt_at_heir(self, row: Borrowed, origin: Origin, pinned: bool) -> None:
        """Ask an heir to take ``origin`` over (`ADOPT`); ``row`` borrows the heir's object."""
        peer = self._peers.peer(process_of(row.owner_ref))
        self._borrow_from(peer, row)
        self._peers.say(peer, (ADOPT, row.owner_ref[KEY], row.attempt, origin, pinned))

    def borrow_at(self, row: Borrowed, owner_ref: OwnerRef) -> None:
        """Borrow a row from ``owner_ref``, where the object is for certain.

        The process at ``owner_ref`` may have freed the object once, and have it again.
        """
        if owner_ref_of(row.owner_ref) != owner_ref:
            peer = self._peers.peer(process_of(row.owner_ref))
            if peer.borrowed.get(row.attempt) is row:
                row.acknowledged = False  # until the process at ``owner_ref`` counts this process
                self._moved(peer, row, owner_ref, None, None)

    def forgotten(self, row: Row) -> None:
        """Give back a borrowed row that nothing in this process needs any more."""
        if isinstance(row, Borrowed):
            self.give_back(row)

    def give_back(self, row: Borrowed) -> None:
        """Tell the owner of a row that the borrowing has ended (`BORROW_RELEASE`)."""
        peer = self._peers.known.get(row.owner_ref[INCARNATION])
        key = row.owner_ref[KEY]
        if peer is not None:
            peer.borrowed.pop(row.attempt, None)
            if row.attempt:
                self._peers.say(peer, (BORROW_RELEASE, key, row.attempt))
        # An acknowledgement does not come any more: nothing has to wait for it.
        self._acknowledged(row)

    # ---- acknowledged borrowings ----

    def when_acknowledged(self, rows: Iterable[Row], call: Callable[[], None]) -> None:
        """Call ``call`` when the owner of each borrowed row counts this process as a borrower.

        Forgotten rows do not matter. With nothing to wait for, the call comes at once.
        """
        waiting = [
            row
            for row in rows
            if row.borrowed and isinstance(row, Borrowed) and not row.acknowledged
            and row.state != FORGOTTEN
        ]  # fmt: skip
        if not waiting:
            call()
            return
        awaited = Acknowledgements(len(waiting), call)
        for row in waiting:
            # There may be very many rows, each with hardly ever more than one call. So there is
            # no list per row.
            before = row.when_acknowledged
            row.when_acknowledged = awaited if before is None else Both(before, awaited)

    def hold_until_acknowledged(self, outer: Row, rows: Iterable[Row]) -> None:
        """Keep ``outer``, whose value contained ``rows``, until their owners count this process.

        The futures inside a value are kept as long as a process has the value.
        """
        if outer.state == FORGOTTEN:
            return
        self._table.add_task_refs((outer,))
        self.when_acknowledged(rows, lambda: self._lifecycle.release_task_refs((outer,)))

    def inside_result(
        self, view: WorkerView, row: Row, inside: Iterable[Origin]
    ) -> tuple[Row, ...]:
        """Return the rows of the futures inside a result, for the row of the result to keep.

        The worker keeps the futures too, until this process says that it is counted for all of
        them (`REFS_COUNTED`).
        """
        inner = self.rows_of(inside)
        self.when_acknowledged(inner, refs_counted(view, row.key, row.attempt))
        # A row that contains its own future would never be freed.
        if row in inner:
            self._lifecycle.release_task_refs([r for r in inner if r is row])
            inner = tuple([r for r in inner if r is not row])
        return inner

    def _acknowledged(self, row: Borrowed) -> None:
        """Mark a row as acknowledged: release the borrowings before, and call what waits."""
        row.acknowledged = True
        if row.returns is not None:
            returns, row.returns = row.returns, None
            for peer, key, number in returns:
                self._peers.say(peer, (BORROW_RELEASE, key, number))
        if row.when_acknowledged is not None:
            waiting, row.when_acknowledged = row.when_acknowledged, None
            waiting.one_acknowledged()

    # ---- requests to owners ----

    def request(self, row: Borrowed, what: str, detail: Any) -> None:
        """Ask the owner of a row to ``cancel`` or ``retry`` the row, to find a ``missed`` value
        elsewhere, or to ``follow`` what the row waits for (`REQUEST`)."""
        if not row.attempt and row.state == WAITING:
            self.borrow(row)  # the row is not submitted yet, and owners listen to borrowers only
        self._peers.say(
            self._peers.peer(process_of(row.owner_ref)),
            (REQUEST, what, row.owner_ref[KEY], row.attempt, detail),
        )

    def retry(self, row: Borrowed) -> None:
        """Ask the owner of a failed row to try the task again, and have the row wait here."""
        self.request(row, "retry", "")
        if row.state == ERROR and not self._peers.peer(process_of(row.owner_ref)).gone:
            self._waits_again(row)

    def _waits_again(self, row: Borrowed) -> None:
        """Have a failed row, and all rows that failed with it, wait for the owner's next try."""
        inside, row.contains = row.contains, ()
        revive(self._lifecycle, [row])
        self._lifecycle.release_task_refs(inside)

    def missed(self, row: Borrowed, addresses: Iterable[str]) -> None:
        """Ask the owner for other locations: workers at ``addresses`` do not have the value."""
        if row.state != STORED:
            return
        row.misses += 1
        if row.misses > MISSES:
            addresses = ", ".join(row.addresses)
            self._lifecycle.losses[LOST_DATA] += 1
            self._lose(row, "lost-data", f"its locations {addresses} do not have it any more")
            return
        self._lifecycle.wait_for_owner(row)
        self.request(row, "missed", tuple(addresses))

    # ---- messages of owners ----

    def _on_borrow_ack(self, peer: Peer, key: Key, number: int, sent: Sent | None) -> None:
        """Handle BORROW_ACK: the owner counts this process, and tells the outcome."""
        row = peer.borrowed.get(number)
        if row is not None and row.owner_ref[KEY] == key:
            self._told(peer, row, sent, True)

    def _on_value_update(self, peer: Peer, key: Key, number: int, sent: Sent | None) -> None:
        """Handle VALUE_UPDATE: the outcome of a borrowed row changed."""
        row = peer.borrowed.get(number)
        if row is not None and row.owner_ref[KEY] == key:
            self._told(peer, row, sent, False)

    def _on_moved(
        self,
        peer: Peer,
        key: Key,
        number: int,
        owner_ref: OwnerRef,
        sent: Sent | None,
        path: Path | None,
    ) -> None:
        """Handle MOVED: the object of a borrowed row has another owner."""
        row = peer.borrowed.get(number)
        if row is not None:
            self._moved(peer, row, owner_ref, sent, path)

    def _told(self, peer: Peer, row: Borrowed, sent: Sent | None, counts: bool) -> None:
        """Take in an outcome from the owner of a borrowed row; None while there is no value.

        ``counts`` says that the owner counts this process from now on (`BORROW_ACK`).
        """
        if sent is not None:
            outcome = read_outcome(sent)
            if (
                isinstance(outcome, NoValue)
                and outcome.kind == FREED
                and self._asks_heir_instead(peer, row, outcome.detail)
            ):
                return
            if row.state == ERROR and not counts:
                self._waits_again(row)  # the owner tried the task again, or cancelled it
            self._take_in(row, outcome)
        elif row.state == STORED:
            # The value was lost, and is made again.
            self._lifecycle.wait_for_owner(row)
            row.addresses = ()
        elif row.state == ERROR and not counts:
            self._waits_again(row)
        if counts and (row.returns or not row.acknowledged):
            self._acknowledged(row)

    def _take_in(self, row: Borrowed, outcome: Outcome) -> None:
        """Bring a row to the state of an outcome, if that is later than the state of the row."""
        lifecycle = self._lifecycle
        if isinstance(outcome, StoredValue) and row.state == STORED:
            if row.made_by == outcome.made_by:
                row.addresses = tuple(outcome.addresses)  # the same value, at other locations
                return
            lifecycle.wait_for_owner(row)  # the value was made again, and may be another value
        # An end stays, but for a stored value that is lost, and an inline value that is cancelled.
        had, state = row.state, outcome.state
        ends = (had == STORED and state > STORED) or (had == INLINE and state == CANCELLED)
        if had >= INLINE and not ends:
            return
        if isinstance(outcome, InlineValue):
            row.version = self._next_version()
            row.freed = None
            row.contains = self._came_with(row, outcome.inside)
            lifecycle.finish_borrowed(row, INLINE, outcome.pickled, len(outcome.pickled))
        elif isinstance(outcome, StoredValue):
            addresses = tuple(outcome.addresses)
            if outcome.made_by != row.made_by or addresses != row.addresses:
                row.misses = 0  # the owner found the value elsewhere, or made it again
            row.survived = ()
            row.freed = None
            row.type_name = outcome.type_name
            row.addresses = addresses
            row.made_by = outcome.made_by
            row.version = self._next_version()
            lifecycle.finish_borrowed(row, STORED, None, outcome.nbytes)
        elif isinstance(outcome, TaskError):
            row.contains = self._came_with(row, outcome.inside)
            lifecycle.end_with_dependents(row, ERROR, outcome.pickled)
        else:
            self._take_in_failure(row, outcome)

    def _take_in_failure(self, row: Borrowed, outcome: NoValue) -> None:
        """End a row for the reason of its owner, in words that mean something here."""
        lifecycle = self._lifecycle
        if row.freed is not None:
            # The heirs could not make the object again: the row ends for the first reason.
            lifecycle.end_with_dependents(row, outcome.state, row.freed)
            return
        state, kind, name, detail, chain = outcome
        kind = "lost-data" if kind == FREED else kind
        if is_adopted(name):
            # The key at the heir means nothing to people, and the first key does.
            name = row.origin[KEY]
            detail = f"its owner {row.origin[NAME]} is gone; {detail}"
        if kind == "owner-lost":
            lifecycle.losses[OWNER_LOST] += 1
            if not chain:
                chain = owners_of(row.origin)
                if row.owner_ref[INCARNATION] != row.origin[INCARNATION]:
                    detail = f"{row.owner_ref[NAME]} says: {detail}"
        failure = Failure(kind, name, detail, chain=tuple(chain))
        lifecycle.end_with_dependents(row, state, failure)

    def _next_version(self) -> int:
        """Return a number by which workers of this process tell a new value from older ones."""
        self._lifecycle.numbers += 1
        return self._lifecycle.numbers

    def _came_with(self, row: Borrowed, origins: Iterable[Origin]) -> tuple[Row, ...]:
        """Return the rows of the futures inside a borrowed value or error.

        ``row``, whose value or error came, is kept until the futures are acknowledged.
        """
        held = self._hold_inside(origins)
        if held is None:
            inner = borrowed = self.rows_of(origins)
        else:
            # The holder has rows of its own, each of which waits for a borrowed row.
            inner = held
            borrowed = tuple(source for one in held for source in one.dependencies)
        if borrowed:
            self.hold_until_acknowledged(row, borrowed)
        return inner

    def _moved(
        self, peer: Peer, row: Borrowed, ref: OwnerRef, sent: Sent | None, path: Path | None
    ) -> None:
        """Borrow a row from its new owner at ``ref``, which looks for the object along ``path``.

        Without a path the new owner has the object already.
        """
        del peer.borrowed[row.attempt]
        # The old owner goes on counting this process, until the new owner does (`_acknowledged`).
        row.returns = [*(row.returns or ()), (peer, row.owner_ref[KEY], row.attempt)]
        row.owner_ref = ref
        row.path = path
        row.freed = None
        if sent is not None:
            self._take_in(row, read_outcome(sent))
        self.borrow(row)
        if ref[INCARNATION] == self._peers.process[INCARNATION]:
            self._is_own_now(row)

    def _is_own_now(self, row: Borrowed) -> None:
        """Handle a borrowed row whose object this process itself has taken over.

        The failed task is not here: a retry of the own row, an alias, would wait for itself.
        """
        own = self._table.rows.get(row.owner_ref[KEY])
        if own is None or own.options.adopted is None:
            return
        if own.state == ERROR and own.function is not None:
            self._lifecycle.cannot_be_retried(own)

    # ---- owners that are gone ----

    def _on_gone(self, peer: Peer) -> None:
        """Ask heirs for all objects that were borrowed from a dead peer."""
        borrowed = list(peer.borrowed.values())
        if borrowed:
            self._lifecycle.losses[OWNERS_GONE] += 1
        peer.borrowed.clear()
        for row in borrowed:
            self._ask_heir(row)

    def _ask_heir(self, row: Borrowed) -> None:
        """Borrow a row from the nearest living heir, because the owner is gone.

        Without an heir the row ends as ``owner-lost``, unless the row has a final outcome.
        """
        level = None
        if row.state < INLINE:
            # The same owner may come twice: a process that has not heard of the death named the
            # dead owner once more.
            row.survived += (row.owner_ref[NAME],)
            # The task that makes the object may be the cause of the deaths. No process can tell, as
            # with a task that is never alone when its worker dies: four times as many may die.
            if len(row.survived) > 4 * (self._limits.allowed_failures + 1):
                names = ", ".join(row.survived)
                self._lose(row, "owner-lost", f"those who owned it died before it ended: {names}")
                self._acknowledged(row)
                return
        if row.state < INLINE or row.state == STORED:
            level = heir_of(row.origin, lambda process: self._peers.peer(process).gone)
        if level is None:
            # A row with an inline value or an error keeps it (`_take_in`).
            self._lose(row, "owner-lost", "no process lives that led to it")
            self._acknowledged(row)
            return
        gone = row.owner_ref[INCARNATION]
        heir = process_of(level)
        key = adopted_key(row.origin)
        if self._is_made_of(row, heir):
            # Under another key, or the own object and this row would wait for each other.
            key = ("asked", *key[1:])  # type: ignore[index]
        row.owner_ref = (*heir, key)
        row.path = path_from(row.origin, level)
        self._lifecycle.wait_for_owner(row)
        row.addresses = ()
        peer = self._peers.peer(heir)
        self._borrow_from(peer, row)
        self._peers.say(peer, (BORROW, key, row.attempt, 0, row.path, gone))

    def _is_made_of(self, row: Borrowed, heir: Process) -> bool:
        """Return whether this process is the heir, and its own row still waits for ``row``."""
        if heir[INCARNATION] != self._peers.process[INCARNATION]:
            return False
        own = self._table.rows.get(adopted_key(row.origin))
        return own is not None and own.state < INLINE

    def _asks_heir_instead(self, peer: Peer, row: Borrowed, detail: str) -> bool:
        """Handle FREED: the owner dropped the object before the BORROW of this process arrived.

        Return True if an heir is asked instead. This happens only when the process that passed
        the future on died or was frozen, so that its value was made again elsewhere: any other
        process keeps the object until the owner counts the borrower. A later owner, which
        took the object over, may say FREED too. A row with a ``path`` asks an heir already.
        """
        if row.acknowledged or row.path is not None or row.origin[HEIR] is None:
            return False
        del peer.borrowed[row.attempt]
        row.freed = Failure("lost-data", row.origin[KEY], detail)
        self._ask_heir(row)
        return True

    def _lose(self, row: Borrowed, kind: str, reason: str) -> None:
        """End a row as lost, for a reason that this process has found itself."""
        detail = f"{reason}; it was borrowed from {row.origin[NAME]}"
        self._take_in(row, NoValue(LOST, kind, row.origin[KEY], detail, ()))


def refs_counted(view: WorkerView, name: Key, attempt: int) -> Callable[[], None]:
    """Return a function that tells a worker that the futures kept under a name are counted."""

    def tell() -> None:
        if view.alive:
            view.outbox.append((m.REFS_COUNTED, name, attempt))

    return tell
