"""Retention: parents are kept for the children whose futures left this process.

A task that submits tasks is their *parent*, and the tasks are its *children*. The process in which
the parent runs owns the children. When the process dies, the children's objects die too; but
their futures may be in other processes by then. The owner of the parent is the *heir*. The heir
can have the objects made again (`references.reconstruction`), because a parent that runs again
submits the same children under the same keys (`protocol.names`).

So when the future of a child may leave the process for the first time, the process has the heir
keep the parent (``RETAIN_PARENT``). When the last such child is forgotten, the process has the heir
release the parent (``RELEASE_PARENT``). A kept parent has one lineage reference more for each
process that keeps it: its lineage stays, its value need not. The heir has the owner of the
parent's own parent keep the latter, and so on up to a client.
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
from dask_ownership.core.protocol.names import ADDRESS, INCARNATION, KEY, heir_of, process_of
from dask_ownership.core.protocol.peer_messages import (
    PARENT_RETAINED,
    RELEASE_PARENT,
    RETAIN_PARENT,
)
from dask_ownership.core.protocol.states import ERROR, FORGOTTEN, INLINE

KEPT_FOR = 30.0
"""Seconds for which parents are kept for a dead process. Borrowers may hear of the death late, and
then ask for the objects."""


class Retention(RowListener):
    """Keeps tasks of one process for their children, and has heirs keep parents elsewhere.

    A parent is named by the incarnation of its owner and its key there.

    Parameters
    ----------
    table : Table
        Counts the lineage references.
    peers : Peers
        The heirs, and the processes that have this process keep tasks.
    lineages : Lineages
        Keeps how to run the kept tasks.
    alias : Function
        The function of rows that take over the value of another row. The function says nothing
        of how the task behind such a row ran.
    effects : OwnerEffects
        Takes timers.

    Attributes
    ----------
    keepers : dict of Row to int
        Kept rows of this process, and how many processes and searches for children keep each.
    exported : set of Row
        Children that this process owns and whose futures may be in other processes.
    children : dict of tuple to int
        By parent: how many exported children are left. A parent below whose owner died counts as
        one child.
    heirs : dict of tuple to Heir
        By parent: its origin.
    above : dict of tuple to Heir or None
        By parent whose owner died: the nearest living parent above, which is kept in its place.
    kept : dict of Key to Row
        Parents that this process owns itself, kept for children that it owns as well.
    untold : dict of tuple to list of callable
        By parent: what waits until the owner knows that it has to keep the parent.
    orphans : dict of str to list of Row
        By incarnation of a dead process: the rows that are still kept for the process.
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
        peers.handlers[RETAIN_PARENT] = self._on_retain_parent
        peers.handlers[RELEASE_PARENT] = self._on_release_parent
        peers.handlers[PARENT_RETAINED] = self._on_parent_retained
        peers.last_words[RETAIN_PARENT] = self._on_late_retain_parent
        peers.when_gone.append(self._on_gone)

    # ---- the process in which parents ran ----

    def export(self, row: Row) -> None:
        """Have the parent of a row kept: the row's future may be in other processes from now on.

        A second call for the same row changes nothing.
        """
        heir: Heir | None = row.options.heir
        if heir is None or row in self.exported or row.state == FORGOTTEN:
            return
        self.exported.add(row)
        row.roles |= EXPORTED
        self._led_to(heir)

    def _led_to(self, heir: Heir) -> None:
        """Count one more child of a parent; with the first, have the owner keep the parent.

        When the owner is gone, the nearest living parent above is kept in its place.
        """
        task = (heir[INCARNATION], heir[KEY])
        count = self.children[task] = self.children.get(task, 0) + 1
        if count > 1:
            return
        self.heirs[task] = heir
        if heir[INCARNATION] == self._peers.process[INCARNATION]:
            parent = self._table.rows.get(heir[KEY])
            # A parent that cannot run again is of no use to its children.
            if parent is not None and self.can_keep(parent):
                self.kept[heir[KEY]] = parent
                self.keep(parent)
        elif self._peers.peer(process_of(heir)).gone:
            self._go_above(heir)
        else:
            self._say(RETAIN_PARENT, heir)
            if heir[ADDRESS]:  # the owner is at a worker, see `when_retained`
                self.untold.setdefault(task, [])

    def when_retained(self, owner: str, key: Key, call: Callable[[], None]) -> None:
        """Call ``call`` when the owner of a parent that ended here has heard to keep the parent.

        The owner forgets how to run a task when the answer of the task arrives, so the
        RETAIN_PARENT has to arrive first. To a client both go over the same link, in order. To
        the owner at a worker the RETAIN_PARENT goes over another link, so the answer has to wait.
        """
        waiting = self.untold.get((owner, key))
        if waiting is None:
            call()
        else:
            waiting.append(call)

    def told(self, owner: str, key: Key) -> None:
        """Call what waits in ``untold``: the owner of a parent has heard to keep it, or is gone."""
        for call in self.untold.pop((owner, key), ()):
            call()

    def _go_above(self, heir: Heir) -> None:
        """Have the nearest living parent above kept, in place of a parent whose owner is gone."""
        above = heir_of(heir, lambda process: self._peers.peer(process).gone)
        self.above[heir[INCARNATION], heir[KEY]] = above
        if above is not None:
            self._led_to(above)

    def forgotten(self, row: Row) -> None:
        """Release the parent of a forgotten row that was exported."""
        if row in self.exported:
            self.exported.discard(row)
            self._led_to_less(row.options.heir)

    def _led_to_less(self, heir: Heir) -> None:
        """Count one child less of a parent; with the last, release the parent."""
        task = (heir[INCARNATION], heir[KEY])
        count = self.children.pop(task) - 1
        if count:
            self.children[task] = count
            return
        del self.heirs[task]
        # Where the parent is kept depends on its owner: dead, another process, or this process.
        if task in self.above:
            above = self.above.pop(task)
            if above is not None:
                self._led_to_less(above)
        elif heir[INCARNATION] != self._peers.process[INCARNATION]:
            self._say(RELEASE_PARENT, heir)
        elif (parent := self.kept.pop(heir[KEY], None)) is not None:
            self.let_go(parent)

    def _say(self, kind: int, heir: Heir) -> None:
        """Send RETAIN_PARENT or RELEASE_PARENT to the owner of a parent."""
        peers = self._peers
        peers.say(peers.peer(process_of(heir)), (kind, heir[KEY]))

    # ---- the heir ----

    def keep(self, row: Row) -> None:
        """Keep a task of this process, because other processes may have futures of its children."""
        self._table.retain((row,))
        self.keepers[row] = self.keepers.get(row, 0) + 1
        row.roles |= RETAINED
        # The task's own parent is kept, too: the owner of this task may die as well.
        self.export(row)
        if row.local_refs <= 0 and row.task_refs <= 0:
            # So far only lineage of other rows kept the row. Its value may be freed.
            self._lineages.only_lineage_left(row)

    def let_go(self, row: Row) -> None:
        """Count one keeper less of a task, and drop a lineage that only the children needed."""
        count = self.keepers.pop(row) - 1
        if count:
            self.keepers[row] = count
        else:
            row.roles &= ~RETAINED
            if row.state in (INLINE, ERROR) and row.lineage is not None:
                self._lineages.drop(row)
        self._lineages.let_go((row,))

    def can_keep(self, row: Row) -> bool:
        """Return whether the owner knows how to run a row's task, at least until the task ends."""
        source: Any = row.lineage or row
        function = source.function
        return function is not None and function is not self._alias

    def only_kept(self, row: Row) -> bool:
        """Return whether nothing but keepers counts a row: no future, no task and no lineage."""
        keepers = self.keepers.get(row)
        return keepers == row.lineage_refs and row.local_refs <= 0 and row.task_refs <= 0

    def _on_retain_parent(self, peer: Peer, key: Key) -> None:
        """Handle RETAIN_PARENT: keep a task of this process, because a peer exported a child."""
        peers = self._peers
        if peers.process[ADDRESS]:  # an owner at a worker acknowledges, see `when_retained`
            peers.say(peer, (PARENT_RETAINED, key))
        row = self._table.rows.get(key)
        # The same message may arrive twice.
        if row is not None and key not in peer.kept and self.can_keep(row):
            peer.kept[key] = row
            self.keep(row)

    def _on_release_parent(self, peer: Peer, key: Key) -> None:
        """Handle RELEASE_PARENT: no exported child of the task is left at a peer."""
        row = peer.kept.pop(key, None)
        if row is not None:
            self.let_go(row)

    def _on_parent_retained(self, peer: Peer, key: Key) -> None:
        """Handle PARENT_RETAINED: the owner of a parent has got the RETAIN_PARENT."""
        self.told(peer.process[INCARNATION], key)

    # ---- a process that is gone ----

    def _on_gone(self, peer: Peer) -> None:
        """Handle the death of a peer, both as a process that keeps tasks and as an heir.

        What the peer had kept here stays for a while, for borrowers that ask for its objects. What
        the peer kept for this process is kept by owners above.
        """
        incarnation = peer.process[INCARNATION]
        kept = list(peer.kept.values())
        peer.kept.clear()
        self.orphan(incarnation, kept)
        for owner, key in list(self.untold):
            if owner == incarnation:
                self.told(owner, key)
        for task, heir in list(self.heirs.items()):
            if heir[INCARNATION] == incarnation and task not in self.above:
                self._go_above(heir)

    def _on_late_retain_parent(self, peer: Peer, key: Key) -> None:
        """Handle RETAIN_PARENT of a dead peer, which arrives late: keep the task for a while.

        Borrowers of the child will ask for it.
        """
        self._on_retain_parent(peer, key)
        self.orphan(peer.process[INCARNATION], list(peer.kept.values()))
        peer.kept.clear()

    def orphan(self, incarnation: str, kept: list[Row]) -> None:
        """Keep tasks for `KEPT_FOR` seconds on behalf of a dead process.

        By then all borrowers of its objects have asked for them.
        """
        if not kept:
            return
        if incarnation not in self.orphans:
            self.orphans[incarnation] = []
            self._effects.later(KEPT_FOR, self.expire, incarnation)
        self.orphans[incarnation].extend(kept)

    def expire(self, incarnation: str) -> None:
        """Release the tasks that were kept on behalf of a dead process."""
        for row in self.orphans.pop(incarnation, ()):
            self.let_go(row)
