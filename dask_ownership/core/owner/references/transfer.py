"""Ownership transfer: another owner takes over the objects of a worker that leaves in good order.

Tasks submit tasks, and the futures of the submitted tasks may outlive the worker: inside a value
that was returned, or at any process that got the futures. The owner at the worker, which leaves,
asks the *heir* of each such object to take the object over. The heir is the owner of the task that
submitted the object.

1. ``ADOPT``: the heir borrows the object, and makes an object of its own, which takes over the
   value (an alias, as for `delegate`). The leaving process borrows the heir's object.
2. When the heir's object has ended, ``MOVED`` tells every borrower to borrow from the heir. Each
   borrower gives the old borrowing back when the heir counts the borrower.
3. When all borrowers have, nothing can be lost when the process goes.

An heir may be leaving as well. No object may go round among processes that leave together. So a
leaving process takes over objects only from owners whose incarnation comes before its own, and no
object that it has just offered to the asking owner. It refuses all other objects with ``leaves``.
A refused owner asks the next heir, or waits until the refusing process has given back the
borrowing.

A process that meets a future of the object later, when the first owner is gone, asks the heirs
named in the object's origin (`references.borrowing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dask_ownership.core.owner.references.borrowing import Borrowing
from dask_ownership.core.owner.references.lending import Lending
from dask_ownership.core.owner.references.peers import Peer, Peers
from dask_ownership.core.owner.references.retention import Retention
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import HAS_BORROWERS, Borrowed, Row
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Origin, Process
from dask_ownership.core.protocol.names import (
    HEIR,
    INCARNATION,
    KEY,
    NAME,
    adopted_key,
    heir_of,
    process_of,
)
from dask_ownership.core.protocol.outcomes import NoValue
from dask_ownership.core.protocol.peer_messages import ADOPT, BORROW_ACK, LEAVES
from dask_ownership.core.protocol.states import ERROR, INLINE, LOST, STORED


@dataclass(slots=True, eq=False, repr=False)
class Handover:
    """One object on its way from this process to an heir."""

    #: The heir's object, which this process borrows.
    made: Borrowed
    #: Borrowers, each with the number of its borrowing, that were told to borrow from the heir.
    told: set[tuple[Peer, int]] = field(default_factory=set, init=False)


class OwnershipTransfer:
    """Hands objects of one process over to heirs, and takes objects over from leaving owners.

    Parameters
    ----------
    lifecycle : Lifecycle
        Releases references of rows.
    peers : Peers
        Tells of processes that are gone.
    retention : Retention
        Has the parents of adopted objects kept.
    borrowing : Borrowing
        Borrows the heirs' objects, and the objects to adopt.
    lending : Lending
        Knows the borrowers of the objects.
    functions : BuiltinFunctions
        Makes the alias that takes a value over.
    submit : callable
        Has new rows run.

    Attributes
    ----------
    under_way : dict of Row to Handover
        Rows that are being handed over.
    stuck : set of Row
        Rows that could not be handed over, because the heir could not take the value.
    leaving : bool
        Whether this process hands over its objects.
    refused : set of str
        Incarnations of heirs that refused an object because they leave, too.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        peers: Peers,
        *,
        retention: Retention,
        borrowing: Borrowing,
        lending: Lending,
        functions: BuiltinFunctions,
        submit: Callable[[Iterable[Row]], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._table = lifecycle.table
        self._peers = peers
        self._retention = retention
        self._borrowing = borrowing
        self._lending = lending
        self._functions = functions
        self._submit = submit
        self.leaving = False
        self.refused: set[str] = set()
        self.under_way: dict[Row, Handover] = {}
        self.stuck: set[Row] = set()
        peers.handlers[ADOPT] = self._on_adopt

    # ---- the leaving process ----

    def hand_over(self, stored: bool = True) -> bool:
        """Hand over, as far as possible now, all objects that other processes need.

        The caller calls this again until the result is True. An object that has not ended yet is
        handed over when it has.

        Parameters
        ----------
        stored : bool
            Whether to hand over values at workers, too. For these a worker has to stay.

        Returns
        -------
        bool
            Whether nothing is left to wait for.
        """
        self.leaving = True
        waits = False
        for row in self._table.all():
            if row.borrowed or not self._is_wanted(row):
                continue
            # Cancelled and lost objects have nothing to hand over.
            if row.state > ERROR or (row.state == STORED and not stored) or row in self.stuck:
                continue
            handover = self.under_way.get(row)
            if handover is not None and self._has_no_heir(handover):
                self._end(row)
                handover = None
            elif handover is not None and row.state <= STORED < handover.made.state:
                # The heir could not take the value: the object stays here as long as this process.
                self._end(row)
                self.stuck.add(row)
                continue
            if handover is not None:
                waits = True
                self._tell(row, handover)
            elif row.state < INLINE:
                waits = True
            elif (heir := self._heir_of(row)) is not None:
                waits = True
                self._offer(row, heir)
            elif any(peer.process[INCARNATION] in self.refused for peer in self._borrowers_of(row)):
                waits = True  # until the borrowers that leave, too, give the object back
        for row in list(self.under_way):
            # Meanwhile no other process needs the object any more, or a user cancelled the task.
            if row.state > ERROR or not self._is_wanted(row):
                self._end(row)
        return not waits and not self.under_way

    def _is_wanted(self, row: Row) -> bool:
        """Return whether other processes have a row's object, or may have it (a pin)."""
        return bool(row.roles & HAS_BORROWERS) or row in self._table.pinned

    def stay(self) -> None:
        """Stop handing over: this process does not leave after all.

        An object that no borrower was told to borrow elsewhere stays here.
        """
        self.leaving = False
        self.refused.clear()
        for row, handover in list(self.under_way.items()):
            if not handover.told:
                self._end(row)

    def _heir_of(self, row: Row) -> Process | None:
        """Return the process that is to take a row over; None when no process can.

        First comes the nearest living owner of the tasks that led to the row, then any borrower.
        Processes that refused are passed over.
        """
        passed_over = {self._peers.process[INCARNATION], *self.refused}
        heir = heir_of(
            self._table.origin_of(row),
            lambda process: process[INCARNATION] in passed_over or self._peers.peer(process).gone,
        )
        if heir is not None:
            return process_of(heir)
        for peer in self._borrowers_of(row):
            process: Process = peer.process
            if process[INCARNATION] not in passed_over:
                return process
        return None

    def _borrowers_of(self, row: Row) -> list[Peer]:
        return [peer for peer, _ in self._lending.borrowers_of(row) if not peer.gone]

    def _offer(self, row: Row, heir: Process) -> None:
        """Begin to hand a row over: borrow the heir's object, which the heir makes from the row."""
        origin = self._table.origin_of(row)
        made = Borrowed((*heir, adopted_key(origin), None, 0))
        known = self._table.adopt_for_task(made)
        assert isinstance(known, Borrowed)
        self.under_way[row] = Handover(known)
        # Else this process borrows the heir's object already.
        if known is made:
            self._borrowing.adopt_at_heir(made, origin, row in self._table.pinned)
        self._lifecycle.log(row, "handed-over", f"to {heir[NAME]}, because this process leaves")

    def _has_no_heir(self, handover: Handover) -> bool:
        """Return whether the heir is gone, or refuses the object because it leaves, too."""
        made = handover.made
        if isinstance(made.value, Failure) and made.value.kind == LEAVES:
            self.refused.add(made.owner_ref[INCARNATION])
            return True
        return self._peers.peer(process_of(made.owner_ref)).gone

    def _tell(self, row: Row, handover: Handover) -> None:
        """Send the borrowers of a row to the heir, when the heir's object has ended."""
        # Until a borrower is told, the handover can still be ended: by `stay`, or for another heir.
        made = handover.made
        if made.state < INLINE or not made.acknowledged:
            return
        outcome = self._lending.outcome_of(made)
        for peer, number in self._lending.borrowers_of(row):
            if (peer, number) not in handover.told:
                handover.told.add((peer, number))
                self._lending.say_moved(peer, row.key, number, made.owner_ref, outcome)
        # Processes that borrow the key later are sent to the heir as well. The heir has pinned its
        # own object, so the pin of this row goes.
        self._table.moved[row.key] = made.owner_ref
        if row in self._table.pinned:
            self._table.pinned.discard(row)
            self._lifecycle.release([row])

    def _end(self, row: Row) -> None:
        """End a handover, and release the heir's object."""
        self._lifecycle.release_task_refs([self.under_way.pop(row).made])

    # ---- the heir ----

    def _on_adopt(self, peer: Peer, key: Key, number: int, origin: Origin, pinned: bool) -> None:
        """Handle ADOPT: take over an object of a leaving peer, or refuse.

        The peer borrows the new object as ``number``.
        """
        peers = self._peers
        if self.refuses(peer.process[INCARNATION], key):
            refusal = NoValue(LOST, LEAVES, key, f"{peers.process[NAME]} leaves, too", ())
            peers.say(peer, (BORROW_ACK, key, number, refusal))
            return
        row = self.adopt(key, origin, pinned)
        self._lending.lend(peer, key, number)
        if row is not None:
            self._lifecycle.release([row])  # the borrowing keeps the row from now on

    def refuses(self, sender: str, key: Key) -> bool:
        """Return whether this process refuses to take over the object ``key`` from ``sender``.

        Only a leaving process refuses. Of two leaving processes, only one takes objects over from
        the other.
        """
        if not self.leaving:
            return False
        owner_refs = [handover.made.owner_ref for handover in self.under_way.values()]
        handed_to_it = any(ref[INCARNATION] == sender and ref[KEY] == key for ref in owner_refs)
        return handed_to_it or sender > self._peers.process[INCARNATION]

    def adopt(self, key: Key, origin: Origin, pinned: bool) -> Row | None:
        """Take an object over: make an alias of it under ``key``.

        Return the row of the alias, with one local reference more, or None when this process owned
        the object itself and has freed it. A second call for the same object changes nothing.
        """
        known = self._table.find(key)
        if known is not None:
            return known
        taken = self._borrowing.rows_of([origin])
        if not taken:
            return None
        options = Options(heir=origin[HEIR], adopted=origin)
        row = self._functions.alias(key, taken, options)
        self._table.adopt(row)
        self._submit([row])
        self._lifecycle.release_task_refs(taken)  # the row has its own references
        if pinned:
            self._table.pin(row)
        self._retention.export(row)
        self._lifecycle.log(row, "adopted", f"from {origin[NAME]}, which leaves")
        return row
