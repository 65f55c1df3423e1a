"""What one process owns and others borrow.

The rule that keeps values from being freed early: **nobody lets go of what it holds for
another until the owner has counted that other.** Whoever sends a value with futures in
it keeps them until the receiver says that it is counted everywhere (`Borrowing.when_acknowledged`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from dask_ownership.core.owner.references.peers import Peer, Peers
from dask_ownership.core.owner.rows.history import History
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import HAS_BORROWERS, QUESTION, Borrowed, Function, Row
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, OwnerRef
from dask_ownership.core.protocol.names import Path, is_adopted
from dask_ownership.core.protocol.peer_messages import (
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
    DORMANT,
    ERROR,
    FORGOTTEN,
    INLINE,
    LOST,
    STORED,
    WAITING,
)

SECOND = "\0"
"""Between a process and the number of a borrowing, in the name of its second one of a row."""

NOBODY: dict[str, int] = {}

Outcome: TypeAlias = tuple[Any, ...]
"""State, and what belongs to it: see `Lending.outcome_of`."""


class Lending(RowListener):
    """The borrowers of one owner's objects.

    Parameters
    ----------
    lifecycle : Lifecycle
    peers : Peers
    history : History
    missed : callable
        Told of a stored row and of addresses that do not have it.
    ask : callable
        Has what is not in the table looked for: a key, and the path to it. Returns its row.
    asked_again : callable
        Told of a peer that borrows a row which is looked for: also the number of the borrowing,
        and the incarnation that the peer says is gone.
    delegated : callable
        Told of a row that waits for the task to which it delegated, and that is lent.
    alias : Function
        The function of such rows.

    Attributes
    ----------
    borrowers : dict
        Row to the incarnations of processes that borrow it and the numbers of those borrowings.
    requests : dict of str to callable
        What a borrower may request, to what does it: a row and a detail.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        peers: Peers,
        history: History,
        *,
        missed: Callable[[Row, Iterable[str]], None],
        ask: Callable[[Key, Path], Row],
        asked_again: Callable[[Peer, Row, int, str], None],
        delegated: Callable[[Row], object],
        alias: Function,
    ) -> None:
        self._lifecycle = lifecycle
        self._table = lifecycle.table
        self._peers = peers
        self._history = history
        self._missed = missed
        self._ask = ask
        self._asked_again = asked_again
        self._delegated = delegated
        self._alias = alias
        self.requests: dict[str, Callable[[Row, Any], None]] = {}
        # Of strings and numbers only: the cyclic collector need not walk it.
        self.borrowers: dict[Row, dict[str, int]] = {}
        handlers = peers.handlers
        handlers[BORROW] = self.lend
        handlers[BORROW_RELEASE] = self._on_return
        handlers[REQUEST] = self._on_request
        peers.when_buried.append(self._on_buried)

    # ---- what becomes of a row ----

    def finished(self, row: Row) -> None:
        """A row that is lent has a value."""
        if row in self.borrowers:
            self.tell(row)

    def ended(self, row: Row) -> None:
        """A row that is lent has no value."""
        if row in self.borrowers:
            self.tell(row)

    def locations_changed(self, row: Row) -> None:
        """Other workers have the value of a row that is lent."""
        if row in self.borrowers:
            self.tell(row)

    def withdrawn(self, row: Row) -> None:
        """A row that is lent lost its value, which is made again: borrowers wait for it."""
        if row.state == STORED:
            count = len(self.borrowers.get(row, NOBODY))
            self._lifecycle.log(row, "withdrawn", f"from {count} borrowers, which wait")
        for peer, number in self.borrowers_of(row):
            self._peers.say(peer, (VALUE_UPDATE, row.key, number, None))

    def outcome_of(self, row: Row) -> Outcome | None:
        """What a borrower is told of a row; None while it has not ended."""
        state = row.state
        if state < INLINE:
            return None
        if state == INLINE:
            return (INLINE, row.value, tuple([self._table.origin_of(r) for r in row.contains]))
        if state == STORED:
            if row.borrowed:
                assert isinstance(row, Borrowed)
                addresses, made_by = row.addresses, row.made_by
            else:
                addresses = tuple([view.address for view in row.locations])
                made_by = row.attempt
            return (STORED, row.nbytes, row.type_name, addresses, made_by)
        value = row.value
        if isinstance(value, bytes):
            return (ERROR, value, tuple([self._table.origin_of(r) for r in row.contains]))
        if isinstance(value, Failure):
            return (state, value.kind, value.key, value.detail, value.chain)
        return (LOST, "lost-data", row.key, "it was freed", ())

    def borrowers_of(self, row: Row) -> list[tuple[Peer, int]]:
        """Who borrows a row of this process, with the numbers of those borrowings."""
        peers = self._peers.known
        return [
            (peers[incarnation], number)
            for name, number in self.borrowers.get(row, NOBODY).items()
            if (incarnation := name.partition(SECOND)[0]) in peers
        ]

    def tell(self, row: Row) -> None:
        """A row that is lent ended, or has other holders: say so."""
        outcome = self.outcome_of(row)
        for peer, number in self.borrowers_of(row):
            self._peers.say(peer, (VALUE_UPDATE, row.key, number, outcome))

    def say_moved(
        self,
        peer: Peer,
        key: Key,
        number: int,
        place: OwnerRef,
        outcome: Outcome | None,
        path: Path | None = None,
    ) -> None:
        """Tell a borrower who owns it now."""
        self._peers.say(peer, (MOVED, key, number, place, outcome, path))

    # ---- borrowers ----

    def lend(
        self,
        peer: Peer,
        key: Key,
        number: int,
        life: int = 0,
        path: Path | None = None,
        gone: str = "",
    ) -> None:
        """A process borrows an object: count it, and say how the object stands."""
        row = self._table.use(key, life)
        if row is None and path is not None:
            row = self._ask(key, tuple(path))
        if row is None:
            moved = self._table.moved.get(key)
            if moved is not None:
                self.say_moved(peer, key, number, moved, None)
                return
            self._peers.say(peer, (BORROW_ACK, key, number, self._outcome_of_gone(key, life)))
            return
        # All borrowers together are one use.
        borrowers = self.borrowers.get(row)
        had_some = borrowers is not None
        if borrowers is None:
            borrowers = self.borrowers[row] = {}
            row.roles |= HAS_BORROWERS
        if (key, number) not in peer.lent:
            name = peer.process[0]
            if name in borrowers:
                name = f"{name}{SECOND}{number}"
            borrowers[name] = number
        if row.options.parent is not None:
            row.shared_with(None)
        if row.state == DORMANT:
            self._lifecycle.wake(row)
        peer.lent[key, number] = row
        if row.state == INLINE and not row.contains:
            outcome: Outcome | None = (INLINE, row.value, ())
        else:
            outcome = self.outcome_of(row)
        self._peers.say(peer, (BORROW_ACK, key, number, outcome))
        if row.roles & QUESTION:
            self._asked_again(peer, row, number, gone)
        # Only a task that has run can have delegated; others of this kind wait for others' values.
        if row.attempt and row.state == WAITING and row.function is self._alias:
            self._delegated(row)  # now that somebody waits for it
        if had_some:
            self._lifecycle.release_uses((row,))

    def _outcome_of_gone(self, key: Key, life: int = 0) -> Outcome:
        """What is told to one that asks for what is not in the table any more.

        Of a key that was used again, that of this life of it; of any when that is 0.
        """
        name = self._peers.process[2]
        another = life and (key, life) not in self._lifecycle.cancelled_lives
        for event, detail in () if another else self._history.of(key):
            if event == "cancelled":
                return (CANCELLED, "cancelled", key, detail, ())
        if not is_adopted(key):
            detail = f"{name} freed it: nobody held it when this process asked for it"
            return (LOST, FREED, key, detail, ())
        detail = (
            f"{name}, which owns the task that submitted it, has not taken it over, or has freed it"
        )
        return (LOST, "lost-data", key, detail, ())

    def _on_return(self, peer: Peer, key: Key, number: int) -> None:
        row = peer.lent.pop((key, number), None)
        borrowers = self.borrowers.get(row) if row is not None else None
        if row is None or borrowers is None:
            return
        name = peer.process[0]
        if borrowers.get(name) != number:
            name = f"{name}{SECOND}{number}"
        if borrowers.pop(name, None) is not None and not borrowers:
            del self.borrowers[row]
            row.roles &= ~HAS_BORROWERS
            self._lifecycle.let_go_of_inside(row)
            self._lifecycle.release_uses((row,))

    def _on_request(self, peer: Peer, what: str, key: Key, number: int, detail: Any) -> None:
        row = peer.lent.get((key, number))
        if what == "missed":
            self._on_missed(peer, key, number, detail)
        elif row is None or row.state == FORGOTTEN:
            pass  # it gave it back since, or it is gone
        elif what in self.requests:
            self.requests[what](row, detail)
            if what == "retry" and row.done:
                # It cannot be tried again, or was already: who asked waits for an answer.
                self._peers.say(peer, (VALUE_UPDATE, key, number, self.outcome_of(row)))

    def _on_missed(self, peer: Peer, key: Key, number: int, addresses: Iterable[str]) -> None:
        """A borrower asked those who have it, and these do not.

        What a task was to fetch counts as there; when it ends before it has, nobody says so.
        """
        row = peer.lent.get((key, number))
        if row is None:
            self._peers.say(peer, (BORROW_ACK, key, number, self._outcome_of_gone(key)))
            return
        # Another place may be under way to it: then it asked those who had it before.
        unheard = [message for _, batch in peer.stream.unacknowledged for message in batch]
        for message in (*unheard, *peer.outbox):
            if message[0] in (BORROW_ACK, VALUE_UPDATE) and message[1:3] == (key, number):
                return
        self._missed(row, addresses)
        if row.done:
            self._peers.say(peer, (VALUE_UPDATE, key, number, self.outcome_of(row)))

    def _on_buried(self, peer: Peer) -> None:
        """What a process that is gone handed on is counted by now."""
        for key, number in list(peer.lent):
            self._on_return(peer, key, number)
