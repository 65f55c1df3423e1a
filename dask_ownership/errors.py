"""Every error of this project that a user can meet, with its cause and what to do.

The docstrings are also the page ``docs/errors.md``, which ``ci/reference.py`` writes: each says the
cause first, and then, in a paragraph that begins with *What to do*, the cure.
"""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import CancelledError
from typing import Any

from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker as _StockKilledWorker

from dask_ownership.core.protocol.failure import Failure

__all__ = [
    "ClosedOwner",
    "FutureCancelledError",
    "InternalError",
    "KilledWorker",
    "LostData",
    "NoWorker",
    "NoWorkerInTime",
    "NotHere",
    "NotSerializable",
    "NotUnpickled",
    "OwnerLost",
    "OwnershipError",
    "PluginMissing",
    "SchedulerGone",
    "Superseded",
    "TaskExit",
    "TaskTimeout",
    "Uncertain",
]


class OwnershipError(Exception):
    """Base of the errors below."""


class LostData(OwnershipError, CancelledError):
    """The only copy of a value is gone, and nothing can make the value again.

    The value was scattered, or its lineage was evicted, or its task runs at most once: the message
    says which, and where the copies were.

    What to do: scatter the value, or submit its task, again. ``client.replicate`` keeps copies of
    values that must not be lost; ``ownership.lineage.max-bytes`` bounds the lineage.

    Attributes
    ----------
    key : hashable
        Key of the lost value, which may be an input of the value that was asked for.
    detail : str
        Where the copies were, and why there is no lineage.
    """

    def __init__(self, key: Hashable, detail: str) -> None:
        super().__init__(key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return (
            f"the value of {self.key!r} is lost: {self.detail}. Submit or scatter it again; "
            "client.replicate keeps copies at several workers"
        )


class OwnerLost(LostData):
    """The owner of a value died, and the owners that led to it did not make the value again.

    The owner was a worker whose task had submitted the lost task. That task, the parent, runs again
    when its value or its children are asked for; here it did not submit the lost task once more, or
    failed, or could not run.

    What to do: submit the parent again. A parent that submits the same calls each time it runs has
    its children made again; what depends on the time or on a random number belongs in the
    arguments. Workers that are retired hand over what they own; killed workers cannot.

    Attributes
    ----------
    key : hashable
    owner : str
        Name of the dead owner: a worker's address or a client's id.
    reason, detail : str
        Which owners were asked, and why there is no value.
    chain : tuple of str
        Names of the owner, of the owner of the task that submitted the lost task, of the owner of
        that task's submitter, and so on, as far as known.
    """

    def __init__(self, key: Hashable, owner: str, reason: str, chain: tuple[str, ...]) -> None:
        Exception.__init__(self, key, owner, reason, chain)
        self.key = key
        self.owner = owner
        self.reason = self.detail = reason
        self.chain = chain

    def __str__(self) -> str:
        led = ", ".join(self.chain[1:]) or "no other process"
        return (
            f"the value of {self.key!r} is lost with its owner {self.owner}: {self.reason} "
            f"(what submitted it was owned by {led}). Submit it again, from a process that lives"
        )


class KilledWorker(OwnershipError, _StockKilledWorker):
    """A task was given up because workers kept dying under it.

    More than ``distributed.scheduler.allowed-failures`` workers died, all but the first of them
    while nothing else ran there.

    What to do: find out what ends the process. The message has exit codes and memory as far as
    nannies and the scheduler know, and memory is the usual reason. Give the worker more memory or
    the task less data, and keep code that may crash in a process of its own. Where workers are
    killed for other reasons, raise ``distributed.scheduler.allowed-failures``.

    Attributes
    ----------
    key : hashable
    detail : str
        The deaths, and what to do.
    """

    def __init__(self, key: Hashable, detail: str) -> None:
        Exception.__init__(self, key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.key!r} was given up: {self.detail}"


class TaskTimeout(OwnershipError, TimeoutError):
    """A task ran for longer than its ``timeout=``, and was cancelled at its worker.

    The thread of the task goes on until its function returns; there `dask_ownership.cancelled` is
    true.

    What to do: give the task a longer ``timeout=``, or ``retries=``, of which each has the whole
    time. A function that asks `dask_ownership.cancelled` now and then frees its slot at once.

    Attributes
    ----------
    key : hashable
    worker : str
        Address of the worker.
    seconds : float
        The timeout.
    """

    def __init__(self, key: Hashable, worker: str, seconds: float) -> None:
        Exception.__init__(self, key, worker, seconds)
        self.key = key
        self.worker = worker
        self.seconds = seconds

    def __str__(self) -> str:
        return (
            f"{self.key!r} ran for longer than its timeout of {self.seconds:g} s at {self.worker} "
            "and was cancelled there; give it more time, or retries= to try it again"
        )


class Uncertain(OwnershipError):
    """A task with ``at_most_once=True`` may have run or not: its worker is gone.

    What to do: look on the outside whether the task has done its work. If not, ``client.retry``
    runs it again.

    Attributes
    ----------
    key : hashable
    detail : str
        Where the task was, what happened there, and what to do.
    """

    def __init__(self, key: Hashable, detail: str) -> None:
        super().__init__(key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"nobody knows whether {self.key!r} ran: {self.detail}"


class NoWorker(OwnershipError, ValueError):
    """No worker of the cluster may or can run the task.

    Either ``workers=`` or ``resources=`` matched no worker for
    ``distributed.scheduler.no-workers-timeout``, or the workers that are there cannot be reached
    from here, or have no dask_ownership, or another version of it.

    What to do: the message names the workers and the reasons; ``dask ownership check ADDRESS`` says
    the same of a cluster. Start a worker that matches, or change the restriction; install the
    package in the same version everywhere; see to it that workers can be dialled or relayed to.

    Attributes
    ----------
    key : hashable
    detail : str
        The restrictions, and the workers that are there.
    """

    def __init__(self, key: Hashable, detail: str) -> None:
        super().__init__(key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"no worker can run {self.key!r}: {self.detail}"


class NoWorkerInTime(NoWorker, TimeoutError):
    """No worker took scattered values before the timeout.

    What to do: wait for workers first, with ``client.wait_for_workers(1)``, or give ``scatter`` a
    longer ``timeout=``.
    """


class Superseded(OwnershipError, RuntimeError):
    """An attempt that is not the current attempt of its task any more asked for something.

    Another attempt was started elsewhere, because this worker did not answer for a while, or the
    task was cancelled.

    What to do: nothing; let the exception end the attempt. Its result is not wanted.

    Attributes
    ----------
    key : hashable
    detail : str
    """

    def __init__(self, key: Hashable, detail: str) -> None:
        super().__init__(key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"this attempt of {self.key!r} is not the current one: {self.detail}"


class NotSerializable(OwnershipError, TypeError):
    """A function, argument, result, value or exception cannot be pickled or unpickled.

    What to do: the message names the object. Open files, connections and locks inside the task;
    pass paths and names. Return plain data. An exception whose ``__init__`` hands other arguments
    to its base than it takes needs ``__reduce__``. Scatter arguments of 4 GiB and more, and pass
    the future.
    """


class NotUnpickled(NotSerializable, RuntimeError):
    """A worker could not unpickle the function or the arguments of a task.

    Most often a module is not installed at the worker, or is there in another version.

    What to do: install the module there, or send it with ``client.upload_file``.
    """


class NotHere(OwnershipError, RuntimeError):
    """A future was asked for something in a process that cannot answer: its owner is elsewhere.

    The process has no `dask_ownership.Client` of the cluster, or a stock client only.

    What to do: make a `dask_ownership.Client` of the same cluster before the future is unpickled.
    Passing the future on needs none.
    """


class PluginMissing(OwnershipError, RuntimeError):
    """The cluster does not take owned tasks from this client.

    It has no ownership plugin that this client may install, or another version of the protocol.

    What to do: start the scheduler with ``--preload dask_ownership.preload``, with the package
    installed there, in the version that the client has.
    """


class InternalError(OwnershipError, RuntimeError):
    """A fault of this project, or of a process with another version, while it dealt with a task.

    The fault ends that task and no other task.

    What to do: compare the versions with ``dask ownership check ADDRESS``. If they are the same
    everywhere, report the fault with the log of that process; the task can be submitted again.

    Attributes
    ----------
    key : hashable
    detail : str
    """

    def __init__(self, key: Hashable, detail: str) -> None:
        super().__init__(key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.key!r} was given up because of an internal error: {self.detail}"


class TaskExit(OwnershipError, RuntimeError):
    """A task raised SystemExit, KeyboardInterrupt or another exception that is no `Exception`.

    The exception itself would end other processes, or cancel the coroutine that asks for the
    result.

    What to do: raise an ordinary exception in the task, or return.
    """


class ClosedOwner(OwnershipError, CancelledError, RuntimeError):
    """The client was closed, so nothing can be asked of the objects it owned.

    Closing frees every value, also values that were here already, so that the answer of a future
    does not depend on the size of its value.

    What to do: read the values before the client closes, which it does at the end of its ``with``
    block. What has to outlive a client goes into a queue, a variable or a dataset.
    """


CLOSED = (
    "Gather what you need before the client closes; a queue, variable or dataset keeps values "
    "beyond their client"
)
"""What to do about the futures of a closed client."""


class SchedulerGone(ClosedOwner, FutureCancelledError):
    """The scheduler, or the connection to it, is gone for good, and so the client closed.

    Stock Dask closes the workers with the scheduler. Small results and errors are with the client
    by then and can still be read, also after the client has closed: the message says how many.

    What to do: read the values here, with ``future.result()`` or for all futures at once with
    ``client.gather(futures, errors="skip")``; make a new client of a scheduler that runs, and
    submit the rest again.

    Attributes
    ----------
    key : hashable
        Key of the future, or id of the client.
    reason : str
        The reason of Dask's own futures in this case.
    msg : str
        What happened, and what to do.
    """

    def __init__(self, key: Hashable, detail: str) -> None:
        Exception.__init__(self, key, detail)
        self.key = key
        self.reason = "scheduler-connection-lost"
        self.msg = detail

    def __str__(self) -> str:
        return f"{self.key!r}: {self.msg}"

    def __reduce__(self) -> Any:
        return type(self), (self.key, self.msg)


def from_failure(key: Hashable, failure: Failure, lender: str = "") -> BaseException:
    """Return the exception for a failure: the reason why a row has no value.

    ``lender`` is the name of the owner if the row is borrowed.
    """
    if failure.kind == "cancelled":
        detail = failure.detail
        if failure.key != key:
            detail = f"its input {failure.key!r} was cancelled ({detail})"
        where = failure.where or (f"borrowed from {lender}" if lender else "")
        place = f"It was {where}. " if where else ""
        return FutureCancelledError(key, detail, f"{place}Submit it again to have its value.")
    if failure.kind == "owner-lost":
        owner = failure.chain[0] if failure.chain else "?"
        return OwnerLost(failure.key, owner, failure.detail, failure.chain)
    kinds: dict[str, type[Exception]] = {
        "lost-data": LostData,
        "killed-worker": KilledWorker,
        "no-worker": NoWorker,
        "scheduler-gone": SchedulerGone,
        "uncertain": Uncertain,
        "superseded": Superseded,
        "internal": InternalError,
    }
    kind = kinds.get(failure.kind)
    if kind is not None:
        return kind(failure.key, failure.detail)
    return ClosedOwner(f"{key!r}: {failure.detail}. {CLOSED}")
