"""The members of the cluster at one owner: workers and owners that come and go.

The owner learns of changes from the scheduler only, by its messages and by asking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Process
from dask_ownership.core.protocol.states import READY
from dask_ownership.runtime.comm.scheduler_ops import LEFT, Member, Removed
from dask_ownership.runtime.owner.event_log import EventLog

logger = logging.getLogger("dask_ownership.owner")

FIRST_ASKED = 0.05
"""Seconds for which an owner waits to be told of an unknown worker before asking the scheduler."""

LAST_ASKED = 5.0
"""Seconds between two such questions, at most."""

REACHED_AGAIN = 60.0
"""Seconds after which a worker that no dial reached is tried again."""

Ask = Callable[[], Awaitable[Any]]
"""Sends `JOIN` to the scheduler, and returns the answer."""


class NotJoined(OSError):
    """The scheduler refuses an owner; ``answer`` is the scheduler's answer to `JOIN`."""

    def __init__(self, answer: Any) -> None:
        super().__init__(f"the scheduler lets no owner join: {answer!r:.300}")
        self.answer = answer


class Members:
    """The members of the cluster as one owner knows them: tells the core who joined and left.

    All methods run in the loop's thread.

    Parameters
    ----------
    core : OwnerCore
    event_log : EventLog
    ask : Ask
    token : str
        The token of this owner, if known before the owner joins; else empty.
    unlink : callable
        Ends the link to a worker, and returns whether any message may have arrived there.
    step : callable
        Has the owner send the messages that the core decided on.

    Attributes
    ----------
    token : str
        The token of this owner, which proves its incarnation; empty until a client has joined.
    holder : Process
        The process that holds the objects in queues, variables and datasets.
    joined : bool
        Whether the owner has joined the cluster.
    cut_off : bool
        Whether the connection to the scheduler is lost. Then the workers may be about to close, and
        a refused link says nothing about owned tasks.
    """

    def __init__(
        self,
        core: OwnerCore,
        event_log: EventLog,
        ask: Ask,
        token: str,
        unlink: Callable[[WorkerView], bool],
        step: Callable[[], None],
    ) -> None:
        self.core = core
        self.token = token
        self.holder: Process = ("", "", "")
        self.joined = False
        self.cut_off = False
        self._event_log = event_log
        self._ask = ask
        self._unlink = unlink
        self._step = step
        self._began = False
        self._closed = False
        self._asking: asyncio.Task[None] | None = None

    # ---- what the scheduler says ----

    def changed(self, added: Iterable[Member], removed: Iterable[Removed]) -> None:
        """Take in a change of the workers; taking it in twice changes nothing. Stream handler.

        An owner that has not begun to join ignores changes: a worker's owner joins, and uses
        workers, only when a task of the worker submits.

        Parameters
        ----------
        added : iterable of Member
            Workers that joined, or have other resources.
        removed : iterable of Removed
            The workers that are gone.
        """
        if not self._began or self._closed:
            return
        # Removed workers first: a new worker may have the address of one of them.
        for _, incarnation, how in removed:
            self._left(incarnation, how)
        joined = []
        for member in added:
            view = WorkerView(
                member["address"],
                incarnation=member["incarnation"],
                nthreads=member["nthreads"],
                name=member["name"],
                host=member["host"],
                resources=dict(member["resources"]),
            )
            # Another worker at the same address is gone, though the scheduler has not said so yet.
            before = self.core.membership.replaced_by(view)
            if before is not None:
                self._left(before.incarnation)
            if self.core.membership.joined(view):
                joined.append(view.address)
        self._event_log.joined(joined)
        self._step()

    def exited(self, incarnation: str, how: str) -> None:
        """Take in what ended the process of a worker that is gone. Stream handler."""
        self.core.departures.exited(incarnation, how)

    def process_gone(self, owner: str) -> None:
        """Take in that another owner is gone for good. Stream handler."""
        with self._event_log.losing_owners([owner], owner):
            self.core.membership.process_gone(owner)
        if not self._closed:
            self._step()

    def _left(self, incarnation: str, how: str = LEFT) -> None:
        """Take in that a worker, with the owners there, is gone for good; ``how`` is for people."""
        membership = self.core.membership
        view = membership.view_of(incarnation)
        with self._event_log.losing_owners(membership.owners_at(incarnation), incarnation):
            if view is None:  # not in use: refused, or known only as the place of other owners
                membership.left(incarnation, how)
                return
            reached = self._unlink(view)
            with self._event_log.losing(view, how):
                membership.left(incarnation, how, reached)

    def connected(self, yes: bool) -> None:
        """Note whether there is a connection to the scheduler."""
        self.cut_off = not yes

    # ---- asking the scheduler ----

    async def join(self) -> None:
        """Join the cluster, or ask the scheduler again for all members, and take the answer in.

        Raises
        ------
        OSError
            When the scheduler does not answer; `NotJoined` when the scheduler refuses the owner.
        """
        # Before the answer: changes that arrive in between must not be ignored. The incarnations to
        # ask about are noted before as well, because the answer may be older than later joins.
        self._began = True
        asked = self.core.membership.ask()
        answer = await self._ask()
        if not isinstance(answer, dict) or answer.get("status") != "OK":
            raise NotJoined(answer)
        self.token = answer.get("token", self.token)
        self.holder = tuple(answer["holder"])
        members = answer["members"]
        there = {member["incarnation"] for member in members}
        # The scheduler could not tell of processes that left while there was no connection.
        for incarnation in sorted(asked.workers - there):
            self._left(incarnation)
        for incarnation in sorted(asked.clients.difference(answer["clients"])):
            self.process_gone(incarnation)
        self.changed(members, [])
        self.joined = True

    def ask_soon(self) -> None:
        """Ask the scheduler for the members, while posts wait for a worker that is not known."""
        if self._asking is None and any(self.core.posting.waiting):
            self._asking = asyncio.ensure_future(self._ask_until_known())
            self._asking.add_done_callback(self._asked)

    async def _ask_until_known(self) -> None:
        """Ask the scheduler again and again, until no post waits for an unknown worker."""
        pause = FIRST_ASKED
        while not self._closed and any(self.core.posting.waiting):
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_ASKED)
            if not any(self.core.posting.waiting):
                return  # the scheduler has told of the worker meanwhile
            try:
                await self.join()
            except Exception as error:
                logger.info("%s asks the scheduler again who is there: %r", self.core.name, error)

    def _asked(self, task: asyncio.Task[None]) -> None:
        """Let the next `ask_soon` ask again, and raise an unexpected error in the loop."""
        self._asking = None
        if not task.cancelled():
            task.result()

    # ---- workers that cannot be used ----

    def refused(self, view: WorkerView, reason: str, ending: bool = False) -> None:
        """Go on without a worker that refuses the link, and log the reason.

        With ``ending`` the worker is closing or this owner counts as gone, which is no trouble.
        """
        if not self.cut_off:
            log = logger.info if ending else logger.warning
            log("tasks are not sent to %s: %s", view.address, reason)
        # The link has closed itself. Tasks may have begun there if an earlier dial has succeeded.
        link, view.link = view.link, None
        self.core.membership.refuse(view, reason, link is not None and link.reached)
        self._step()

    def unreachable(self, view: WorkerView, reason: str) -> None:
        """Go on without a worker to which there is no route, and try the worker again later."""
        self.refused(view, reason)
        self.core.effects.later(REACHED_AGAIN, partial(self._try_again, view))
        self._step()

    def _try_again(self, view: WorkerView) -> None:
        """Use a worker again that could not be reached, as if it had just joined."""
        if self.core.membership.refused_no_more(view):
            member = Member(
                address=view.address,
                incarnation=view.incarnation,
                nthreads=view.nthreads,
                name=view.name,
                host=view.host,
                resources=dict(view.resources),
            )
            self.changed([member], [])

    def settle_refused(self) -> None:
        """End the ready rows when all workers of the cluster refuse owned tasks."""
        # While the scheduler is lost, workers refuse links because they are about to close.
        if not self.core.refusals or self.core.placement.workers or self.cut_off:
            return
        reasons = "; ".join(self.core.refusals.values())
        detail = f"no worker of the cluster takes owned tasks: {reasons}"
        for row in self.core.table.all():
            if row.state == READY:
                self.core.settle(row, Failure("no-worker", row.key, detail))

    # ---- the end ----

    def close(self) -> None:
        """Ignore messages of the scheduler from now on."""
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()
