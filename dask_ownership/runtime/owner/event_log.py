"""The event log of an owner: one line for each event that an operator cares about.

An event with lost work or lost values is a warning, any other event is information; nothing is
logged per task. The loggers of the package are ``dask_ownership.owner``, ``.link``, ``.executor``,
``.scheduler``, ``.worker``, ``.transfer``, ``.serialize`` and ``.client``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.states import LOST, READY
from dask_ownership.runtime.owner.pending import name_of, why

logger = logging.getLogger("dask_ownership.owner")

NAMED = 3
"""Number of workers that one line names."""

PATIENCE = 5.0
"""Seconds for which tasks wait that cannot go on, before a line warns of them."""

LOOK = 1.0
"""Seconds between two looks for such tasks."""


def named(addresses: list[str]) -> str:
    """Return the first `NAMED` addresses as text, and how many more there are."""
    more = f" and {len(addresses) - NAMED} more" if len(addresses) > NAMED else ""
    return ", ".join(addresses[:NAMED]) + more


def counted(number: int, what: str) -> str:
    """Return a number of things as text, with the plural."""
    return f"{number} {what}{'' if number == 1 else 's'}"


class EventLog:
    """The event log of one owner. All methods run in the loop's thread.

    Parameters
    ----------
    core : OwnerCore
    """

    def __init__(self, core: OwnerCore) -> None:
        self.core = core
        # The time of the last loss of values that are being made again; 0 when there are none.
        self._lost_at = 0.0
        # Since when the tasks of a kind cannot go on, and the kinds that were warned of.
        self._stuck: dict[Any, float] = {}
        self._warned: set[Any] = set()
        self._looked = 0.0

    def joined(self, addresses: list[str]) -> None:
        """Log workers that joined the cluster."""
        if addresses:
            many = counted(len(addresses), "worker")
            logger.info("%s may use %s more: %s", self.core.name, many, named(addresses))

    @contextmanager
    def losing(self, view: WorkerView, reason: str) -> Iterator[None]:
        """Log the loss of a worker, of which the core is told in the body of the ``with``."""
        core = self.core
        # The numbers are differences between the counts of the core before and after the body.
        before = len(core.effects.completed)
        pushed = len(view.pushed)
        tried, made = core.history.again["worker-gone"], core.lineages.recovered
        yield
        made = core.lineages.recovered - made
        tried = core.history.again["worker-gone"] - tried
        ended = core.effects.completed[before:]
        lost = sum(1 for row in ended if row.state == LOST)
        failed = len(ended) - lost
        if not (pushed or made or lost):
            logger.info("%s lost worker %s, which %s, and nothing with it",
                        self.core.name, view.address, reason)  # fmt: skip
            return
        if made:
            self._lost_at = core.history.clock()
        logger.warning(
            "%s lost worker %s, which %s: %s to run again elsewhere, %s to be made again, %s lost, "
            "%s failed",
            self.core.name,
            view.address,
            reason,
            counted(tried, "task"),
            counted(made, "value"),
            counted(lost, "value"),
            counted(failed, "task"),
        )

    @contextmanager
    def losing_owners(self, owners: Iterable[str], who: str) -> Iterator[None]:
        """Log the loss of owners, of which the core is told in the body of the ``with``.

        Only owners of which this process borrows are logged. The text ``who`` names the owners.
        """
        peers = self.core.peers.known
        gone = [peers[one] for one in owners if one in peers]
        borrowed = sum(len(peer.borrowed) for peer in gone)
        yield
        if borrowed:
            logger.warning(
                "%s borrowed %s of the owner %s, which is gone: each is what the task that "
                "submitted it submits again, or lost",
                self.core.name,
                counted(borrowed, "object"),
                who,
            )

    def stuck(self, now: float) -> None:
        """Warn of tasks that cannot go on until a worker changes, once for each kind of task.

        The tasks that were handed to one silent worker are a kind.

        Parameters
        ----------
        now : float
            Seconds. A second call within `LOOK` does nothing.
        """
        if now - self._looked < LOOK:
            return
        self._looked = now
        placement = self.core.placement
        kinds = {kind: (row, count) for kind, row, count in placement.untaken_kinds()}
        for view in placement.workers.values():
            if view.suspended and view.pushed:
                kinds[view] = (next(iter(view.pushed.values())), len(view.pushed))
        self._stuck = {kind: self._stuck.get(kind, now) for kind in kinds}
        self._warned &= kinds.keys()
        for kind, since in self._stuck.items():
            if now - since >= PATIENCE and kind not in self._warned:
                self._warned.add(kind)
                row, count = kinds[kind]
                tasks = counted(count, "task")
                waits = "waits" if count == 1 else "wait"
                if row.state == READY:
                    what = f"no worker can run {tasks}, which {waits}"
                else:
                    what = f"{tasks} {waits} for a worker that does not answer"
                logger.warning(
                    "%s: %s; %s %r: %s",
                    self.core.name,
                    what,
                    "it is" if count == 1 else "one of them is",
                    name_of(row),
                    why(self.core, row),
                )

    def look(self) -> None:
        """Log the recovery when all lost values are there again."""
        core = self.core
        if self._lost_at and not core.lineages.making:
            seconds = core.history.clock() - self._lost_at
            self._lost_at = 0.0
            logger.info("%s has the values again that it had lost, after %.3g s",
                        self.core.name, seconds)  # fmt: skip
