"""What an owner does when workers and owners come and go, as the scheduler tells it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_timedelta

from dask_ownership.core.messages import Message
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.row import READY, Failure
from dask_ownership.runtime.link import LocalLink, OwnerLink
from dask_ownership.runtime.membership import Member
from dask_ownership.runtime.packing import not_sendable

if TYPE_CHECKING:
    from dask_ownership.runtime.owner import Owner

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
    """The workers that one owner uses, and its links to them. On the loop's thread.

    Parameters
    ----------
    owner : Owner

    Attributes
    ----------
    ask : Ask
        Set by whoever knows the way to the scheduler.
    joined : bool
        Whether it has answered once.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.core = owner.core
        self.ask: Ask | None = None
        self.joined = False
        self._began = False
        self._asking: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Future[None]] = set()

    # ---- what the scheduler says ----

    def changed(self, added: Iterable[Member], removed: Iterable[tuple[str, str]]) -> None:
        """Workers joined, left or have other resources; it may be said again. Stream handler.

        ``removed`` has an address and an incarnation each. Whoever has not asked yet who is
        there does not use them.
        """
        if not self._began or self.owner.closed:
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
        self.owner.chronicle.joined(joined)
        self.owner.step()

    def process_gone(self, owner: str) -> None:
        """Another owner is gone for good. Stream handler."""
        with self.owner.chronicle.burying([owner], owner):
            self.core.membership.process_gone(owner)
        if not self.owner.closed:
            self.owner.step()

    def _left(self, incarnation: str) -> None:
        """A worker is gone for good."""
        membership = self.core.membership
        view = membership.view_of(incarnation)
        with self.owner.chronicle.burying(membership.owners_at(incarnation), incarnation):
            if view is None:
                membership.left(incarnation, "left the cluster")
                return
            reached = self._unlink(view)
            with self.owner.chronicle.losing(view, "left the cluster"):
                membership.left(incarnation, "left the cluster", reached)

    # ---- asking the scheduler ----

    async def join(self) -> None:
        """Ask who is there, once.

        Raises
        ------
        OSError
            When there is no answer; `NotJoined` when it is another one.
        """
        assert self.ask is not None
        self._began = True
        asked = self.core.membership.ask()
        answer = await self.ask()
        if not isinstance(answer, dict) or answer.get("status") != "OK":
            raise NotJoined(answer)
        self.owner.token = answer.get("token", self.owner.token)
        self.owner.holder = tuple(answer["holder"])
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
        if self._asking is None and self.ask is not None and any(self.core.posting.waiting):
            self._asking = asyncio.ensure_future(self._ask_until_known())
            self._asking.add_done_callback(self._asked)

    async def _ask_until_known(self) -> None:
        pause = FIRST_ASKED
        while not self.owner.closed and any(self.core.posting.waiting):
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_ASKED)
            if not any(self.core.posting.waiting):
                return  # the scheduler told of it meanwhile
            try:
                await self.join()
            except Exception as error:
                logger.info("%s asks the scheduler again who is there: %r", self.owner.name, error)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled():
            task.result()

    # ---- links ----

    def dial(self, address: str) -> None:
        """A worker has a post for this process and no link. Stream handler."""
        view = self.core.placement.workers.get(address)
        if view is not None:
            self.link_to(view).start()

    def link_to(self, view: WorkerView) -> Any:
        """The link to a worker, made when it is new."""
        if view.link is None:
            executor = self.owner.executor
            if executor is not None and view.address == executor.worker.address:
                loop = asyncio.get_running_loop()
                deliver = executor.local_link(
                    self.core.peers.process,
                    lambda batch: loop.call_soon(self._local_batch, view, batch),
                )
                view.link = LocalLink(deliver)
            else:
                view.link = self._owner_link(view)
        return view.link

    def _owner_link(self, view: WorkerView) -> OwnerLink:
        incarnation, address, name = self.core.peers.process
        return OwnerLink(
            view.address,
            {
                "owner": incarnation,
                "address": address,
                "name": name,
                "token": self.owner.token,
                "to": view.incarnation,
            },
            self.owner.connection_args,
            lambda messages: self.owner.received(view, messages),
            lambda reason: self._refused(view, reason),
            lambda reason: self._unreachable(view, reason),
            parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")),
            self.owner.liveness.limit,
            view.traffic,
            lambda message, error: self._unsendable(view, message, error),
        )

    def _local_batch(self, view: WorkerView, batch: Any) -> None:
        if view.link is not None:
            messages = view.link.state.receive(batch)
            if messages:
                self.owner.received(view, messages)

    def _unsendable(self, view: WorkerView, message: Message, error: Exception) -> None:
        """A message to a worker cannot be packed: the task that needs it fails."""
        pickled = not_sendable(message, f"the worker {view.address}", error)
        self.owner.call(self.core.unsendable, view, message, pickled)

    def _unlink(self, view: WorkerView) -> bool:
        """End the link to a worker that is gone; whether anything can have arrived there."""
        link, view.link = view.link, None
        self.owner.pool.remove(view.address)
        if link is None:
            return False
        link.closed = True
        closing = asyncio.ensure_future(link.close(say_bye=False))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return bool(link.reached)

    def _refused(self, view: WorkerView, reason: str) -> None:
        """A worker will not take the link: go on without it."""
        if not self.owner.cut_off:
            logger.warning("tasks are not sent to %s: %s", view.address, reason)
        link, view.link = view.link, None
        self.core.membership.refuse(view, reason, link is not None and link.reached)
        self.owner.step()

    def _unreachable(self, view: WorkerView, reason: str) -> None:
        """There is no route to a worker: go on without it, and look again later."""
        self._refused(view, reason)
        self.core.later(REACHED_AGAIN, partial(self._try_again, view))
        self.owner.step()

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
        if not self.core.refused or self.core.placement.workers or self.owner.cut_off:
            return
        reasons = "; ".join(self.core.refused.values())
        detail = f"no worker of the cluster takes owned tasks: {reasons}"
        for row in self.core.table.all():
            if row.state == READY:
                self.core.settle(row, Failure("no-worker", row.key, detail))

    # ---- the end ----

    async def close(self) -> None:
        """End all links."""
        if self._asking is not None:
            self._asking.cancel()
        views = list(self.core.placement.workers.values())
        await asyncio.gather(
            *(view.link.close() for view in views if view.link is not None),
            return_exceptions=True,
        )
        for view in views:
            self.core.placement.remove_worker(view)
