"""What an owner does when workers and owners come and go, as the scheduler tells it."""

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
from dask_ownership.runtime.comm.scheduler_ops import Member
from dask_ownership.runtime.owner.event_log import EventLog

logger = logging.getLogger("dask_ownership.owner")

FIRST_ASKED = 0.05
"""Seconds for which the scheduler may take to tell of a worker by itself, before it is asked."""

LAST_ASKED = 5.0
"""Seconds between two times that it is asked, at most."""

REACHED_AGAIN = 60.0
"""Seconds after which a worker that could not be reached is tried again."""

Ask = Callable[[], Awaitable[Any]]
"""Asks the scheduler who is there; its answer to `JOIN`."""


class NotJoined(OSError):
    """The scheduler does not take an owner."""

    def __init__(self, answer: Any) -> None:
        super().__init__(f"the scheduler lets no owner join: {answer!r:.300}")
        self.answer = answer


class Members:
    """The workers that one owner uses. On the loop's thread.

    Parameters
    ----------
    core : OwnerCore
    chronicle : EventLog
    ask : Ask
    token : str
        What proves who this owner is, if that is known before it joins.
    unlink : callable
        Ends the link to a worker; whether anything can have arrived there.
    step : callable
        Has the owner send what the core decided.

    Attributes
    ----------
    token : str
    holder : Process
        Who holds what lies in queues, variables and datasets.
    joined : bool
        Whether the scheduler has answered once.
    cut_off : bool
        Whether the scheduler is lost: workers that refuse a link now may be about to close.
    """

    def __init__(
        self,
        core: OwnerCore,
        chronicle: EventLog,
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
        self._chronicle = chronicle
        self._ask = ask
        self._unlink = unlink
        self._step = step
        self._began = False
        self._closed = False
        self._asking: asyncio.Task[None] | None = None

    # ---- what the scheduler says ----

    def changed(self, added: Iterable[Member], removed: Iterable[tuple[str, str]]) -> None:
        """Workers joined, left or have other resources; it may be said again. Stream handler.

        ``removed`` has an address and an incarnation each. Whoever has not asked yet who is
        there does not use them.
        """
        if not self._began or self._closed:
            return
        for _, incarnation in removed:
            self._left(incarnation)
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
            before = self.core.membership.replaced_by(view)
            if before is not None:
                self._left(before.incarnation)
            if self.core.membership.joined(view):
                joined.append(view.address)
        self._chronicle.joined(joined)
        self._step()

    def process_gone(self, owner: str) -> None:
        """Another owner is gone for good. Stream handler."""
        with self._chronicle.burying([owner], owner):
            self.core.membership.process_gone(owner)
        if not self._closed:
            self._step()

    def _left(self, incarnation: str) -> None:
        """A worker is gone for good."""
        membership = self.core.membership
        view = membership.view_of(incarnation)
        with self._chronicle.burying(membership.owners_at(incarnation), incarnation):
            if view is None:
                membership.left(incarnation, "left the cluster")
                return
            reached = self._unlink(view)
            with self._chronicle.losing(view, "left the cluster"):
                membership.left(incarnation, "left the cluster", reached)

    def connected(self, yes: bool) -> None:
        """The connection to the scheduler is there, or is lost."""
        self.cut_off = not yes

    # ---- asking the scheduler ----

    async def join(self) -> None:
        """Ask who is there, once.

        Raises
        ------
        OSError
            When there is no answer; `NotJoined` when it is another one.
        """
        self._began = True
        asked = self.core.membership.ask()
        answer = await self._ask()
        if not isinstance(answer, dict) or answer.get("status") != "OK":
            raise NotJoined(answer)
        self.token = answer.get("token", self.token)
        self.holder = tuple(answer["holder"])
        members = answer["members"]
        there = {member["incarnation"] for member in members}
        # Who went while there was no connection, nobody could tell.
        for incarnation in sorted(asked.workers - there):
            self._left(incarnation)
        for incarnation in sorted(asked.clients.difference(answer["clients"])):
            self.process_gone(incarnation)
        self.changed(members, [])
        self.joined = True

    def ask_soon(self) -> None:
        """Something is to be said to a worker that is not known."""
        if self._asking is None and any(self.core.posting.waiting):
            self._asking = asyncio.ensure_future(self._ask_until_known())
            self._asking.add_done_callback(self._asked)

    async def _ask_until_known(self) -> None:
        pause = FIRST_ASKED
        while not self._closed and any(self.core.posting.waiting):
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_ASKED)
            if not any(self.core.posting.waiting):
                return  # the scheduler told of it meanwhile
            try:
                await self.join()
            except Exception as error:
                logger.info("%s asks the scheduler again who is there: %r", self.core.name, error)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled():
            task.result()

    # ---- workers that cannot be used ----

    def refused(self, view: WorkerView, reason: str) -> None:
        """A worker will not take the link: go on without it."""
        if not self.cut_off:
            logger.warning("tasks are not sent to %s: %s", view.address, reason)
        link, view.link = view.link, None
        self.core.membership.refuse(view, reason, link is not None and link.reached)
        self._step()

    def unreachable(self, view: WorkerView, reason: str) -> None:
        """There is no route to a worker: go on without it, and look again later."""
        self.refused(view, reason)
        self.core.effects.later(REACHED_AGAIN, partial(self._try_again, view))
        self._step()

    def _try_again(self, view: WorkerView) -> None:
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
        """When no worker takes owned tasks, end what could start if any did."""
        if not self.core.refused or self.core.placement.workers or self.cut_off:
            return
        reasons = "; ".join(self.core.refused.values())
        detail = f"no worker of the cluster takes owned tasks: {reasons}"
        for row in self.core.table.all():
            if row.state == READY:
                self.core.settle(row, Failure("no-worker", row.key, detail))

    # ---- the end ----

    def close(self) -> None:
        """Heed the scheduler no more."""
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()
