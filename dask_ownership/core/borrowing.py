"""What others own and one process borrows.

A borrowed object has a row (`Borrowed`), which looks like any other to whoever waits for it or uses
it in a task. Its state is what its owner said last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dask_ownership.core.identity import (
    Path,
    adopted_key,
    heir_of,
    is_adopted,
    owners_of,
    path_from,
    place_held,
)
from dask_ownership.core.lending import Outcome
from dask_ownership.core.listener import RowListener
from dask_ownership.core.losses import LOST_DATA, OWNER_LOST, OWNERS_GONE
from dask_ownership.core.messages import Key, Origin, Place
from dask_ownership.core.peer_messages import (
    ADOPT,
    BORROW,
    FREED,
    LENT,
    MOVED,
    OUTCOME,
    REQUEST,
    RETURN,
)
from dask_ownership.core.peers import Peer
from dask_ownership.core.row import (
    CANCELLED,
    ERROR,
    FORGOTTEN,
    INLINE,
    LOST,
    STORED,
    WAITING,
    Borrowed,
    Failure,
    Row,
)

if TYPE_CHECKING:
    from dask_ownership.core.ownership import Ownership

MISSES = 20
"""How often in a row the same holders may not have a borrowed value before it counts as lost."""


class _Handover:
    """Calls once all rows are counted by their owners."""

    __slots__ = ("call", "left")

    def __init__(self, left: int, call: Callable[[], None]) -> None:
        self.left = left
        self.call = call

    def one_counted(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.call()


class _Both:
    """Two handovers that wait for one row."""

    __slots__ = ("one", "other")

    def __init__(self, one: _Handover | _Both, other: _Handover) -> None:
        self.one = one
        self.other = other

    def one_counted(self) -> None:
        self.one.one_counted()
        self.other.one_counted()


class Borrowing(RowListener):
    """What one process borrows.

    Parameters
    ----------
    core : Ownership
    """

    def __init__(self, core: Ownership) -> None:
        self.core = core
        handlers = core.peers.handlers
        handlers[LENT] = self._on_lent
        handlers[OUTCOME] = self._on_outcome
        handlers[MOVED] = self._on_moved
        core.peers.when_gone.append(self._on_gone)

    # ---- having it ----

    def arrive(self, origin: Origin) -> tuple[Row, bool]:
        """The row of a future that was unpickled here, with one handle more. Any thread.

        One that came back to its owner and was freed is made again outside the table, as
        one that is lost.

        Returns
        -------
        Row, bool
            The second says that it is new, and is to be submitted.
        """
        key = origin[3]
        table = self.core.table
        if origin[0] == self.core.peers.process[0]:
            row = table.find(key, life=origin[5])
            if row is not None:
                return row, False
            if key not in self.core.adoption.moved and place_held(origin) is None:
                name = self.core.peers.process[2]
                if self.core.peers.left:
                    failure = Failure("closed", key, f"its client {name} is closed, which freed it")
                else:
                    detail = f"its owner {name} freed it: nobody held it"
                    failure = Failure("lost-data", key, detail)
                return Row.without_value(key, LOST, failure), False
        made = self._borrowed(origin)
        row = table.adopt(made)
        return row, row is made

    def _borrowed(self, origin: Origin) -> Borrowed:
        """A new row for what another owns; this process may have owned it before."""
        made = Borrowed(origin)
        held = place_held(origin)
        if held is not None:
            made.place = held
        elif origin[0] == self.core.peers.process[0]:
            made.place = self.core.adoption.moved[origin[3]]
        return made

    def held_elsewhere(self, row: Row, origin: Origin) -> Place | None:
        """Where a row should be borrowed, now that one knows that it is held there."""
        held = place_held(origin)
        if held is None or not isinstance(row, Borrowed) or row.place[:4] == held:
            return None
        return held

    def rows_of(self, origins: Iterable[Origin]) -> tuple[Row, ...]:
        """Rows of futures that arrived inside something, each with one use more.

        What this process owns and has freed already is left out: whoever looks for it
        hears that.
        """
        table = self.core.table
        rows: list[Row] = []
        new: list[Borrowed] = []
        for origin in origins:
            if origin[0] == self.core.peers.process[0]:
                row = table.use(origin[3], origin[5])
                if row is not None:
                    row.shared_with(None)
                    self.core.lifecycle.wake(row)
                    rows.append(row)
                    continue
                if origin[3] not in self.core.adoption.moved and place_held(origin) is None:
                    continue
            made = self._borrowed(origin)
            if made.place[0] == self.core.peers.process[0] and (row := table.use(made.place[3])):
                rows.append(row)  # held here
                continue
            adopted = table.adopt_for_use(made)
            if adopted is made:
                new.append(made)
            elif (place := self.held_elsewhere(adopted, origin)) is not None:
                assert isinstance(adopted, Borrowed)
                self.borrow_at(adopted, place)
            rows.append(adopted)
        for made in new:
            self.borrow(made)
        return tuple(rows)

    def borrow(self, row: Borrowed) -> None:
        """A row that was just adopted: have its owner count it."""
        place = row.place
        peer = self.core.peers.known.get(place[0]) or self.core.peers.peer(place[:3])
        if peer.gone:
            self._climb(row)
            return
        # As `_borrow_from` and `_say`: there may be very many in one object.
        core = self.core
        core.lifecycle.numbers += 1
        row.attempt = core.lifecycle.numbers
        peer.borrowed[row.attempt] = row
        if row.path is None:
            life = row.origin[5] if place is row.origin else 0
            peer.outbox.append((BORROW, place[3], row.attempt, life))
        else:
            peer.outbox.append((BORROW, place[3], row.attempt, 0, row.path, ""))
        self.core.peers.talking[place[0]] = peer

    def _borrow_from(self, peer: Peer, row: Borrowed) -> None:
        self.core.lifecycle.numbers += 1
        row.attempt = self.core.lifecycle.numbers
        peer.borrowed[row.attempt] = row

    def adopt_at_heir(self, row: Borrowed, origin: Origin, pinned: bool) -> None:
        """Have the owner of a row that is new there make it, taking ``origin`` over."""
        peer = self.core.peers.peer(row.place[:3])
        self._borrow_from(peer, row)
        self.core.peers.say(peer, (ADOPT, row.place[3], row.attempt, origin, pinned))

    def borrow_at(self, row: Borrowed, place: Place) -> None:
        """It is there for certain: also when its owner freed it once, and has it again."""
        if row.place[:4] != place:
            peer = self.core.peers.peer(row.place[:3])
            if peer.borrowed.get(row.attempt) is row:
                row.counted = False
                self._moved(peer, row, place, None, None)

    def forgotten(self, row: Row) -> None:
        """Nobody here has what another process owns."""
        if isinstance(row, Borrowed):
            self.give_back(row)

    def give_back(self, row: Borrowed) -> None:
        """Nobody here has it any more."""
        peer = self.core.peers.known.get(row.place[0])
        key = row.place[3]
        if peer is not None:
            peer.borrowed.pop(row.attempt, None)
            if row.attempt:
                self.core.peers.say(peer, (RETURN, key, row.attempt))
        self._counted(row)

    # ---- being counted ----

    def when_counted(self, rows: Iterable[Row], call: Callable[[], None]) -> None:
        """Call once the owner of each row counts this process, or there is nothing to count."""
        waiting = [
            row
            for row in rows
            if row.borrowed and isinstance(row, Borrowed) and not row.counted
            and row.state != FORGOTTEN
        ]  # fmt: skip
        if not waiting:
            call()
            return
        handover = _Handover(len(waiting), call)
        for row in waiting:
            # Hardly ever more than one, and there may be very many rows: no list for one.
            before = row.handovers
            row.handovers = handover if before is None else _Both(before, handover)

    def hold_until_counted(self, outer: Row, rows: Iterable[Row]) -> None:
        """Keep ``outer``, from whose value these came, until their owners count them."""
        if outer.state == FORGOTTEN:
            return
        self.core.table.use_all((outer,))
        self.when_counted(rows, lambda: self.core.lifecycle.release_uses((outer,)))

    def _counted(self, row: Borrowed) -> None:
        row.counted = True
        if row.returns is not None:
            returns, row.returns = row.returns, None
            for peer, key, number in returns:
                self.core.peers.say(peer, (RETURN, key, number))
        if row.handovers is not None:
            handovers, row.handovers = row.handovers, None
            handovers.one_counted()

    # ---- asking its owner ----

    def request(self, row: Borrowed, what: str, detail: Any) -> None:
        """Have the owner ``cancel`` or ``retry`` it, look where it is, or ``follow`` what it
        waits for."""
        if not row.attempt and row.state == WAITING:
            self.borrow(row)  # it was to be soon, and only what was lent can be asked about
        self.core.peers.say(
            self.core.peers.peer(row.place[:3]), (REQUEST, what, row.place[3], row.attempt, detail)
        )

    def retry(self, row: Borrowed) -> None:
        """Have the owner try a failed row again, which waits for that here."""
        self.request(row, "retry", "")
        if row.state == ERROR and not self.core.peers.peer(row.place[:3]).gone:
            self._waits_again(row)

    def _waits_again(self, row: Borrowed) -> None:
        """A failed row is tried again at its owner: what failed here because of it is, too."""
        inside, row.contains = row.contains, ()
        self.core.revive([row])
        self.core.lifecycle.release_uses(inside)

    def missed(self, row: Borrowed, addresses: Iterable[str]) -> None:
        """Those said to have it do not, as those at these addresses say: ask its owner."""
        if row.state != STORED:
            return
        row.misses += 1
        if row.misses > MISSES:
            holders = ", ".join(row.addresses)
            self.core.losses[LOST_DATA] += 1
            self._lose(row, "lost-data", f"its holders {holders} do not have it any more")
            return
        self.core.lifecycle.wait_for_owner(row)
        self.request(row, "missed", tuple(addresses))

    # ---- what its owner says ----

    def _on_lent(self, peer: Peer, key: Key, number: int, outcome: Outcome | None) -> None:
        row = peer.borrowed.get(number)
        if row is not None and row.place[3] == key:
            self._told(peer, row, outcome, True)

    def _on_outcome(self, peer: Peer, key: Key, number: int, outcome: Outcome | None) -> None:
        row = peer.borrowed.get(number)
        if row is not None and row.place[3] == key:
            self._told(peer, row, outcome, False)

    def _on_moved(
        self,
        peer: Peer,
        key: Key,
        number: int,
        place: Place,
        outcome: Outcome | None,
        path: Path | None,
    ) -> None:
        row = peer.borrowed.get(number)
        if row is not None:
            self._moved(peer, row, place, outcome, path)

    def _told(self, peer: Peer, row: Borrowed, outcome: Outcome | None, lent: bool) -> None:
        """The owner of a borrowed row says how it stands; when ``lent``, that this is counted."""
        if outcome is not None:
            if outcome[1] == FREED and self._freed(peer, row, outcome[3]):
                return
            if row.state == ERROR and not lent:
                self._waits_again(row)  # it was tried again, or cancelled
            self._take_in(row, outcome)
        elif row.state == STORED:
            self.core.lifecycle.wait_for_owner(row)
            row.addresses = ()
        elif row.state == ERROR and not lent:
            self._waits_again(row)
        if lent and (row.returns or not row.counted):
            self._counted(row)

    def _take_in(self, row: Borrowed, outcome: Outcome) -> None:
        """What became of a borrowed value, or where it is now."""
        core = self.core
        state = outcome[0]
        if state == STORED and row.state == STORED and row.made_by == outcome[4]:
            row.addresses = tuple(outcome[3])
            return
        if state == STORED and row.state == STORED:
            core.lifecycle.wait_for_owner(row)  # it was made again
        had = row.state
        ends = (had == STORED and state > STORED) or (had == INLINE and state == CANCELLED)
        if had >= INLINE and not ends:
            return
        if state == INLINE:
            row.version = self._next_version()
            row.freed = None
            row.contains = self._came_with(row, outcome[2])
            core.lifecycle.finish_borrowed(row, INLINE, outcome[1], len(outcome[1]))
        elif state == STORED:
            if outcome[4] != row.made_by or tuple(outcome[3]) != row.addresses:
                row.misses = 0  # its owner found it elsewhere, or made it again
            row.survived = ()
            row.freed = None
            row.type_name = outcome[2]
            row.addresses = tuple(outcome[3])
            row.made_by = outcome[4]
            row.version = self._next_version()
            core.lifecycle.finish_borrowed(row, STORED, None, outcome[1])
        elif state == ERROR and isinstance(outcome[1], bytes):
            row.contains = self._came_with(row, outcome[2])
            core.lifecycle.end_with_dependents(row, ERROR, outcome[1])
        else:
            _, kind, name, detail, chain = outcome
            if row.freed is not None:
                # Those who led to it could not make it again.
                core.lifecycle.end_with_dependents(row, state, row.freed)
                return
            kind = "lost-data" if kind == FREED else kind
            if is_adopted(name):
                name, detail = row.origin[3], f"its owner {row.origin[2]} is gone; {detail}"
            if kind == "owner-lost":
                core.losses[OWNER_LOST] += 1
                if not chain:
                    chain = owners_of(row.origin)
                    if row.place[0] != row.origin[0]:
                        detail = f"{row.place[2]} says: {detail}"
            failure = Failure(kind, name, detail, chain=tuple(chain))
            core.lifecycle.end_with_dependents(row, state, failure)

    def _next_version(self) -> int:
        self.core.lifecycle.numbers += 1
        return self.core.lifecycle.numbers

    def _came_with(self, row: Borrowed, origins: Iterable[Origin]) -> tuple[Row, ...]:
        """Rows of the futures inside a value or an error that was borrowed."""
        if self.core.bequests.holds:
            inner = self.core.bequests.hold_inside(origins)
            borrowed = tuple(source for one in inner for source in one.dependencies)
        else:
            inner = borrowed = self.rows_of(origins)
        if borrowed:
            self.hold_until_counted(row, borrowed)
        return inner

    def _moved(
        self, peer: Peer, row: Borrowed, place: Place, outcome: Outcome | None, path: Path | None
    ) -> None:
        """Another owns it now; the old borrowing is given back when that one counts this."""
        del peer.borrowed[row.attempt]
        row.returns = [*(row.returns or ()), (peer, row.place[3], row.attempt)]
        row.place = place
        row.path = path
        row.freed = None
        if outcome is not None:
            self._take_in(row, outcome)
        self.borrow(row)
        if place[0] == self.core.peers.process[0]:
            self.core.adoption.settled(row)

    # ---- its owner is gone ----

    def _on_gone(self, peer: Peer) -> None:
        borrowed = list(peer.borrowed.values())
        if borrowed:
            self.core.losses[OWNERS_GONE] += 1
        peer.borrowed.clear()
        for row in borrowed:
            self._climb(row)

    def _climb(self, row: Borrowed) -> None:
        """Its owner is gone: ask the owner of the task that submitted it, or of that one's."""
        level = None
        if row.state < INLINE:
            # Also when it is the same one again: whoever says that it is there has not heard yet.
            row.survived += (row.place[2],)
            # It may be what they die of: as for a task that is never alone when one dies.
            if len(row.survived) > 4 * (self.core.allowed_failures + 1):
                names = ", ".join(row.survived)
                self._lose(row, "owner-lost", f"those who owned it died before it ended: {names}")
                self._counted(row)
                return
        if row.state < INLINE or row.state == STORED:
            level = heir_of(row.origin, lambda process: self.core.peers.peer(process).gone)
        if level is None:
            # Unless it has what there is to have.
            self._lose(row, "owner-lost", "no process lives that led to it")
            self._counted(row)
            return
        gone = row.place[0]
        heir = level[:3]
        key = adopted_key(row.origin)
        if self.core.adoption.waits_for(row, heir):
            key = ("asked", *key[1:])  # type: ignore[index]
        row.place = (*heir, key)
        row.path = path_from(row.origin, level)
        self.core.lifecycle.wait_for_owner(row)
        row.addresses = ()
        peer = self.core.peers.peer(heir)
        self._borrow_from(peer, row)
        self.core.peers.say(peer, (BORROW, key, row.attempt, 0, row.path, gone))

    def _freed(self, peer: Peer, row: Borrowed, detail: str) -> bool:
        """Its owner freed it before it heard of this borrower; whether others are asked.

        Whoever passed it on kept it until then, but for one that was frozen meanwhile and
        whose value was made again elsewhere.
        """
        if row.counted or row.place is not row.origin or row.origin[4] is None:
            return False
        del peer.borrowed[row.attempt]
        row.freed = Failure("lost-data", row.origin[3], detail)
        self._climb(row)
        return True

    def _lose(self, row: Borrowed, kind: str, reason: str) -> None:
        detail = f"{reason}; it was borrowed from {row.origin[2]}"
        self._take_in(row, (LOST, kind, row.origin[3], detail, ()))
