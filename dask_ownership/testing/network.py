"""The virtual network: links that delay, reorder, repeat and break, by a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dask_ownership.core.executor.session import STATE_NAMES as ENTRY_STATES
from dask_ownership.core.executor.session import Session
from dask_ownership.core.owner.references.peers import Peer
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol import peer_messages as r
from dask_ownership.core.protocol.states import STATE_NAMES as ROW_STATES
from dask_ownership.testing.clock import Clock
from dask_ownership.testing.pipe import OwnerProcess, Pipe, WorkerProcess
from dask_ownership.testing.task import ARGUMENTS, VALUE


def packable(messages: list[Any], cannot: list[Any]) -> list[Any]:
    """Those of the messages that can be packed; the others are added to ``cannot``."""
    good = []
    for message in messages:
        if (message[0] == m.PUSH and ARGUMENTS.encode() in message[4]) or (
            message[0] == m.DONE and VALUE.encode() in message[3]
        ):
            cannot.append(message)
        else:
            good.append(message)
    return good


@dataclass
class Faults:
    """How bad the network is; each is a probability per batch or per event."""

    duplicate: float = 0.1
    disconnect: float = 0.02
    longest_delay: float = 2_000.0
    unanswered: float = 0.1


BREAKS = 20
"""How often a link may break before anything gets through: any longer is a partition. Else,
where many batches are sent anew and each of them may break it, nothing would ever arrive."""


class Watcher:
    """Is told what arrives where; each method does nothing until a subclass has it do something."""

    def heard(self, pipe: Pipe, message: Any, to_worker: bool) -> None:
        """A message is about to be received over a link."""

    def heard_post(self, sender: str, receiver: str, said: Any) -> None:
        """A message of one process to another is about to be received."""

    def worker_took_in(self, worker: WorkerProcess, messages: Sequence[Any]) -> None:
        """A worker has received a batch."""

    def owner_took_in(self, owner: OwnerProcess, messages: Sequence[Any]) -> None:
        """An owner has received a batch."""


class Network:
    """Carries batches along pipes, and counts what met what.

    Parameters
    ----------
    random : Random
    faults : Faults
    clock : Clock

    Attributes
    ----------
    pipes : dict of Pipe to None
        Those that are open.
    no_route : set of tuple
        Names of owners and addresses of workers that those cannot link to.
    relayed : set of tuple
        Names of owners and addresses of workers whose links are relayed by the scheduler: what
        is sent there takes two ways, and all these links break or stall together.
    met : Counter
        ``(state, kind)``: how often a message of a kind found a row (by the name of
        its state) or an entry in a state; ``none`` when there was none, and ``late``
        before the state when the message speaks of another attempt. Under ``lent``
        and ``borrowed`` what one process says to another about references, by the
        state of the row that it is about.
    watchers : list of Watcher
        Those that are told what arrives where.
    """

    def __init__(self, random: Random, faults: Faults, clock: Clock) -> None:
        self.random = random
        self.faults = faults
        self.clock = clock
        self.pipes: dict[Pipe, None] = {}
        self.no_route: set[tuple[str, str]] = set()
        self.relayed: set[tuple[str, str]] = set()
        self.met: Counter[tuple[str, str, str]] = Counter()
        self.watchers: list[Watcher] = []
        self._cut: dict[frozenset[str], list[Callable[[], None]]] = {}

    def delay(self) -> float:
        """How long the next message takes, in microseconds."""
        return self.random.expovariate(1.0) * self.faults.longest_delay / 5

    def close(self, owner: OwnerProcess) -> None:
        """Close all links of a process that has ended."""
        for pipe in list(self.pipes):
            if owner in (pipe.owner, pipe.worker.owner):
                del self.pipes[pipe]

    def partition(self, one: str, other: str, microseconds: float) -> None:
        """Nothing gets from one process to another for a while; connections stay open."""
        pair = frozenset((one, other))
        if pair not in self._cut:
            self._cut[pair] = []
            self.clock.later(microseconds, lambda: self._mend(pair))

    def _mend(self, pair: frozenset[str]) -> None:
        for deliver in self._cut.pop(pair):
            deliver()

    @property
    def is_parted(self) -> bool:
        """Whether nothing gets from some process to some other now."""
        return bool(self._cut)

    def parted(self, one: str, other: str) -> bool:
        """Whether nothing gets from one process to another now."""
        return frozenset((one, other)) in self._cut

    def send(self, pipe: Pipe, batch: Any, to_worker: bool) -> None:
        """Deliver a batch after a while: in order on this link, perhaps twice, or
        never, when the connection breaks and both ends resume."""
        now = self.clock.now
        at = now + self.delay()
        if self.relayed and self._is_relayed(pipe):
            at += self.delay()
        at = max(at, (pipe.to_worker_at if to_worker else pipe.to_owner_at) + 0.001)
        if to_worker:
            pipe.to_worker_at = at
        else:
            pipe.to_owner_at = at
        epoch = pipe.epoch
        times = 2 if self.random.random() < self.faults.duplicate else 1
        for _ in range(times):
            self.clock.later(at - now, lambda: self._deliver(pipe, batch, to_worker, epoch))
        if self.random.random() < self.faults.disconnect and pipe.breaks < BREAKS:
            self.clock.later(self.delay(), lambda: self._disconnect(pipe, epoch))

    def _is_relayed(self, pipe: Pipe) -> bool:
        return (pipe.owner.name, pipe.worker.address) in self.relayed

    def break_relays(self) -> None:
        """All relayed connections end, as when the scheduler is started again."""
        for pipe in [pipe for pipe in self.pipes if self._is_relayed(pipe)]:
            self._disconnect(pipe, pipe.epoch)

    def stall_relays(self, microseconds: float) -> None:
        """The scheduler passes nothing on for a while; connections stay open."""
        for pipe in [pipe for pipe in self.pipes if self._is_relayed(pipe)]:
            self.partition(pipe.owner.name, pipe.worker.owner.name, microseconds)

    def _deliver(self, pipe: Pipe, batch: Any, to_worker: bool, epoch: int) -> None:
        if epoch != pipe.epoch or pipe not in self.pipes:
            return
        pair = frozenset((pipe.owner.name, pipe.worker.owner.name))
        if pair in self._cut:
            self._cut[pair].append(lambda: self._take_in(pipe, batch, to_worker, epoch))
        else:
            self._take_in(pipe, batch, to_worker, epoch)

    def _take_in(self, pipe: Pipe, batch: Any, to_worker: bool, epoch: int) -> None:
        """A batch is at the process that it is for, which hears of it once it is not stopped."""
        process = pipe.worker.owner if to_worker else pipe.owner
        process.when_awake(lambda: self._hear(pipe, batch, to_worker, epoch))

    def _hear(self, pipe: Pipe, batch: Any, to_worker: bool, epoch: int) -> None:
        if epoch != pipe.epoch or pipe not in self.pipes:
            return
        pipe.breaks = 0
        if to_worker:
            messages = pipe.there.receive(batch)
            pipe.worker.core.acknowledged(pipe.session, pipe.there.acknowledged)
            for message in messages:
                self._count_entry(pipe.session, message)
                for watcher in self.watchers:
                    watcher.heard(pipe, message, to_worker)
                pipe.worker.core.receive(pipe.session, [message])
            pipe.worker.wants_step()
            for watcher in self.watchers:
                watcher.worker_took_in(pipe.worker, messages)
        else:
            pipe.heard = True
            messages = pipe.here.receive(batch)
            for message in messages:
                self._count_row(pipe, message)
                for watcher in self.watchers:
                    watcher.heard(pipe, message, to_worker)
                pipe.owner.core.receive(pipe.view, [message], self.clock.now)
            pipe.owner.wants_step()
            for watcher in self.watchers:
                watcher.owner_took_in(pipe.owner, messages)

    def _count_entry(self, session: Session, message: Any) -> None:
        kind = m.NAMES[message[0]]
        if kind in ("PUSH", "COPY", "CANCEL", "FREE"):
            for key in message[1] if kind == "FREE" else (message[1],):
                entry = session.entries.get(key)
                state = ENTRY_STATES[entry.state] if entry is not None else "none"
                self.met["entry", state, kind] += 1
        elif kind == "REFS_COUNTED":
            handed = (message[1], message[2]) in session.handed
            self.met["entry", "handed" if handed else "none", kind] += 1

    def _count_row(self, pipe: Pipe, message: Any) -> None:
        kind = m.NAMES[message[0]]
        if kind == "POST":
            self.count_post(pipe.owner, message)
            return
        if kind in ("ACCEPTING", "LEAVING") or message[1] is None:
            return
        if kind == "GIVEN_BACK":
            kind = f"GIVEN_BACK {message[3]}"
        row = pipe.owner.core.table.rows.get(message[1])
        if row is None:
            state = "none"
        else:
            state = ROW_STATES[row.state]
            if row.attempt != message[2]:
                state = f"late {state}"
        self.met["row", state, kind] += 1

    def count_post(self, owner: OwnerProcess, message: Any) -> None:
        """What another process says about references, before it is received."""
        _, to, sender, batch = message
        if to[0] != owner.name or batch is None:
            return
        peer = owner.core.peers.known.get(sender[0])
        if peer is None:
            peer = Peer(sender)
        if peer.gone or batch[0] != peer.stream.received + 1:
            return  # it came twice
        for said in batch[2]:
            kind = r.NAMES[said[0]]
            for watcher in self.watchers:
                watcher.heard_post(sender[2], owner.name, said)
            row: Row | None
            if kind == "LEAVE":
                self.met["lent", "any", kind] += 1
                continue
            if kind in ("BORROW_ACK", "VALUE_UPDATE", "MOVED"):
                where, row = "borrowed", peer.borrowed.get(said[2])
            elif kind == "BORROW_RELEASE":
                where, row = "lent", peer.lent.get((said[1], said[2]))
            elif kind == "REQUEST":
                where, kind = "lent", f"REQUEST:{said[1]}"
                row = owner.core.table.rows.get(said[2])
            else:
                where, row = "lent", owner.core.table.rows.get(said[1])
            self.met[where, "none" if row is None else ROW_STATES[row.state], kind] += 1

    def _disconnect(self, pipe: Pipe, epoch: int) -> None:
        if epoch != pipe.epoch or pipe not in self.pipes:
            return
        pipe.epoch += 1
        pipe.breaks += 1
        for batch in pipe.here.resume(pipe.there.received):
            self.send(pipe, batch, to_worker=True)
        for batch in pipe.there.resume(pipe.here.received):
            self.send(pipe, batch, to_worker=False)
