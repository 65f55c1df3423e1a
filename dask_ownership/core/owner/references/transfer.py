"""Ownership transfer: what a worker owns lives on at another owner when the worker leaves in good
order.

Tasks submit tasks, and their futures may outlive them: in a value that was returned, or
with any process that they were passed to. The process that leaves asks the *heir* of each
such object, the owner of the task that submitted it, to take it over:

1. ``ADOPT``: the heir borrows the object, and makes an object of its own that takes the
   value over (a call of the identity, as for `delegate`). The process that leaves borrows
   that one from the heir.
2. When it has ended, ``MOVED`` tells every borrower to borrow from the heir. Each gives the
   old borrowing back when the heir counts it.
3. When all have, nothing is left to lose.

An heir may be leaving as well. So that no object goes round among processes that leave
together, one that leaves takes over only from those whose incarnation comes before its own,
and nothing that it has just handed to the one that asks: to all others it says that it
leaves. They ask the next, or wait until it has let go of what it borrows.

Who meets the object later, when its first owner is gone, asks the heirs that its origin
names (`references.borrowing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
from dask_ownership.core.protocol.names import adopted_key, heir_of
from dask_ownership.core.protocol.peer_messages import ADOPT, BORROW_ACK, LEAVES
from dask_ownership.core.protocol.states import ERROR, INLINE, LOST, STORED


class Handover:
    """One object that this process hands over.

    Attributes
    ----------
    made : Borrowed
        What the heir made of it, as this process sees it.
    told : set
        Borrowers, with the numbers of their borrowings, that were told to go there.
    """

    __slots__ = ("made", "told")

    def __init__(self, made: Borrowed) -> None:
        self.made = made
        self.told: set[tuple[Peer, int]] = set()


class OwnershipTransfer:
    """What one process hands over, and takes over from others.

    Parameters
    ----------
    lifecycle : Lifecycle
    peers : Peers
    retention : Retention
    borrowing : Borrowing
    lending : Lending
    functions : BuiltinFunctions
    submit : callable
        Has new rows run.

    Attributes
    ----------
    under_way : dict
        Rows that are being handed over.
    stuck : set of Row
        Those that could not be handed over.
    leaving : bool
        Whether this process hands over what it owns.
    refused : set of str
        Incarnations of heirs that leave too.
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

    # ---- the process that leaves ----

    def hand_over(self, stored: bool = True) -> bool:
        """Go on handing over what others have of this process; whether all of it is done.

        Call it again until it is. What has not ended yet is handed over when it has.

        Parameters
        ----------
        stored : bool
            Also what is stored at workers; there must be one that stays.
        """
        self.leaving = True
        waits = False
        for row in self._table.all():
            if row.borrowed or not self._is_wanted(row):
                continue
            if row.state > ERROR or (row.state == STORED and not stored) or row in self.stuck:
                continue
            handover = self.under_way.get(row)
            if handover is not None and self._has_no_heir(handover):
                self._end(row)
                handover = None
            elif handover is not None and row.state <= STORED < handover.made.state:
                # The heir could not take the value: it stays here while this process does.
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
            elif any(peer.process[0] in self.refused for peer in self._borrowers_of(row)):
                waits = True  # until those, which leave too, give it back
        for row in list(self.under_way):
            # Nobody else has it any more, or it was cancelled meanwhile.
            if row.state > ERROR or not self._is_wanted(row):
                self._end(row)
        return not waits and not self.under_way

    def _is_wanted(self, row: Row) -> bool:
        """Whether others have a row, or may have it."""
        return bool(row.roles & HAS_BORROWERS) or row in self._table.pinned

    def stay(self) -> None:
        """This process does not leave after all: what nobody was told to borrow elsewhere stays."""
        self.leaving = False
        self.refused.clear()
        for row, handover in list(self.under_way.items()):
            if not handover.told:
                self._end(row)

    def _heir_of(self, row: Row) -> Process | None:
        """Who takes a row over: the owner of the task that submitted it, or who borrows it."""
        passed_over = {self._peers.process[0], *self.refused}
        heir = heir_of(
            self._table.origin_of(row),
            lambda process: process[0] in passed_over or self._peers.peer(process).gone,
        )
        if heir is not None:
            return heir[:3]
        for peer in self._borrowers_of(row):
            process: Process = peer.process
            if process[0] not in passed_over:
                return process
        return None

    def _borrowers_of(self, row: Row) -> list[Peer]:
        return [peer for peer, _ in self._lending.borrowers_of(row) if not peer.gone]

    def _offer(self, row: Row, heir: Process) -> None:
        origin = self._table.origin_of(row)
        made = Borrowed((*heir, adopted_key(origin), None, 0))
        known = self._table.adopt_for_use(made)
        assert isinstance(known, Borrowed)
        self.under_way[row] = Handover(known)
        if known is made:
            self._borrowing.adopt_at_heir(made, origin, row in self._table.pinned)
        self._lifecycle.log(row, "handed-over", f"to {heir[2]}, because this process leaves")

    def _has_no_heir(self, handover: Handover) -> bool:
        """Whether the heir is gone, or does not take it over."""
        made = handover.made
        if isinstance(made.value, Failure) and made.value.kind == LEAVES:
            self.refused.add(made.owner_ref[0])
            return True
        return self._peers.peer(made.owner_ref[:3]).gone

    def _tell(self, row: Row, handover: Handover) -> None:
        made = handover.made
        if made.state < INLINE or not made.acknowledged:
            return
        outcome = self._lending.outcome_of(made)
        for peer, number in self._lending.borrowers_of(row):
            if (peer, number) not in handover.told:
                handover.told.add((peer, number))
                self._lending.say_moved(peer, row.key, number, made.owner_ref, outcome)
        self._table.moved[row.key] = made.owner_ref
        if row in self._table.pinned:
            self._table.pinned.discard(row)
            self._lifecycle.release([row])

    def _end(self, row: Row) -> None:
        self._lifecycle.release_uses([self.under_way.pop(row).made])

    # ---- the heir ----

    def _on_adopt(self, peer: Peer, key: Key, number: int, origin: Origin, pinned: bool) -> None:
        """Another process leaves, and asks this one to take an object over."""
        peers = self._peers
        if self.refuses(peer.process[0], key):
            refusal = (LOST, LEAVES, key, f"{peers.process[2]} leaves, too", ())
            peers.say(peer, (BORROW_ACK, key, number, refusal))
            return
        row = self.adopt(key, origin, pinned)
        self._lending.lend(peer, key, number)
        if row is not None:
            self._lifecycle.release([row])

    def refuses(self, sender: str, key: Key) -> bool:
        """Whether this process leaves as well, and takes nothing over from that one."""
        if not self.leaving:
            return False
        places = [handover.made.owner_ref for handover in self.under_way.values()]
        handed_to_it = any(place[0] == sender and place[3] == key for place in places)
        return handed_to_it or sender > self._peers.process[0]

    def adopt(self, key: Key, origin: Origin, pinned: bool) -> Row | None:
        """Take an object over; its row, with one handle more. Twice is once."""
        known = self._table.find(key)
        if known is not None:
            return known
        taken = self._borrowing.rows_of([origin])
        if not taken:
            return None  # it was this process's own, and freed
        options = Options(heir=origin[4], adopted=origin)
        row = self._functions.alias(key, taken, options)
        self._table.adopt(row)
        self._submit([row])
        self._lifecycle.release_uses(taken)  # the row has its own
        if pinned:
            self._table.pin(row)
        self._retention.export(row)
        self._lifecycle.log(row, "adopted", f"from {origin[2]}, which leaves")
        return row
