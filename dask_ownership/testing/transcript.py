"""Transcripts of the virtual cluster: its messages, and the changes of all tables."""

from __future__ import annotations

from typing import Any

from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol import peer_messages as pm
from dask_ownership.core.protocol.names import INCARNATION, KEY, NAME
from dask_ownership.core.protocol.outcomes import read_outcome
from dask_ownership.core.protocol.states import STATE_NAMES
from dask_ownership.testing.invariants import rows_of
from dask_ownership.testing.network import Watcher
from dask_ownership.testing.pipe import Pipe
from dask_ownership.testing.virtual import VirtualCluster, VirtualOwner

UNSAID = frozenset({m.FUNCTION, m.ACCEPTING})
"""Messages that are left out, because every transcript would repeat them."""


class Transcript(Watcher):
    """Writes down messages and changes of rows in a virtual cluster, for people.

    Parameters
    ----------
    cluster : VirtualCluster

    Attributes
    ----------
    cluster : VirtualCluster
    lines : list of str
    """

    def __init__(self, cluster: VirtualCluster) -> None:
        self.cluster = cluster
        self.lines: list[str] = []
        self._before: dict[tuple[str, str], str] = {}
        self._names: dict[str, str] = {}
        cluster.network.watchers.append(self)

    def note(self, text: str) -> None:
        """Write down what the program does next, as a heading."""
        self._look()
        self.lines += ["", f"# {text}", ""]

    def run(self) -> None:
        """Run the cluster until no event is left."""
        self.cluster.run()
        self._look()

    def text(self) -> str:
        """Return the whole transcript."""
        return "\n".join(self.lines).strip() + "\n"

    # ---- messages ----

    def heard(self, pipe: Pipe, message: Any, to_worker: bool) -> None:
        """Write down a message of a link."""
        kind = message[m.KIND]
        # A post is written down by `heard_post`, message by message.
        if kind in UNSAID or kind == m.POST:
            return
        ends = (pipe.owner.name, pipe.worker.address)
        sender, receiver = ends if to_worker else ends[::-1]
        self._say(sender, receiver, m.NAMES[kind], self._about(kind, message))

    def heard_post(self, sender: str, receiver: str, said: Any) -> None:
        """Write down a message about references between two processes."""
        kind = said[m.KIND]
        key, _ = pm.of_borrowing(said)
        words = [self.key(key)] if key is not None else []
        if kind == pm.REQUEST:
            _, what, *_ = said
            words.insert(0, what)
        if kind in (pm.BORROW_ACK, pm.VALUE_UPDATE):
            _, _, _, sent = said
            words.append("no value yet" if sent is None else STATE_NAMES[read_outcome(sent).state])
        if kind == pm.MOVED:
            _, _, _, owner_ref, _, _ = said
            words.append(f"to {owner_ref[INCARNATION]}")
        self._say(sender, receiver, pm.NAMES[kind], " ".join(words))

    def _about(self, kind: int, message: Any) -> str:
        """Return keys and numbers of a message, as far as they help a reader."""
        if kind in (m.RECALL, m.LEAVING):
            return ""
        _, subject, *items = message
        if kind == m.FREE:
            return " ".join(map(self.key, subject))
        about = self.key(subject)
        if kind == m.WATCH_CHILDREN:
            _attempt, children = items
            return f"{about}: {' '.join(map(self.key, children))}"
        if kind == m.LINGERS:
            _attempt, yes = items
            return f"{about} {'goes on' if yes else 'has ended'}"
        if kind == m.CHILD_SUBMITTED:
            _attempt, child, _origin = items
            return f"{about}: {self.key(child)}"
        return f"{about} attempt {items[0]}" if kind in (m.PUSH, m.CANCEL) else about

    def _say(self, sender: str, receiver: str, kind: str, about: str) -> None:
        """Write down changes of rows so far, then a message."""
        self._look()
        line = f"{self._time()} {sender} -> {receiver}: {kind} {about}".rstrip()
        self.lines.append(line)

    # ---- tables ----

    def _look(self) -> None:
        """Write down the rows that are in another state than at the last look."""
        now: dict[tuple[str, str], str] = {}
        # Text is compared, so that only changes appear which a reader can see.
        for owner in self.cluster.owners:
            for row in rows_of(owner.core):
                now[owner.name, self.row(row)] = self._state(owner, row)
        for where in {**self._before, **now}:
            before, after = self._before.get(where), now.get(where, "gone")
            if before != after:
                self.lines.append(f"{'':>11}     {where[0]} has {where[1]}: {after}")
        self._before = now

    def _state(self, owner: VirtualOwner, row: Row) -> str:
        """Return the state of a row in words: with its worker, locations and borrowers."""
        state = STATE_NAMES[row.state]
        if row.worker is not None and state == "pushed":
            state += f" to {row.worker.address}"
        addresses = [view.address for view in row.locations]
        if isinstance(row, Borrowed) and state == "stored":
            addresses = list(row.addresses)
        if addresses and state == "stored":
            state += f" at {', '.join(addresses)}"
        borrowers = owner.core.lending.borrowers_of(row)
        if borrowers:
            state += f", borrowed by {', '.join(peer.process[NAME] for peer, _ in borrowers)}"
        if row.lineage_refs:
            state += ", kept for what came of it"
        return state

    def row(self, row: Row) -> str:
        """Name a row by its key, and a borrowed row by its owner as well."""
        if isinstance(row, Borrowed):
            return f"{self.key(row.origin[KEY])} of {row.origin[NAME]}"
        return self.key(row.key)

    def key(self, key: Any) -> str:
        """Shorten a key for readers: keys of children are numbered in the order of appearance."""
        if isinstance(key, tuple):
            return f"({' '.join(self.key(part) for part in key if isinstance(part, str | tuple))})"
        text = str(key)
        if text.startswith("child-"):
            return self._names.setdefault(text, f"child-{len(self._names) + 1}")
        return text

    def _time(self) -> str:
        return f"{self.cluster.now / 1000:>8.2f} ms"
