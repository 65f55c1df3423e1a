"""Lending: an owner counts the borrowers of its objects, and tells them what becomes of values.

One rule keeps values from being freed early: **a process that passes a future on to another
process keeps the object until the owner has counted the other process.** The sender of a value
with futures inside keeps the futures until the receiver says that the owner of each future counts
the receiver (`Borrowing.when_acknowledged`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dask_ownership.core.owner.references.peers import Peer, Peers
from dask_ownership.core.owner.rows.history import History
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import HAS_BORROWERS, QUESTION, Borrowed, Function, Row
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import KIND, Key, Origin, OwnerRef
from dask_ownership.core.protocol.names import INCARNATION, NAME, Path, is_adopted
from dask_ownership.core.protocol.outcomes import (
    InlineValue,
    NoValue,
    Outcome,
    StoredValue,
    TaskError,
)
from dask_ownership.core.protocol.peer_messages import (
    BORROW,
    BORROW_ACK,
    BORROW_RELEASE,
    FREED,
    MOVED,
    REQUEST,
    VALUE_UPDATE,
    of_borrowing,
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
"""Separates incarnation and number in a name in ``Lending.borrowers``, when one process borrows a
row more than once."""

NOBODY: dict[str, int] = {}
"""The borrowers of a row without borrowers. Never written to."""


class Lending(RowListener):
    """Counts the borrowers of one owner's objects, and answers their messages.

    Parameters
    ----------
    lifecycle : Lifecycle
        Wakes rows and releases their references.
    peers : Peers
        The processes that borrow.
    history : History
        Tells whether a missing object was cancelled.
    missed : callable
        Called with a stored row and with addresses of workers that do not have the value.
    ask : callable
        Has an object reconstructed that is not in the table: called with a key and the path to
        the object, returns the row of the question with one task reference more.
    asked_again : callable
        Called when a peer borrows a question: with the peer, the row, the number of the
        borrowing, and the incarnation of the dead owner as the peer names it.
    delegated : callable
        Called with a row that delegated, still waits and has got a borrower.
    alias : Function
        The function of rows that take over the value of another row.

    Attributes
    ----------
    borrowers : dict of Row to dict
        By row: the incarnation of each borrower and the number of its borrowing.
    requests : dict of str to callable
        By kind of `REQUEST`: called with the row and the detail of the request.
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
        # The inner dicts have strings and numbers only, so the cyclic collector need not walk them.
        self.borrowers: dict[Row, dict[str, int]] = {}
        handlers = peers.handlers
        handlers[BORROW] = self.lend
        handlers[BORROW_RELEASE] = self._on_return
        handlers[REQUEST] = self._on_request
        peers.when_buried.append(self._on_buried)

    # ---- what becomes of a row ----

    def finished(self, row: Row) -> None:
        """Tell borrowers that a row has a value."""
        if row in self.borrowers:
            self.tell(row)

    def ended(self, row: Row) -> None:
        """Tell borrowers that a row has ended without a value."""
        if row in self.borrowers:
            self.tell(row)

    def locations_changed(self, row: Row) -> None:
        """Tell borrowers that the value of a row is at other workers."""
        if row in self.borrowers:
            self.tell(row)

    def withdrawn(self, row: Row) -> None:
        """Tell borrowers to wait again for the value of a row.

        The value was lost and is made again, or the task failed and is tried again.
        """
        if row.state == STORED:
            count = len(self.borrowers.get(row, NOBODY))
            self._lifecycle.log(row, "withdrawn", f"from {count} borrowers, which wait")
        for peer, number in self.borrowers_of(row):
            self._peers.say(peer, (VALUE_UPDATE, row.key, number, None))

    def outcome_of(self, row: Row) -> Outcome | None:
        """Return what a borrower is told of a row; None while the row has not ended.

        Returns
        -------
        Outcome or None
        """
        state = row.state
        if state < INLINE:
            return None
        if state == INLINE:
            return InlineValue(INLINE, row.value, self._inside(row))
        if state == STORED:
            if row.borrowed:
                # The heir's object, as this process sees it during an ownership transfer.
                assert isinstance(row, Borrowed)
                addresses, made_by = row.addresses, row.made_by
            else:
                addresses = tuple([view.address for view in row.locations])
                made_by = row.attempt
            return StoredValue(STORED, row.nbytes, row.type_name, addresses, made_by)
        value = row.value
        if isinstance(value, bytes):
            return TaskError(ERROR, value, self._inside(row))
        if isinstance(value, Failure):
            return NoValue(state, value.kind, value.key, value.detail, value.chain)
        return NoValue(LOST, "lost-data", row.key, "it was freed", ())

    def _inside(self, row: Row) -> tuple[Origin, ...]:
        """Return the names of the futures inside the value or the error of a row."""
        return tuple([self._table.origin_of(inner) for inner in row.contains])

    def borrowers_of(self, row: Row) -> list[tuple[Peer, int]]:
        """Return the borrowers of a row, each with the number of its borrowing."""
        peers = self._peers.known
        return [
            (peers[incarnation], number)
            for name, number in self.borrowers.get(row, NOBODY).items()
            if (incarnation := name.partition(SECOND)[0]) in peers
        ]

    def tell(self, row: Row) -> None:
        """Send the outcome of a row to all of its borrowers (`VALUE_UPDATE`)."""
        outcome = self.outcome_of(row)
        for peer, number in self.borrowers_of(row):
            self._peers.say(peer, (VALUE_UPDATE, row.key, number, outcome))

    def say_moved(
        self,
        peer: Peer,
        key: Key,
        number: int,
        owner_ref: OwnerRef,
        outcome: Outcome | None,
        path: Path | None = None,
    ) -> None:
        """Tell a borrower where the object is owned now (`MOVED`).

        ``path`` leads from ``owner_ref`` to the object, when the new owner has to look for it.
        """
        self._peers.say(peer, (MOVED, key, number, owner_ref, outcome, path))

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
        """Handle BORROW: count the peer as a borrower, and answer with the outcome of the object.

        An object that is not in the table is reconstructed when ``path`` leads to it; a borrower of
        an object that was handed over is sent on to the new owner; else the answer says that the
        object was cancelled or freed. ``gone`` is the incarnation of the owner whose death made
        the peer borrow here.
        """
        row = self._table.find_for_task(key, life)
        if row is None and path is not None:
            row = self._ask(key, tuple(path))
        if row is None:
            moved = self._table.moved.get(key)
            if moved is not None:
                self.say_moved(peer, key, number, moved, None)
                return
            self._peers.say(peer, (BORROW_ACK, key, number, self._outcome_of_gone(key, life)))
            return
        # All borrowers of a row together are one task reference, which `find_for_task` or `ask`
        # has just counted. It is released at the end when the row had borrowers before.
        borrowers = self.borrowers.get(row)
        had_some = borrowers is not None
        if borrowers is None:
            borrowers = self.borrowers[row] = {}
            row.roles |= HAS_BORROWERS
        # The same BORROW may arrive twice.
        if (key, number) not in peer.lent:
            name = peer.process[INCARNATION]
            if name in borrowers:
                name = f"{name}{SECOND}{number}"
            borrowers[name] = number
        if row.options.parent is not None:
            row.shared_with(None)  # cancelling the parent does not cancel the row any more
        if row.state == DORMANT:
            self._lifecycle.wake(row)
        peer.lent[key, number] = row
        if row.state == INLINE and not row.contains:
            outcome: Outcome | None = InlineValue(INLINE, row.value, ())
        else:
            outcome = self.outcome_of(row)
        self._peers.say(peer, (BORROW_ACK, key, number, outcome))
        if row.roles & QUESTION:
            self._asked_again(peer, row, number, gone)
        # An alias that has run is a task that delegated. An alias without an attempt only takes
        # over a value. A cycle can close now that a borrower waits for the row.
        if row.attempt and row.state == WAITING and row.function is self._alias:
            self._delegated(row)
        if had_some:
            self._lifecycle.release_task_refs((row,))

    def _outcome_of_gone(self, key: Key, life: int = 0) -> Outcome:
        """Return the outcome to tell a borrower of an object that is not in the table any more.

        ``life`` tells the object from other objects that had its key; 0 stands for any life.
        """
        name = self._peers.process[NAME]
        # The history knows keys and no lives: an event may be about another life of the key.
        another = life and (key, life) not in self._lifecycle.cancelled_lives
        for event, detail in () if another else self._history.of(key):
            if event == "cancelled":
                return NoValue(CANCELLED, "cancelled", key, detail, ())
        if is_adopted(key):
            detail = (
                f"{name}, which owns the task that submitted it, has not taken it over, or has "
                "freed it"
            )
        else:
            detail = f"{name} freed it: nobody held it when this process asked for it"
        return NoValue(LOST, FREED, key, detail, ())

    def _on_return(self, peer: Peer, key: Key, number: int) -> None:
        """Handle BORROW_RELEASE: end one borrowing of a peer.

        With the last borrowing of a row, the task reference of its borrowers goes.
        """
        row = peer.lent.pop((key, number), None)
        borrowers = self.borrowers.get(row) if row is not None else None
        if row is None or borrowers is None:
            return
        # A second borrowing of one process has a longer name, see `SECOND`.
        name = peer.process[INCARNATION]
        if borrowers.get(name) != number:
            name = f"{name}{SECOND}{number}"
        if borrowers.pop(name, None) is not None and not borrowers:
            del self.borrowers[row]
            row.roles &= ~HAS_BORROWERS
            # A row that lost its value kept the futures inside for borrowers, see `Lifecycle.end`.
            self._lifecycle.let_go_of_inside(row)
            self._lifecycle.release_task_refs((row,))

    def _on_request(self, peer: Peer, what: str, key: Key, number: int, detail: Any) -> None:
        """Handle REQUEST: do for a borrower what ``what`` says, see ``requests``."""
        row = peer.lent.get((key, number))
        if what == "missed":
            self._on_missed(peer, key, number, detail)
        elif row is None or row.state == FORGOTTEN:
            pass  # the borrower has given the object back since, or the object is gone
        elif what in self.requests:
            self.requests[what](row, detail)
            # A row that is tried again waits, and its outcome is told when there is one.
            if what == "retry" and row.done:
                # The row cannot be tried again, or has ended once more already. The borrower waits
                # for an answer.
                self._peers.say(peer, (VALUE_UPDATE, key, number, self.outcome_of(row)))

    def _on_missed(self, peer: Peer, key: Key, number: int, addresses: Iterable[str]) -> None:
        """Handle a request ``missed``: workers at these addresses do not have the value.

        That happens because a worker that was told to fetch a value for a task counts as a
        location, and does not say so when the task ends before the value is there.
        """
        row = peer.lent.get((key, number))
        if row is None:
            self._peers.say(peer, (BORROW_ACK, key, number, self._outcome_of_gone(key)))
            return
        # An answer may be on its way to the borrower: then the borrower has asked the locations
        # before, and asks again when the answer arrives.
        unheard = [message for _, batch in peer.stream.unacknowledged for message in batch]
        for message in (*unheard, *peer.outbox):
            answers = message[KIND] in (BORROW_ACK, VALUE_UPDATE)
            if answers and of_borrowing(message) == (key, number):
                return
        self._missed(row, addresses)
        if row.done:
            self._peers.say(peer, (VALUE_UPDATE, key, number, self.outcome_of(row)))

    def _on_buried(self, peer: Peer) -> None:
        """End all borrowings of a dead peer."""
        for key, number in list(peer.lent):
            self._on_return(peer, key, number)
