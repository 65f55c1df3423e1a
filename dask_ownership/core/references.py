"""References that travel: who borrows what from whom.

A future that is pickled in one process and unpickled in another makes the other a
*borrower*. It has a row of its own for the value (`Borrowed`), which looks like any
other row to whoever waits for it or uses it in a task, and it tells the owner, which
counts it (`References.borrowers`) until it gives the value back.

Processes correspond in one ordered stream per pair (`Peer`), carried over the links
that are there anyway; a worker passes on what is for another process. In a stream:

``(BORROW, key, number, life, [path, gone])``
    To the owner: I have it now. ``number`` tells this borrowing from others, and ``life`` the
    object from others that had its key (0 for any). With a path: the
    receiver does not own it, but its task can make it (`core.climbing`); ``gone`` is the
    incarnation of the owner that died.
``(LENT, key, number, outcome)``
    From the owner: you are counted. The outcome is None while there is none.
``(OUTCOME, key, number, outcome)``
    From the owner: it ended, or its holders changed; None when it is made or tried again.
``(RETURN, key, number)``
    To the owner: nobody here has it any more.
``(REQUEST, what, key, number, detail)``
    To the owner: ``cancel`` or ``retry`` it; or it was ``missed`` by those of some addresses, which
    do not have it: say where it is now.
``(ADOPT, key, number, origin, pinned)``
    To an heir: take this object over under that key, which I borrow.
``(MOVED, key, number, place, outcome, path)``
    From the owner: borrow it from its new owner, and return it to me then. ``path`` is None,
    or what to ask the new owner for.
``(KEPT, key)``
    From the owner of a task, if it is a worker: the `KEEP` has arrived.
``(KEEP, key)``, ``(LET_GO, key)``
    To the owner of a task: what it submitted may be known elsewhere; it is not any more.
``(LEAVE,)``
    The sender ends: it borrows nothing any more, and what it owns is gone.

The rule that keeps values from being freed early: **nobody lets go of what it holds for
another until the owner has counted that other.** Whoever sends a value with futures in
it keeps them until the receiver says that it is counted everywhere (`when_counted`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dask_ownership.core import messages as m
from dask_ownership.core.adoption import LEAVES
from dask_ownership.core.identity import (
    Path,
    adopted_key,
    heir_of,
    held_at,
    is_adopted,
    owners_of,
    path_from,
    place_held,
)
from dask_ownership.core.lifecycle import RowListener
from dask_ownership.core.link import LinkState
from dask_ownership.core.losses import LOST_DATA, OWNER_LOST, OWNERS_GONE
from dask_ownership.core.messages import Key, Message, Origin, Place, Process, ValueName
from dask_ownership.core.row import (
    CANCELLED,
    DORMANT,
    ERROR,
    FORGOTTEN,
    HAS_BORROWERS,
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

BORROW = 0
LENT = 1
OUTCOME = 2
RETURN = 3
REQUEST = 4
LEAVE = 5
ADOPT = 6
MOVED = 7
KEEP = 8
LET_GO = 9
KEPT = 10

NAMES = (
    "BORROW",
    "LENT",
    "OUTCOME",
    "RETURN",
    "REQUEST",
    "LEAVE",
    "ADOPT",
    "MOVED",
    "KEEP",
    "LET_GO",
    "KEPT",
)
"""Kinds of messages in a stream by number, for people."""

MISSES = 20
"""How often in a row the same holders may not have a borrowed value before it counts as lost."""

FREED = "freed"
"""In place of the kind of a failure: nothing is known of such an object any more."""

HANDED_ON = 0.5
"""Seconds for which a borrower that is gone still counts: others may be about to be counted for
what it sent them."""

SECOND = "\0"
"""Between a process and the number of a borrowing, in the name of its second one of a row."""

NOBODY: dict[str, int] = {}

Outcome = tuple[Any, ...]
"""State, and what belongs to it: see `References.outcome_of`."""


class Peer:
    """Another process, as references need it.

    Attributes
    ----------
    process : Process
    stream : LinkState
        Numbers what is said to it and what it says.
    outbox : list
        What was not sent yet.
    borrowed : dict
        Number to our row, for what we borrow from it.
    lent : dict
        ``(key, number)`` to the row, for what it borrows from us.
    kept : dict
        Key to the row, for our tasks that it has us keep.
    gone : bool
    way : str
        The worker over whose link posts to it go, see `core.posting`; ``""`` when none did.
    turn : int
        How many could not carry them.
    """

    __slots__ = ("borrowed", "gone", "kept", "lent", "outbox", "process", "stream", "turn", "way")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.stream = LinkState()
        self.outbox: list[Message] = []
        self.borrowed: dict[int, Borrowed] = {}
        self.lent: dict[tuple[Key, int], Row] = {}
        self.kept: dict[Key, Row] = {}
        self.gone = False
        self.way = ""
        self.turn = 0

    def __repr__(self) -> str:
        return f"<Peer {self.process[2]} borrowed={len(self.borrowed)} lent={len(self.lent)}>"


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


class References(RowListener):
    """What one process borrows and lends.

    Parameters
    ----------
    core : Ownership
    process : Process
        This one: incarnation, address (of a worker, else empty) and name.

    Attributes
    ----------
    borrowers : dict
        Row to the incarnations of processes that borrow it and the numbers of those borrowings.
    """

    def __init__(self, core: Ownership, process: Process) -> None:
        self.core = core
        self.process = process
        self.peers: dict[str, Peer] = {}
        # Of strings and numbers only: the cyclic collector need not walk it.
        self.borrowers: dict[Row, dict[str, int]] = {}
        self.talking: dict[str, Peer] = {}
        self.mourned: dict[str, Peer] = {}
        self.left = False

    # ---- names ----

    def origin_of(self, row: Row) -> Origin:
        """How the object of a row is named everywhere."""
        if row.borrowed:
            assert isinstance(row, Borrowed)
            return row.origin
        options = row.options
        if options.adopted is not None:
            adopted: Origin = options.adopted
            return adopted if options.bequest is None else held_at(adopted, self.process)
        return (*self.process, row.key, options.heir, row.life or self.core.table.named(row))

    def value_name(self, row: Row) -> ValueName:
        """What workers that have its value, for its owner, know it by."""
        if isinstance(row, Borrowed):
            return row.place[0], row.place[3], row.made_by
        return self.process[0], row.key, row.attempt

    def peer(self, process: Process) -> Peer:
        """The peer of a process, made when it is new."""
        peer = self.peers.get(process[0])
        if peer is None:
            peer = self.peers[process[0]] = Peer(process)
            peer.gone = self.core.membership.is_gone(process[0])
        return peer

    def _say(self, peer: Peer, message: Message) -> None:
        if not peer.gone:
            peer.outbox.append(message)
            self.talking[peer.process[0]] = peer

    # ---- as a borrower ----

    def borrow(self, row: Borrowed) -> None:
        """A row that was just adopted: have its owner count it."""
        place = row.place
        peer = self.peers.get(place[0]) or self.peer(place[:3])
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
        self.talking[place[0]] = peer

    def _borrow_from(self, peer: Peer, row: Borrowed) -> None:
        self.core.lifecycle.numbers += 1
        row.attempt = self.core.lifecycle.numbers
        peer.borrowed[row.attempt] = row

    def adopt_at_heir(self, row: Borrowed, origin: Origin, pinned: bool) -> None:
        """Have the owner of a row that is new there make it, taking ``origin`` over."""
        peer = self.peer(row.place[:3])
        self._borrow_from(peer, row)
        self._say(peer, (ADOPT, row.place[3], row.attempt, origin, pinned))

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
            level = heir_of(row.origin, lambda process: self.peer(process).gone)
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
        peer = self.peer(heir)
        self._borrow_from(peer, row)
        self._say(peer, (BORROW, key, row.attempt, 0, row.path, gone))

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

    def borrow_at(self, row: Borrowed, place: Place) -> None:
        """It is there for certain: also when its owner freed it once, and has it again."""
        if row.place[:4] != place:
            peer = self.peer(row.place[:3])
            if peer.borrowed.get(row.attempt) is row:
                row.counted = False
                self._moved(peer, row, place, None, None)

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
        if place[0] == self.process[0]:
            self.core.adoption.settled(row)

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
        if origin[0] == self.process[0]:
            row = table.find(key, life=origin[5])
            if row is not None:
                return row, False
            if key not in self.core.adoption.moved and place_held(origin) is None:
                name = self.process[2]
                if self.left:
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
        elif origin[0] == self.process[0]:
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
            if origin[0] == self.process[0]:
                row = table.use(origin[3], origin[5])
                if row is not None:
                    row.shared_with(None)
                    self.core.lifecycle.wake(row)
                    rows.append(row)
                    continue
                if origin[3] not in self.core.adoption.moved and place_held(origin) is None:
                    continue
            made = self._borrowed(origin)
            if made.place[0] == self.process[0] and (row := table.use(made.place[3])):
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
                self._say(peer, (RETURN, key, number))
        if row.handovers is not None:
            handovers, row.handovers = row.handovers, None
            handovers.one_counted()

    def give_back(self, row: Borrowed) -> None:
        """Nobody here has it any more."""
        peer = self.peers.get(row.place[0])
        key = row.place[3]
        if peer is not None:
            peer.borrowed.pop(row.attempt, None)
            if row.attempt:
                self._say(peer, (RETURN, key, row.attempt))
        self._counted(row)

    def request(self, row: Borrowed, what: str, detail: Any) -> None:
        """Have the owner ``cancel`` or ``retry`` it, look where it is, or ``follow`` what it
        waits for."""
        if not row.attempt and row.state == WAITING:
            self.borrow(row)  # it was to be soon, and only what was lent can be asked about
        self._say(self.peer(row.place[:3]), (REQUEST, what, row.place[3], row.attempt, detail))

    def retry(self, row: Borrowed) -> None:
        """Have the owner try a failed row again, which waits for that here."""
        self.request(row, "retry", "")
        if row.state == ERROR and not self.peer(row.place[:3]).gone:
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

    def _lose(self, row: Borrowed, kind: str, reason: str) -> None:
        detail = f"{reason}; it was borrowed from {row.origin[2]}"
        self._take_in(row, (LOST, kind, row.origin[3], detail, ()))

    def _take_in(self, row: Borrowed, outcome: Outcome) -> None:
        """What became of a borrowed value, or where it is now."""
        core = self.core
        state = outcome[0]
        if state == STORED and row.state == STORED and row.made_by == outcome[4]:
            row.addresses = tuple(outcome[3])
            return
        if state == STORED and row.state == STORED:
            core.lifecycle.unhold(row)  # it was made again: copies of it are those of another value
            core.lifecycle.wait_for_owner(row)
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

    # ---- as an owner ----

    def outcome_of(self, row: Row) -> Outcome | None:
        """What a borrower is told of a row; None while it has not ended."""
        state = row.state
        if state < INLINE:
            return None
        if state == INLINE:
            return (INLINE, row.value, tuple([self.origin_of(r) for r in row.contains]))
        if state == STORED:
            if row.borrowed:
                assert isinstance(row, Borrowed)
                addresses, made_by = row.addresses, row.made_by
            else:
                addresses = tuple([view.address for view in row.holders])
                made_by = row.attempt
            return (STORED, row.nbytes, row.type_name, addresses, made_by)
        value = row.value
        if isinstance(value, bytes):
            return (ERROR, value, tuple([self.origin_of(r) for r in row.contains]))
        if isinstance(value, Failure):
            return (state, value.kind, value.key, value.detail, value.chain)
        return (LOST, "lost-data", row.key, "it was freed", ())

    def borrowers_of(self, row: Row) -> list[tuple[Peer, int]]:
        """Who borrows a row of this process, with the numbers of those borrowings."""
        peers = self.peers
        return [
            (peers[incarnation], number)
            for name, number in self.borrowers.get(row, NOBODY).items()
            if (incarnation := name.partition(SECOND)[0]) in peers
        ]

    def tell(self, row: Row) -> None:
        """A row that is lent ended, or has other holders: say so."""
        outcome = self.outcome_of(row)
        for peer, number in self.borrowers_of(row):
            self._say(peer, (OUTCOME, row.key, number, outcome))

    def finished(self, row: Row) -> None:
        """A row that is lent has a value."""
        if row in self.borrowers:
            self.tell(row)

    def ended(self, row: Row) -> None:
        """A row that is lent has no value."""
        if row in self.borrowers:
            self.tell(row)

    def holders_changed(self, row: Row) -> None:
        """Other workers have the value of a row that is lent."""
        if row in self.borrowers:
            self.tell(row)

    def forgotten(self, row: Row) -> None:
        """Nobody here has what another process owns."""
        if isinstance(row, Borrowed):
            self.give_back(row)

    def withdrawn(self, row: Row) -> None:
        """A row that is lent lost its value, which is made again: borrowers wait for it."""
        if row.state == STORED:
            count = len(self.borrowers.get(row, NOBODY))
            self.core.log(row, "withdrawn", f"from {count} borrowers, which wait")
        for peer, number in self.borrowers_of(row):
            self._say(peer, (OUTCOME, row.key, number, None))

    def _lend(
        self,
        peer: Peer,
        key: Key,
        number: int,
        life: int = 0,
        path: Path | None = None,
        gone: str = "",
    ) -> None:
        row = self.core.table.use(key, life)
        if row is None and path is not None:
            row = self.core.climbing.ask(key, tuple(path))
        if row is None:
            moved = self.core.adoption.moved.get(key)
            if moved is not None:
                self.say_moved(peer, key, number, moved, None)
                return
            self._say(peer, (LENT, key, number, self._outcome_of_gone(key, life)))
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
            self.core.lifecycle.wake(row)
        peer.lent[key, number] = row
        if row.state == INLINE and not row.contains:
            outcome: Outcome | None = (INLINE, row.value, ())
        else:
            outcome = self.outcome_of(row)
        self._say(peer, (LENT, key, number, outcome))
        if row in self.core.climbing.questions:
            self.core.climbing.asked_again(peer, row, number, gone)
        # Only a task that has run can have delegated; others of this kind wait for others' values.
        if row.attempt and row.state == WAITING and row.function is self.core.identity:
            self.core.cycles.delegated(row)  # now that somebody waits for it
        if had_some:
            self.core.lifecycle.release_uses((row,))

    def _outcome_of_gone(self, key: Key, life: int = 0) -> Outcome:
        """What is told to one that asks for what is not in the table any more.

        Of a key that was used again, that of this life of it; of any when that is 0.
        """
        another = life and (key, life) not in self.core.lifecycle.cancelled_lives
        for gone, event, detail, _ in reversed(self.core.history):
            if gone == key and event == "cancelled" and not another:
                return (CANCELLED, "cancelled", key, detail, ())
        if not is_adopted(key):
            detail = f"{self.process[2]} freed it: nobody held it when this process asked for it"
            return (LOST, FREED, key, detail, ())
        detail = (
            f"{self.process[2]}, which owns the task that submitted it, has not taken it "
            "over, or has freed it"
        )
        return (LOST, "lost-data", key, detail, ())

    def say_moved(
        self,
        peer: Peer,
        key: Key,
        number: int,
        place: Place,
        outcome: Outcome | None,
        path: Path | None = None,
    ) -> None:
        """Tell a borrower who owns it now."""
        self._say(peer, (MOVED, key, number, place, outcome, path))

    def say_keep(self, heir: Process, key: Key, yes: bool) -> None:
        """Have the owner of a task keep it for what it submitted here, or let it go."""
        self._say(self.peer(heir), (KEEP if yes else LET_GO, key))

    def _unlend(self, peer: Peer, key: Key, number: int) -> None:
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
            self.core.lifecycle.let_go_of_inside(row)
            self.core.lifecycle.release_uses((row,))

    # ---- streams ----

    def receive(self, sender: Process, batch: Any) -> None:
        """What another process says. None when it cannot be reached and never will be."""
        if batch is None:
            self.core.membership.process_gone(sender[0])
            return
        mourned = self.mourned.get(sender[0])
        if mourned is None and self.core.membership.is_gone(sender[0]):
            return
        peer = mourned or self.peer(sender)
        before = peer.stream.received
        try:
            messages = peer.stream.receive(batch)
        except ValueError:
            return  # what is missing in between is on its way again
        if mourned is not None:
            self._said_before_it_went(mourned, messages)
            return
        if batch[0] and batch[0] <= before:
            peer.stream.unsaid += 1  # it is sent until this is said
            self.core.posting.unheard(peer)
        if peer.stream.unsaid:
            self.talking[sender[0]] = peer
        for message in messages:
            try:
                self._heard(peer, message)
            except Exception as error:
                said = NAMES[message[0]] if message and message[0] in range(len(NAMES)) else "?"
                self.core.broke(None, error, f"{said} of {sender[2]} could not be taken in")

    def _heard(self, peer: Peer, message: Message) -> None:
        """One message of another process."""
        kind = message[0]
        if kind == BORROW:
            self._lend(peer, *message[1:])
        elif kind == RETURN:
            self._unlend(peer, message[1], message[2])
        elif kind == LENT or kind == OUTCOME:
            borrowed = peer.borrowed.get(message[2])
            if borrowed is not None and borrowed.place[3] == message[1]:
                self._told(peer, borrowed, message[3], kind == LENT)
        elif kind == MOVED:
            borrowed = peer.borrowed.get(message[2])
            if borrowed is not None:
                self._moved(peer, borrowed, message[3], message[4], message[5])
        elif kind == KEEP:
            self._keep(peer, message[1])
        elif kind == KEPT:
            self.core.climbing.told(peer.process[0], message[1])
        elif kind == LET_GO:
            row = peer.kept.pop(message[1], None)
            if row is not None:
                self.core.climbing.let_go(row)
        elif kind == ADOPT and self.core.adoption.refuses(peer.process[0], message[1]):
            refusal = (LOST, LEAVES, message[1], f"{self.process[2]} leaves, too", ())
            self._say(peer, (LENT, message[1], message[2], refusal))
        elif kind == ADOPT:
            row = self.core.adoption.adopt(message[1], message[3], message[4])
            self._lend(peer, message[1], message[2])
            if row is not None:
                self.core.release([row])
        elif kind == REQUEST:
            self._requested(peer, *message[1:])
        elif kind == LEAVE:
            self.core.membership.process_gone(peer.process[0])

    def _said_before_it_went(self, peer: Peer, messages: Iterable[Message]) -> None:
        """Of a process that is gone: only which tasks to keep, for those who will ask."""
        for message in messages:
            if message[0] == KEEP:
                self._keep(peer, message[1])
        self.core.climbing.orphan(peer.process[0], list(peer.kept.values()))
        peer.kept.clear()

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

    def _requested(self, peer: Peer, what: str, key: Key, number: int, detail: Any) -> None:
        row = peer.lent.get((key, number))
        if what == "missed":
            self._missed_by(peer, key, number, detail)
        elif row is None or row.state == FORGOTTEN:
            pass  # it gave it back since, or it is gone
        elif what == "cancel":
            self.core.cancel([row], detail)
        elif what == "follow":
            self.core.cycles.follow(row, detail)
        elif what == "retry":
            self.core.retry([row])
            if row.done:
                # It cannot be tried again, or was already: who asked waits for an answer.
                self._say(peer, (OUTCOME, key, number, self.outcome_of(row)))

    def _missed_by(self, peer: Peer, key: Key, number: int, addresses: Iterable[str]) -> None:
        """A borrower asked those who have it, and these do not.

        What a task was to fetch counts as there; when it ends before it has, nobody says so.
        """
        row = peer.lent.get((key, number))
        if row is None:
            self._say(peer, (LENT, key, number, self._outcome_of_gone(key)))
            return
        # Another place may be under way to it: then it asked those who had it before.
        unheard = [message for _, batch in peer.stream.unacknowledged for message in batch]
        for message in (*unheard, *peer.outbox):
            if message[0] in (LENT, OUTCOME) and message[1:3] == (key, number):
                return
        self.core.missed(row, addresses)
        if row.done:
            self._say(peer, (OUTCOME, key, number, self.outcome_of(row)))

    def _keep(self, peer: Peer, key: Key) -> None:
        if self.process[1]:
            self._say(peer, (KEPT, key))
        row = self.core.table.rows.get(key)
        if row is not None and key not in peer.kept and self.core.climbing.can_keep(row):
            peer.kept[key] = row
            self.core.climbing.keep(row)

    def say_to_itself(self) -> None:
        """Hear what this process has to say to itself, which may be to run a task."""
        myself = self.process[0]
        while myself in self.talking:
            peer = self.talking.pop(myself)
            if peer.outbox:
                messages, peer.outbox = peer.outbox, []
                self.receive(self.process, peer.stream.pack(messages))

    def flush(self, acknowledge: bool = False) -> list[tuple[Peer, Message]]:
        """What is to be posted now, by receiver.

        ``acknowledge`` also says what arrived to those to whom there is nothing to say.
        """
        posts: list[tuple[Peer, Message]] = []
        self.say_to_itself()
        for incarnation, peer in list(self.talking.items()):
            if peer.outbox or (acknowledge and peer.stream.unsaid):
                messages, peer.outbox = peer.outbox, []
                batch = peer.stream.pack(messages)
                posts.append((peer, (m.POST, peer.process, self.process, batch)))
            if not peer.stream.unsaid:
                del self.talking[incarnation]
        return posts

    def unacknowledged(self, peer: Peer) -> list[Message]:
        """What it may not have got of what was posted."""
        batches = peer.stream.resume(peer.stream.acknowledged)
        return [(m.POST, peer.process, self.process, batch) for batch in batches]

    # ---- ends ----

    def process_gone(self, incarnation: str) -> None:
        """A process is gone for good, as `Membership` says: as an owner, and as a borrower.

        It still counts as a borrower for a while, because others may be about to be counted
        for what it sent them.
        """
        peer = self.peers.pop(incarnation, None)
        self.talking.pop(incarnation, None)
        if peer is None or peer.gone:
            return
        peer.gone = True
        peer.outbox.clear()
        self.mourned[incarnation] = peer
        self.core.later(HANDED_ON, self._bury, incarnation)
        borrowed = list(peer.borrowed.values())
        if borrowed:
            self.core.losses[OWNERS_GONE] += 1
        peer.borrowed.clear()
        kept = list(peer.kept.values())
        peer.kept.clear()
        self.core.climbing.process_gone(incarnation, kept)
        for row in borrowed:
            self._climb(row)

    def _bury(self, incarnation: str) -> None:
        """What a process that is gone handed on is counted by now."""
        peer = self.mourned.pop(incarnation)
        for key, number in list(peer.lent):
            self._unlend(peer, key, number)

    def leave(self) -> None:
        """This process ends: tell everyone it corresponds with."""
        self.left = True
        for peer in list(self.peers.values()):
            self._say(peer, (LEAVE,))


def instead_of(message: Message, why: str) -> Message | None:
    """What is said in place of something that cannot be sent to another process; None for
    nothing."""
    if message[0] in (LENT, OUTCOME):
        return (*message[:3], (LOST, "lost-data", message[1], why, ()))
    if message[0] == MOVED:
        return (*message[:4], None, message[5])
    return None
