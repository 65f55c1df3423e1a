"""Operations of a worker for peers and the scheduler: links, values, getting ready to leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from distributed.comm import Comm
from distributed.core import Status
from distributed.protocol import Serialize, Serialized

from dask_ownership.core.protocol.names import worker_of
from dask_ownership.runtime.comm.channel import Channel, channel, has_stream
from dask_ownership.runtime.comm.link import BYE, ExecutorLink, other_protocol
from dask_ownership.runtime.comm.operations import Refusals, operation, refusal
from dask_ownership.runtime.comm.secret import SCHEDULER, proves
from dask_ownership.runtime.comm.transfer import pack, unpack_off_loop
from dask_ownership.runtime.executor.executor import Executor
from dask_ownership.runtime.owner.owner import LocalRef

logger = logging.getLogger("dask_ownership.executor")

OPERATIONS = ("ownership_link", "ownership_get", "ownership_put", "ownership_leave")

LEAVE_INTERVAL = 0.02
"""Seconds between looks at whether a worker can leave."""

STAY = 60.0
"""Seconds beyond the time for leaving after which a worker that is still there works again."""


class Server:
    """The handlers of one worker. Loop thread.

    Parameters
    ----------
    executor : Executor
        Has the links and the values.
    secret : str
        The secret of the cluster.
    """

    def __init__(self, executor: Executor, secret: str) -> None:
        self.executor = executor
        self.worker = executor.worker
        self._secret = secret
        self._refusals = Refusals()

    def start(self) -> None:
        """Register the handlers that peers and the scheduler call."""
        handlers = (
            self.link,
            self._operation(self.get, "reader"),
            self._operation(self.put, "owner"),
            self.scheduler_operation(self.leave),
        )
        self.worker.handlers.update(zip(OPERATIONS, handlers, strict=True))

    def close(self) -> None:
        """Refuse all operations from now on.

        The handlers stay: owners may not have heard yet that the worker closes, and Dask logs a
        traceback for an operation without a handler.
        """
        for name in OPERATIONS:
            self.worker.handlers[name] = self._refuse_all

    def _refuse_all(self, **message: Any) -> dict[str, Any]:
        closes = self.worker.status in (Status.closing, Status.closing_gracefully, Status.closed)
        what = "is closing" if closes else "takes no owned tasks: the plugin was taken away there"
        return refusal(f"the worker {self.worker.address} {what}", ending=closes)

    # ---- who may ask ----

    def stranger(self, name: Any, token: Any) -> str | None:
        """Return why a caller is no process of this cluster, or None for a process that is.

        ``name`` and ``token`` are as the caller sent them, and so of any type.
        """
        if proves(self._secret, name, token):
            return None
        return (
            f"the worker {self.worker.address} does not know this owner's token: is it of this "
            "cluster?"
        )

    def _operation(self, handler: Callable[..., Any], caller: str) -> Callable[..., Any]:
        """Wrap a handler for owners of this cluster; the argument ``caller`` names the caller."""
        check = lambda message: self.stranger(message.get(caller), message.get("token"))  # noqa: E731
        return operation(handler, check, self._refusals)

    def scheduler_operation(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a handler for the scheduler alone."""
        check = lambda message: self.stranger(SCHEDULER, message.get("token"))  # noqa: E731
        return operation(handler, check, self._refusals)

    def _refuse(self, owner: Any, token: Any, protocol: Any, greeting: Any) -> str | None:
        """Return why a link is refused, or None. All arguments are of any type."""
        address = self.worker.address
        # First, because an owner of another version may send all other arguments differently.
        reason = other_protocol(f"the worker {address}", protocol) or self.stranger(owner, token)
        if reason is None and tuple(map(type, greeting)) != (int, str, str):
            reason = f"the worker {address} does not understand this greeting"
        if reason is None and self._closing:
            reason = f"the worker {address} is closing"
        if reason is None and owner in self.executor.dropped:
            reason = f"the worker {address} was told that this owner is gone"
        return reason

    @property
    def _closing(self) -> bool:
        return self.executor.closed or self.worker.status in (Status.closing, Status.closed)

    # ---- links ----

    async def link(
        self,
        comm: Comm,
        *,
        owner: Any = "",
        protocol: Any = None,
        token: Any = None,
        received: Any = 0,
        stream: Any = False,
        name: Any = "",
        address: Any = "",
        to: Any = "",
        **hello: Any,
    ) -> Any:
        """Handle ``ownership_link``: take a connection over for good, for a link of an owner.

        Parameters
        ----------
        comm : distributed.comm.Comm
        owner, address, name : str
            The owner: its incarnation, its address (empty for a client) and its name for people.
        protocol : int
            Version of the messages of the owner.
        token : str
            The proof of the owner's incarnation.
        received : int
            Number of the last batch that the owner has received over this link.
        stream : bool
            Whether the owner can write and read on the stream of the connection itself.
        to : str
            Incarnation of the worker that the owner dialled. Another worker may have its address.
        hello
            All other arguments, which are ignored.

        Returns
        -------
        dict or Status
            A refusal, or ``Status.dont_reply`` when the connection has ended.
        """
        reason = self._refuse(owner, token, protocol, (received, name, address))
        if reason is not None:
            # An owner that is gone, or dials a closing worker, is no stranger: nothing to log.
            if self._closing or (type(owner) is str and owner in self.executor.dropped):
                return refusal(reason, ending=True)
            where = comm.peer_address.rpartition(":")[0]
            self._refusals.say(f"an owner at {where}", reason)
            return refusal(reason)
        if to != worker_of(self.executor.incarnation):
            return {"status": "another"}
        link = self.executor.link_of(owner, (owner, address, name))
        stream = bool(stream) and has_stream(comm)
        made: Channel | None = None
        try:
            await comm.write(
                {
                    "status": "OK",
                    "received": link.state.received,
                    "stream": stream,
                }
            )
            if link.channel is not None:
                link.channel.abort()
            # No await from here until the channel is there: a batch that is numbered
            # meanwhile would be neither among those sent again nor written by itself.
            made = channel(comm, stream)
            for frame in link.packing.again(received):
                made.write(frame)
            link.channel = made
            self.executor.flush()
            await made.listen(lambda batch: self._arrived_on(link, batch))
        except (OSError, ValueError) as error:
            logger.debug("link of %s: %r", owner, error)
        finally:
            if link.channel is made:
                link.channel = None
            comm.abort()
        return Status.dont_reply

    def _arrived_on(self, link: ExecutorLink, batch: Any) -> bool:
        """Take in a batch from a connection; True when the owner closed, and this is its last."""
        if batch == BYE:
            self.executor.drop_owner(link.session.owner, died=False)
            return True
        self.executor.receive(link, batch)
        return False

    # ---- leaving ----

    async def leave(self, timeout: float, move: bool = True, wait: bool = True) -> bool:
        """Handle ``ownership_leave``: get ready to be retired or restarted.

        The worker starts no more tasks, has owners move their values away, and hands the objects
        of its own owner over that other processes borrow. A worker that is not retired after all
        goes on `STAY` seconds after the time for leaving.

        Parameters
        ----------
        timeout : float
            Seconds, the time for leaving.
        move : bool
            False when no other worker is there: then values stay.
        wait : bool
            Whether running tasks are waited for.

        Returns
        -------
        bool
            Whether all of it was done in time.
        """
        executor = self.executor
        loop = asyncio.get_running_loop()
        loop.call_later(timeout + STAY, executor.stay)
        executor.leave()
        deadline = loop.time() + timeout
        while not (left := executor.can_leave(move, wait)) and loop.time() < deadline:
            executor.flush()
            await asyncio.sleep(LEAVE_INTERVAL)
        return left

    # ---- values ----

    async def get(self, owner: str, names: Sequence[Any], reader: str) -> dict[str, Any]:
        """Handle ``ownership_get``: give values of one owner, as far as they are here.

        Parameters
        ----------
        owner : str
            The incarnation of the owner.
        names : sequence of tuple
            Keys, each with the attempt that made the value.
        reader : str
            The incarnation of the owner that asks, or of the owner at the worker that asks. The
            operation has checked it.

        Returns
        -------
        dict
            Packed ``values`` for the ``names`` that are here, and ``reasons`` for the names that
            are ``unserializable``. A name in neither list is not here.
        """
        answer: dict[str, Any] = {"status": "OK"}
        found: list[Any] = []
        values: list[Serialized] = []
        unserializable: list[Any] = []
        reasons: list[str] = []
        for name in names:
            try:
                value = self.executor.stored((owner, *name))
            except (KeyError, TypeError):
                continue
            except Exception as error:
                unserializable.append(name)
                reasons.append(f"it could not be read back: {error!r}")
                continue
            try:
                values.append(pack(value, self.worker.address))
                found.append(name)
            except Exception as error:
                unserializable.append(name)
                reasons.append(str(error))
        answer.update(names=found, values=values, unserializable=unserializable, reasons=reasons)
        return answer

    async def put(self, owner: str, data: Sequence[Any]) -> dict[str, Any]:
        """Handle ``ownership_put``: keep values that an owner scatters here.

        Parameters
        ----------
        owner : str
            The incarnation of the owner.
        data : sequence of tuple
            Key, number (in place of an attempt) and packed value, for each value.

        Returns
        -------
        dict
            The sizes of the values in bytes, or a refusal. A leaving worker takes no values: the
            owner scatters them elsewhere.
        """
        if self._closing:
            return refusal(f"the worker {self.worker.address} is closing")
        if self.executor.leaving:
            return {"status": "leaving"}
        mine = self.executor.owner
        sizes = []
        arrived: list[Any] = []
        for key, number, value in data:
            sealed = value.data if isinstance(value, Serialize) else value  # within a process
            packed = Serialized(sealed.header, sealed.frames)
            value, rows = await unpack_off_loop(packed, self.executor.task_client)
            local_refs = [LocalRef(mine, row) for row in rows]
            # The check follows each wait, because the owner may close meanwhile: nothing would
            # ever free a value that is kept for the owner afterwards.
            if owner in self.executor.dropped:
                return refusal(f"the worker {self.worker.address} was told that this owner is gone")
            arrived.extend(rows)
            sizes.append(self.executor.hold(owner, key, number, value, local_refs))
        if arrived:
            # With the answer the owner may let go of the futures inside the values.
            counted = asyncio.Event()
            mine.core.borrowing.when_acknowledged(arrived, counted.set)
            await counted.wait()
        return {"status": "OK", "nbytes": sizes}
