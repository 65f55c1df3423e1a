"""Retention: parents are kept for the children whose futures left this process.

A task that submits tasks makes the process that it runs in their owner. When that dies, what
it owned dies with it; futures of it may have exported to other processes by then. The owner of
the submitting task (the *heir*) can have it made again (`references.reconstruction`), because a
task that runs again submits the same tasks under the same keys (`protocol.names`).

So when the future of a submitted task may leave its process, that process tells the heir to keep
the submitting task (``RETAIN_PARENT``), and when it is forgotten to let it go
(``RELEASE_PARENT``). A task that is kept counts this as a descendant: how to run it is kept as
lineage, its value need not be. The heir has whoever submitted that task keep it too, and so on to
a client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask_ownership.core.owner.recovery.lineage import Lineages
from dask_ownership.core.owner.references.peers import Peer, Peers
from dask_ownership.core.owner.rows.effects import OwnerEffects
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import EXPORTED, RETAINED, Function, Row
from dask_ownership.core.owner.rows.table import Table
from dask_ownership.core.protocol.messages import Heir, Key
from dask_ownership.core.protocol.names import heir_of
from dask_ownership.core.protocol.peer_messages import (
    PARENT_RETAINED,
    RELEASE_PARENT,
    RETAIN_PARENT,
)
from dask_ownership.core.protocol.states import ERROR, FORGOTTEN, INLINE

KEPT_FOR = 30.0
"""Seconds for which tasks are kept for a process that is gone: others may hear of it late, and
ask."""


class Retention(RowListener):
    """What one process keeps for the children of its tasks, and has others keep for its own.

    Parameters
    ----------
    table : Table
    peers : Peers
    lineages : Lineages
    alias : Function
        The function of tasks whose value is that of another: it tells nothing of how they ran.
    effects : OwnerEffects

    Attributes
    ----------
    keepers : dict
        Rows that are kept to how many processes keep them.
    exported : set of Row
        Those that tasks submitted here and whose futures may be in other processes.
    children : dict
        The submitting task, as its owner's incarnation and its key there, to how many of
        those are its.
    heirs : dict
        Those tasks to their origins.
    above : dict
        Those whose owners died to the task above that is kept in their place.
    kept : dict
        Key to row, for the tasks of this process that are kept for what they submitted here.
    untold : dict
        Tasks whose owner may not know yet that it is to keep them to what waits for that.
    orphans : dict
        Incarnation of a process that died to the rows that are still kept for it.
    """

    def __init__(
        self,
        table: Table,
        peers: Peers,
        lineages: Lineages,
        alias: Function,
        effects: OwnerEffects,
    ) -> None:
        self._table = table
        self._peers = peers
        self._lineages = lineages
        self._alias = alias
        self._effects = effects
        self.keepers: dict[Row, int] = {}
        self.exported: set[Row] = set()
        self.children: dict[tuple[str, Key], int] = {}
        self.heirs: dict[tuple[str, Key], Heir] = {}
        self.above: dict[tuple[str, Key], Heir | None] = {}
        self.kept: dict[Key, Row] = {}
        self.untold: dict[tuple[str, Key], list[Callable[[], None]]] = {}
        self.orphans: dict[str, list[Row]] = {}
        peers.handlers[RETAIN_PARENT] = self._on_keep
        peers.handlers[RELEASE_PARENT] = self._on_let_go
        peers.handlers[PARENT_RETAINED] = self._on_kept
        peers.last_words[RETAIN_PARENT] = self._on_last_keep
        peers.when_gone.append(self._on_gone)

    # ---- the process in which tasks submitted tasks ----

    def export(self, row: Row) -> None:
        """The future of a row may be in other processes from now on. Again is nothing."""
        heir: Heir | None = row.options.heir
        if heir is None or row in self.exported or row.state == FORGOTTEN:
            return
        self.exported.add(row)
        row.roles |= EXPORTED
        self._led_to(heir)

    def _led_to(self, heir: Heir) -> None:
        """One thing more that a task led to is to be made again by its owner, or by an heir
        above that when it is gone."""
        task = (heir[0], heir[3])
        count = self.children[task] = self.children.get(task, 0) + 1
        if count > 1:
            return
        self.heirs[task] = heir
        if heir[0] == self._peers.process[0]:
            parent = self._table.rows.get(heir[3])
            if parent is not None and self.can_keep(parent):
                self.kept[heir[3]] = parent
                self.keep(parent)
        elif self._peers.peer(heir[:3]).gone:
            self._go_above(heir)
        else:
            self._say(RETAIN_PARENT, heir)
            if heir[1]:
                self.untold.setdefault(task, [])

    def when_kept(self, owner: str, key: Key, call: Callable[[], None]) -> None:
        """Call once the owner of a task that ended here knows that it is to keep it.

        It forgets how to run the task when that has ended. What is said to a client goes
        the same way as the answer, and so arrives first; to a worker it goes another way.
        """
        waiting = self.untold.get((owner, key))
        if waiting is None:
            call()
        else:
            waiting.append(call)

    def told(self, owner: str, key: Key) -> None:
        """The owner of a task has heard that it is to keep it, or is gone."""
        for call in self.untold.pop((owner, key), ()):
            call()

    def _go_above(self, heir: Heir) -> None:
        """The owner of a task that is kept is gone."""
        above = heir_of(heir, lambda process: self._peers.peer(process).gone)
        self.above[heir[0], heir[3]] = above
        if above is not None:
            self._led_to(above)

    def forgotten(self, row: Row) -> None:
        """What had exported is gone."""
        if row in self.exported:
            self.exported.discard(row)
            self._led_to_less(row.options.heir)

    def _led_to_less(self, heir: Heir) -> None:
        task = (heir[0], heir[3])
        count = self.children.pop(task) - 1
        if count:
            self.children[task] = count
            return
        del self.heirs[task]
        if task in self.above:
            above = self.above.pop(task)
            if above is not None:
                self._led_to_less(above)
        elif heir[0] != self._peers.process[0]:
            self._say(RELEASE_PARENT, heir)
        elif (parent := self.kept.pop(heir[3], None)) is not None:
            self.let_go(parent)

    def _say(self, kind: int, heir: Heir) -> None:
        """Have the owner of a task keep it for what it submitted here, or let it go."""
        peers = self._peers
        peers.say(peers.peer(heir[:3]), (kind, heir[3]))

    # ---- the heir ----

    def keep(self, row: Row) -> None:
        """Children of this task may be known elsewhere: keep how to run it."""
        self._table.retain((row,))
        self.keepers[row] = self.keepers.get(row, 0) + 1
        row.roles |= RETAINED
        self.export(row)
        if row.local_refs <= 0 and row.task_refs <= 0:
            self._lineages.unheld(row)  # only another's lineage had it

    def let_go(self, row: Row) -> None:
        """One process keeps a task no more."""
        count = self.keepers.pop(row) - 1
        if count:
            self.keepers[row] = count
        else:
            row.roles &= ~RETAINED
            if row.state in (INLINE, ERROR) and row.lineage is not None:
                self._lineages.drop(row)  # only its children needed that
        self._lineages.let_go((row,))

    def can_keep(self, row: Row) -> bool:
        """Whether it is known how to run a task, or will be until it ends."""
        source: Any = row.lineage or row
        function = source.function
        return function is not None and function is not self._alias

    def only_kept(self, row: Row) -> bool:
        """Whether a row is there for its children alone."""
        keepers = self.keepers.get(row)
        return keepers == row.lineage_refs and row.local_refs <= 0 and row.task_refs <= 0

    def _on_keep(self, peer: Peer, key: Key) -> None:
        """Children of a task of this process may be known at another."""
        peers = self._peers
        if peers.process[1]:
            peers.say(peer, (PARENT_RETAINED, key))
        row = self._table.rows.get(key)
        if row is not None and key not in peer.kept and self.can_keep(row):
            peer.kept[key] = row
            self.keep(row)

    def _on_let_go(self, peer: Peer, key: Key) -> None:
        row = peer.kept.pop(key, None)
        if row is not None:
            self.let_go(row)

    def _on_kept(self, peer: Peer, key: Key) -> None:
        self.told(peer.process[0], key)

    # ---- a process that is gone ----

    def _on_gone(self, peer: Peer) -> None:
        """A process died: keep for a while what it kept, for those who ask for its objects."""
        incarnation = peer.process[0]
        kept = list(peer.kept.values())
        peer.kept.clear()
        self.orphan(incarnation, kept)
        for task in [task for task in self.untold if task[0] == incarnation]:
            self.told(*task)
        for task, heir in list(self.heirs.items()):
            if heir[0] == incarnation and task not in self.above:
                self._go_above(heir)

    def _on_last_keep(self, peer: Peer, key: Key) -> None:
        """A process that is gone had said so: keep the task for those who will ask."""
        self._on_keep(peer, key)
        self.orphan(peer.process[0], list(peer.kept.values()))
        peer.kept.clear()

    def orphan(self, incarnation: str, kept: list[Row]) -> None:
        """Keep tasks for a process that died, until whoever lost something with it has asked."""
        if not kept:
            return
        if incarnation not in self.orphans:
            self.orphans[incarnation] = []
            self._effects.later(KEPT_FOR, self.expire, incarnation)
        self.orphans[incarnation].extend(kept)

    def expire(self, incarnation: str) -> None:
        """Whoever lost something with a process has asked by now."""
        for row in self.orphans.pop(incarnation, ()):
            self.let_go(row)
