"""What others own and one process borrows.

A borrowed object has a row (`Borrowed`), which looks like any other to whoever waits for it or uses
it in a task. Its state is what its owner said last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dask_ownership.core.owner.references.lending import Outcome
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
    Path,
    adopted_key,
    heir_of,
    is_adopted,
    owners_of,
    path_from,
    place_held,
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
    lifecycle : Lifecycle
    peers : Peers
    hold_inside : callable
        Takes over what is inside a value when this process holds for others; None when it does
        not.
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
        handlers[BORROW_ACK] = self._on_lent
        handlers[VALUE_UPDATE] = self._on_outcome
        handlers[MOVED] = self._on_moved
        peers.when_gone.append(self._on_gone)

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
        table = self._table
        if origin[0] == self._peers.process[0]:
            row = table.find(key, life=origin[5])
            if row is not None:
                return row, False
            if key not in self._table.moved and place_held(origin) is None:
                name = self._peers.process[2]
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
        """A new row for what another owns; this process may have owned it before."""
        made = Borrowed(origin)
        held = place_held(origin)
        if held is not None:
            made.owner_ref = held
        elif origin[0] == self._peers.process[0]:
            made.owner_ref = self._table.moved[origin[3]]
        return made

    def held_elsewhere(self, row: Row, origin: Origin) -> OwnerRef | None:
        """Where a row should be borrowed, now that one knows that it is held there."""
        held = place_held(origin)
        if held is None or not isinstance(row, Borrowed) or row.owner_ref[:4] == held:
            return None
        return held

    def rows_of(self, origins: Iterable[Origin]) -> tuple[Row, ...]:
        """Rows of futures that arrived inside something, each with one use more.

        What this process owns and has freed already is left out: whoever looks for it
        hears that.
        """
        table = self._table
        rows: list[Row] = []
        new: list[Borrowed] = []
        for origin in origins:
            if origin[0] == self._peers.process[0]:
                row = table.use(origin[3], origin[5])
                if row is not None:
                    row.shared_with(None)
                    self._lifecycle.wake(row)
                    rows.append(row)
                    continue
                if origin[3] not in self._table.moved and place_held(origin) is None:
                    continue
            made = self._borrowed(origin)
            if made.owner_ref[0] == self._peers.process[0] and (
                row := table.use(made.owner_ref[3])
            ):
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
        place = row.owner_ref
        peer = self._peers.known.get(place[0]) or self._peers.peer(place[:3])
        if peer.gone:
            self._climb(row)
            return
        # As `_borrow_from` and `Peers.say`: there may be very many in one object.
        lifecycle = self._lifecycle
        lifecycle.numbers += 1
        row.attempt = lifecycle.numbers
        peer.borrowed[row.attempt] = row
        if row.path is None:
            life = row.origin[5] if place is row.origin else 0
            peer.outbox.append((BORROW, place[3], row.attempt, life))
        else:
            peer.outbox.append((BORROW, place[3], row.attempt, 0, row.path, ""))
        self._peers.talking[place[0]] = peer

    def _borrow_from(self, peer: Peer, row: Borrowed) -> None:
        self._lifecycle.numbers += 1
        row.attempt = self._lifecycle.numbers
        peer.borrowed[row.attempt] = row

    def adopt_at_heir(self, row: Borrowed, origin: Origin, pinned: bool) -> None:
        """Have the owner of a row that is new there make it, taking ``origin`` over."""
        peer = self._peers.peer(row.owner_ref[:3])
        self._borrow_from(peer, row)
        self._peers.say(peer, (ADOPT, row.owner_ref[3], row.attempt, origin, pinned))

    def borrow_at(self, row: Borrowed, place: OwnerRef) -> None:
        """It is there for certain: also when its owner freed it once, and has it again."""
        if row.owner_ref[:4] != place:
            peer = self._peers.peer(row.owner_ref[:3])
            if peer.borrowed.get(row.attempt) is row:
                row.acknowledged = False
                self._moved(peer, row, place, None, None)

    def forgotten(self, row: Row) -> None:
        """Nobody here has what another process owns."""
        if isinstance(row, Borrowed):
            self.give_back(row)

    def give_back(self, row: Borrowed) -> None:
        """Nobody here has it any more."""
        peer = self._peers.known.get(row.owner_ref[0])
        key = row.owner_ref[3]
        if peer is not None:
            peer.borrowed.pop(row.attempt, None)
            if row.attempt:
                self._peers.say(peer, (BORROW_RELEASE, key, row.attempt))
        self._counted(row)

    # ---- being counted ----

    def when_acknowledged(self, rows: Iterable[Row], call: Callable[[], None]) -> None:
        """Call once the owner of each row counts this process, or there is nothing to count."""
        waiting = [
            row
            for row in rows
            if row.borrowed and isinstance(row, Borrowed) and not row.acknowledged
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
        self._table.use_all((outer,))
        self.when_acknowledged(rows, lambda: self._lifecycle.release_uses((outer,)))

    def inside_result(
        self, view: WorkerView, row: Row, inside: Iterable[Origin]
    ) -> tuple[Row, ...]:
        """Rows of the futures that came inside a result, to be kept with it.

        The worker keeps them too until they are counted for this process.
        """
        inner = self.rows_of(inside)
        self.when_acknowledged(inner, counted(view, row.key, row.attempt))
        if row in inner:  # else nothing would ever free it
            self._lifecycle.release_uses([r for r in inner if r is row])
            inner = tuple([r for r in inner if r is not row])
        return inner

    def _counted(self, row: Borrowed) -> None:
        row.acknowledged = True
        if row.returns is not None:
            returns, row.returns = row.returns, None
            for peer, key, number in returns:
                self._peers.say(peer, (BORROW_RELEASE, key, number))
        if row.handovers is not None:
            handovers, row.handovers = row.handovers, None
            handovers.one_counted()

    # ---- asking its owner ----

    def request(self, row: Borrowed, what: str, detail: Any) -> None:
        """Have the owner ``cancel`` or ``retry`` it, look where it is, or ``follow`` what it
        waits for."""
        if not row.attempt and row.state == WAITING:
            self.borrow(row)  # it was to be soon, and only what was lent can be asked about
        self._peers.say(
            self._peers.peer(row.owner_ref[:3]),
            (REQUEST, what, row.owner_ref[3], row.attempt, detail),
        )

    def retry(self, row: Borrowed) -> None:
        """Have the owner try a failed row again, which waits for that here."""
        self.request(row, "retry", "")
        if row.state == ERROR and not self._peers.peer(row.owner_ref[:3]).gone:
            self._waits_again(row)

    def _waits_again(self, row: Borrowed) -> None:
        """A failed row is tried again at its owner: what failed here because of it is, too."""
        inside, row.contains = row.contains, ()
        revive(self._lifecycle, [row])
        self._lifecycle.release_uses(inside)

    def missed(self, row: Borrowed, addresses: Iterable[str]) -> None:
        """Those said to have it do not, as those at these addresses say: ask its owner."""
        if row.state != STORED:
            return
        row.misses += 1
        if row.misses > MISSES:
            holders = ", ".join(row.addresses)
            self._lifecycle.losses[LOST_DATA] += 1
            self._lose(row, "lost-data", f"its holders {holders} do not have it any more")
            return
        self._lifecycle.wait_for_owner(row)
        self.request(row, "missed", tuple(addresses))

    # ---- what its owner says ----

    def _on_lent(self, peer: Peer, key: Key, number: int, outcome: Outcome | None) -> None:
        row = peer.borrowed.get(number)
        if row is not None and row.owner_ref[3] == key:
            self._told(peer, row, outcome, True)

    def _on_outcome(self, peer: Peer, key: Key, number: int, outcome: Outcome | None) -> None:
        row = peer.borrowed.get(number)
        if row is not None and row.owner_ref[3] == key:
            self._told(peer, row, outcome, False)

    def _on_moved(
        self,
        peer: Peer,
        key: Key,
        number: int,
        place: OwnerRef,
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
            self._lifecycle.wait_for_owner(row)
            row.addresses = ()
        elif row.state == ERROR and not lent:
            self._waits_again(row)
        if lent and (row.returns or not row.acknowledged):
            self._counted(row)

    def _take_in(self, row: Borrowed, outcome: Outcome) -> None:
        """What became of a borrowed value, or where it is now."""
        lifecycle = self._lifecycle
        state = outcome[0]
        if state == STORED and row.state == STORED and row.made_by == outcome[4]:
            row.addresses = tuple(outcome[3])
            return
        if state == STORED and row.state == STORED:
            lifecycle.wait_for_owner(row)  # it was made again
        had = row.state
        ends = (had == STORED and state > STORED) or (had == INLINE and state == CANCELLED)
        if had >= INLINE and not ends:
            return
        if state == INLINE:
            row.version = self._next_version()
            row.freed = None
            row.contains = self._came_with(row, outcome[2])
            lifecycle.finish_borrowed(row, INLINE, outcome[1], len(outcome[1]))
        elif state == STORED:
            if outcome[4] != row.made_by or tuple(outcome[3]) != row.addresses:
                row.misses = 0  # its owner found it elsewhere, or made it again
            row.survived = ()
            row.freed = None
            row.type_name = outcome[2]
            row.addresses = tuple(outcome[3])
            row.made_by = outcome[4]
            row.version = self._next_version()
            lifecycle.finish_borrowed(row, STORED, None, outcome[1])
        elif state == ERROR and isinstance(outcome[1], bytes):
            row.contains = self._came_with(row, outcome[2])
            lifecycle.end_with_dependents(row, ERROR, outcome[1])
        else:
            _, kind, name, detail, chain = outcome
            if row.freed is not None:
                # Those who led to it could not make it again.
                lifecycle.end_with_dependents(row, state, row.freed)
                return
            kind = "lost-data" if kind == FREED else kind
            if is_adopted(name):
                name, detail = row.origin[3], f"its owner {row.origin[2]} is gone; {detail}"
            if kind == "owner-lost":
                lifecycle.losses[OWNER_LOST] += 1
                if not chain:
                    chain = owners_of(row.origin)
                    if row.owner_ref[0] != row.origin[0]:
                        detail = f"{row.owner_ref[2]} says: {detail}"
            failure = Failure(kind, name, detail, chain=tuple(chain))
            lifecycle.end_with_dependents(row, state, failure)

    def _next_version(self) -> int:
        self._lifecycle.numbers += 1
        return self._lifecycle.numbers

    def _came_with(self, row: Borrowed, origins: Iterable[Origin]) -> tuple[Row, ...]:
        """Rows of the futures inside a value or an error that was borrowed."""
        held = self._hold_inside(origins)
        if held is None:
            inner = borrowed = self.rows_of(origins)
        else:
            inner = held
            borrowed = tuple(source for one in held for source in one.dependencies)
        if borrowed:
            self.hold_until_counted(row, borrowed)
        return inner

    def _moved(
        self, peer: Peer, row: Borrowed, place: OwnerRef, outcome: Outcome | None, path: Path | None
    ) -> None:
        """Another owns it now; the old borrowing is given back when that one counts this."""
        del peer.borrowed[row.attempt]
        row.returns = [*(row.returns or ()), (peer, row.owner_ref[3], row.attempt)]
        row.owner_ref = place
        row.path = path
        row.freed = None
        if outcome is not None:
            self._take_in(row, outcome)
        self.borrow(row)
        if place[0] == self._peers.process[0]:
            self._is_own_now(row)

    def _is_own_now(self, row: Borrowed) -> None:
        """A borrowed row is owned by this process itself, which took it over.

        Its failure cannot be tried again: the task that failed is not here.
        """
        own = self._table.rows.get(row.owner_ref[3])
        if own is None or own.options.adopted is None:
            return
        if own.state == ERROR and own.function is not None:
            self._lifecycle.cannot_be_retried(own)

    # ---- its owner is gone ----

    def _on_gone(self, peer: Peer) -> None:
        borrowed = list(peer.borrowed.values())
        if borrowed:
            self._lifecycle.losses[OWNERS_GONE] += 1
        peer.borrowed.clear()
        for row in borrowed:
            self._climb(row)

    def _climb(self, row: Borrowed) -> None:
        """Its owner is gone: ask the owner of the task that submitted it, or of that one's."""
        level = None
        if row.state < INLINE:
            # Also when it is the same one again: whoever says that it is there has not heard yet.
            row.survived += (row.owner_ref[2],)
            # It may be what they die of: as for a task that is never alone when one dies.
            if len(row.survived) > 4 * (self._limits.allowed_failures + 1):
                names = ", ".join(row.survived)
                self._lose(row, "owner-lost", f"those who owned it died before it ended: {names}")
                self._counted(row)
                return
        if row.state < INLINE or row.state == STORED:
            level = heir_of(row.origin, lambda process: self._peers.peer(process).gone)
        if level is None:
            # Unless it has what there is to have.
            self._lose(row, "owner-lost", "no process lives that led to it")
            self._counted(row)
            return
        gone = row.owner_ref[0]
        heir = level[:3]
        key = adopted_key(row.origin)
        if self._is_made_of(row, heir):
            key = ("asked", *key[1:])  # type: ignore[index]
        row.owner_ref = (*heir, key)
        row.path = path_from(row.origin, level)
        self._lifecycle.wait_for_owner(row)
        row.addresses = ()
        peer = self._peers.peer(heir)
        self._borrow_from(peer, row)
        self._peers.say(peer, (BORROW, key, row.attempt, 0, row.path, gone))

    def _is_made_of(self, row: Borrowed, heir: Process) -> bool:
        """Whether this process is the heir, and its own object is still to be made from this."""
        if heir[0] != self._peers.process[0]:
            return False
        own = self._table.rows.get(adopted_key(row.origin))
        return own is not None and own.state < INLINE

    def _freed(self, peer: Peer, row: Borrowed, detail: str) -> bool:
        """Its owner freed it before it heard of this borrower; whether others are asked.

        Whoever passed it on kept it until then, but for one that was frozen meanwhile and
        whose value was made again elsewhere.
        """
        if row.acknowledged or row.owner_ref is not row.origin or row.origin[4] is None:
            return False
        del peer.borrowed[row.attempt]
        row.freed = Failure("lost-data", row.origin[3], detail)
        self._climb(row)
        return True

    def _lose(self, row: Borrowed, kind: str, reason: str) -> None:
        detail = f"{reason}; it was borrowed from {row.origin[2]}"
        self._take_in(row, (LOST, kind, row.origin[3], detail, ()))


def counted(view: WorkerView, name: Key, attempt: int) -> Callable[[], None]:
    """Tells a worker that the futures which it keeps under a name of an attempt are counted."""

    def tell() -> None:
        if view.alive:
            view.outbox.append((m.REFS_COUNTED, name, attempt))

    return tell
