"""The virtual network: links with delays, repetitions and breaks, by a seed."""

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
from dask_ownership.core.protocol.names import INCARNATION, NAME
from dask_ownership.core.protocol.states import STATE_NAMES as ROW_STATES
from dask_ownership.testing.clock import Clock
from dask_ownership.testing.pipe import OwnerProcess, Pipe, WorkerProcess
from dask_ownership.testing.task import ARGUMENTS, VALUE


def packable(messages: list[Any], cannot: list[Any]) -> list[Any]:
    """Return the messages that can be packed, and append all other messages to ``cannot``."""
    good = []
    for message in messages:
        pickled = [item for item in message if isinstance(item, bytes)]
        kind = message[m.KIND]
        if (kind == m.PUSH and any(ARGUMENTS.encode() in item for item in pickled)) or (
            kind == m.DONE and any(VALUE.encode() in item for item in pickled)
        ):
            cannot.append(message)
        else:
            good.append(message)
    return good


@dataclass
class Faults:
    """How bad the network is: probabilities per batch or per question, and the longest delay.

    Attributes
    ----------
    duplicate, disconnect : float
        Probabilities per batch to arrive twice, and to break the connection.
    longest_delay : float
        Virtual microseconds: five times the mean of the delays, which have no upper bound.
    unanswered : float
        Probability that the scheduler does not answer a question.
    """

    duplicate: float = 0.1
    disconnect: float = 0.02
    longest_delay: float = 2_000.0
    unanswered: float = 0.1


BREAKS = 20
"""How often a link may break before a batch gets through. After a break all unacknowledged batches
are sent again, and each may break the link again: without a bound none might ever arrive."""


class Watcher:
    """Is told of all that arrives in a network. The methods do nothing, unless a subclass does."""

    def heard(self, pipe: Pipe, message: Any, to_worker: bool) -> None:
        """Hear that a message is about to be received over a link."""

    def heard_post(self, sender: str, receiver: str, said: Any) -> None:
        """Hear that a message of one process to another is about to be received."""

    def worker_took_in(self, worker: WorkerProcess, messages: Sequence[Any]) -> None:
        """Hear that a worker has received a batch."""

    def owner_took_in(self, owner: OwnerProcess, messages: Sequence[Any]) -> None:
        """Hear that an owner has received a batch."""


class Network:
    """Carries batches along pipes, and counts which messages met which states.

    Parameters
    ----------
    random : Random
    faults : Faults
    clock : Clock

    Attributes
    ----------
    pipes : dict of Pipe to None
        The open pipes, in the order in which they were made.
    no_route : set of tuple
        Names of owners, each with the address of a worker to which the owner cannot link.
    relayed : set of tuple
        Names of owners, each with the address of a worker to which the scheduler relays: messages
        take two ways, and all these links break or stall together.
    met : Counter
        ``(what, state, kind)``: how often a message of a kind met a state. ``what`` is ``row`` or
        ``entry`` for messages of links, and ``lent`` or ``borrowed`` for messages about references
        between processes. The state is that of the row or entry in question: ``none`` when there
        is no such row or entry, with ``late`` before it when the message is about another attempt.
    watchers : list of Watcher
        Told of all that arrives.
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
        """Draw how long the next message takes, in virtual microseconds."""
        return self.random.expovariate(1.0) * self.faults.longest_delay / 5

    def close(self, owner: OwnerProcess) -> None:
        """Close all links from and to a process that has ended."""
        for pipe in list(self.pipes):
            if owner in (pipe.owner, pipe.worker.owner):
                del self.pipes[pipe]

    def partition(self, one: str, other: str, microseconds: float) -> None:
        """Hold back all batches between two processes for a while; connections stay open."""
        pair = frozenset((one, other))
        if pair not in self._cut:
            self._cut[pair] = []
            self.clock.later(microseconds, lambda: self._mend(pair))

    def _mend(self, pair: frozenset[str]) -> None:
        for deliver in self._cut.pop(pair):
            deliver()

    @property
    def is_parted(self) -> bool:
        """Whether any two processes are parted now."""
        return bool(self._cut)

    def parted(self, one: str, other: str) -> bool:
        """Return whether batches between these two processes are held back now."""
        return frozenset((one, other)) in self._cut

    def send(self, pipe: Pipe, batch: Any, to_worker: bool) -> None:
        """Deliver a batch after a while, in order on its link.

        The batch may arrive twice, or not before its connection has broken and both ends resume.
        """
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
        # Twice at the same time: the second arrival has to change nothing.
        times = 2 if self.random.random() < self.faults.duplicate else 1
        for _ in range(times):
            self.clock.later(at - now, lambda: self._deliver(pipe, batch, to_worker, epoch))
        if self.random.random() < self.faults.disconnect and pipe.breaks < BREAKS:
            self.clock.later(self.delay(), lambda: self._disconnect(pipe, epoch))

    def _is_relayed(self, pipe: Pipe) -> bool:
        return (pipe.owner.name, pipe.worker.address) in self.relayed

    def break_relays(self) -> None:
        """End all relayed connections, as when the scheduler is started again."""
        for pipe in [pipe for pipe in self.pipes if self._is_relayed(pipe)]:
            self._disconnect(pipe, pipe.epoch)

    def stall_relays(self, microseconds: float) -> None:
        """Have the scheduler pass nothing on for a while; connections stay open."""
        for pipe in [pipe for pipe in self.pipes if self._is_relayed(pipe)]:
            self.partition(pipe.owner.name, pipe.worker.owner.name, microseconds)

    def _deliver(self, pipe: Pipe, batch: Any, to_worker: bool, epoch: int) -> None:
        """Have a batch arrive, unless its connection is gone or the processes are parted."""
        if epoch != pipe.epoch or pipe not in self.pipes:
            return
        pair = frozenset((pipe.owner.name, pipe.worker.owner.name))
        if pair in self._cut:
            self._cut[pair].append(lambda: self._take_in(pipe, batch, to_worker, epoch))
        else:
            self._take_in(pipe, batch, to_worker, epoch)

    def _take_in(self, pipe: Pipe, batch: Any, to_worker: bool, epoch: int) -> None:
        """Have the receiving process hear of a batch as soon as the process is not stopped."""
        process = pipe.worker.owner if to_worker else pipe.owner
        process.when_awake(lambda: self._hear(pipe, batch, to_worker, epoch))

    def _hear(self, pipe: Pipe, batch: Any, to_worker: bool, epoch: int) -> None:
        """Give a batch to the core of its receiver, one message at a time, and to watchers."""
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
                # One at a time, so that each message is counted with the state that it meets.
                pipe.worker.core.commands.receive(pipe.session, [message])
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
        """Count what a message of an owner is about to meet at a worker."""
        kind = m.NAMES[message[m.KIND]]
        if kind in ("PUSH", "COPY", "CANCEL", "FREE"):
            subject = message[m.SUBJECT]
            for key in subject if kind == "FREE" else (subject,):
                entry = session.entries.get(key)
                state = ENTRY_STATES[entry.state] if entry is not None else "none"
                self.met["entry", state, kind] += 1
        elif kind == "REFS_COUNTED":
            handed = (message[m.SUBJECT], message[m.ATTEMPT]) in session.handed
            self.met["entry", "handed" if handed else "none", kind] += 1

    def _count_row(self, pipe: Pipe, message: Any) -> None:
        """Count what a message of a worker is about to meet at an owner."""
        kind = m.NAMES[message[m.KIND]]
        if kind == "POST":
            self.count_post(pipe.owner, message)
            return
        if kind in ("ACCEPTING", "LEAVING") or message[m.SUBJECT] is None:
            return
        if kind == "GIVEN_BACK":
            _, _, _, reason, _ = message
            kind = f"GIVEN_BACK {reason}"
        row = pipe.owner.core.table.rows.get(message[m.SUBJECT])
        if row is None:
            state = "none"
        else:
            state = ROW_STATES[row.state]
            if row.attempt != message[m.ATTEMPT]:
                state = f"late {state}"
        self.met["row", state, kind] += 1

    def count_post(self, owner: OwnerProcess, message: Any) -> None:
        """Count what a post of another process is about to meet, and tell watchers of it."""
        _, to, sender, batch = message
        if to[INCARNATION] != owner.name or batch is None:
            return
        peer = owner.core.peers.known.get(sender[INCARNATION])
        if peer is None:
            peer = Peer(sender)
        numbered, _, messages = batch
        if peer.gone or numbered != peer.stream.received + 1:
            return  # it came before, or only acknowledges, or its sender is gone
        for said in messages:
            kind = r.NAMES[said[m.KIND]]
            key, number = r.of_borrowing(said)
            for watcher in self.watchers:
                watcher.heard_post(sender[NAME], owner.name, said)
            row: Row | None
            if kind == "LEAVE":
                self.met["lent", "any", kind] += 1
                continue
            if kind in ("BORROW_ACK", "VALUE_UPDATE", "MOVED"):
                where, row = "borrowed", peer.borrowed.get(number)
            elif kind == "BORROW_RELEASE":
                where, row = "lent", peer.lent.get((key, number))
            elif kind == "REQUEST":
                _, what, *_ = said
                where, kind = "lent", f"REQUEST:{what}"
                row = owner.core.table.rows.get(key)
            else:
                where, row = "lent", owner.core.table.rows.get(key)
            self.met[where, "none" if row is None else ROW_STATES[row.state], kind] += 1

    def _disconnect(self, pipe: Pipe, epoch: int) -> None:
        """Break the connection of a link: both ends send again what has not arrived."""
        if epoch != pipe.epoch or pipe not in self.pipes:
            return
        pipe.epoch += 1  # batches of the old connection, which are still events, are dropped
        pipe.breaks += 1
        for batch in pipe.here.resume(pipe.there.received):
            self.send(pipe, batch, to_worker=True)
        for batch in pipe.there.resume(pipe.here.received):
            self.send(pipe, batch, to_worker=False)
