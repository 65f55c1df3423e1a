"""Checkpoints: small state that a task keeps outside of the process that may fail."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future as Answer
from typing import Any

from dask_ownership.config import value_of
from dask_ownership.core.executor.checkpoints import restored
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.errors import NotSerializable, from_failure
from dask_ownership.runtime.importing import loads
from dask_ownership.runtime.serialize import dumps, finding
from dask_ownership.runtime.task import current_entry


def checkpoint(name: str, value: Any) -> Any:
    """Keep a small value outside of this task's process, for a later attempt of the task.

    The owner of the task, which is the process that submitted the task, keeps the value; no other
    process takes part. When this returns the owner has the value. When the task has to run again,
    because its worker died or because the task failed and has ``retries``, `restore` returns the
    last value under each name. All values are dropped when the task ends with a value or is
    cancelled: a task that runs again from its lineage runs without checkpoints.

    The task keeps its slot meanwhile: it waits for one round trip to its owner.

    Parameters
    ----------
    name : str
    value : object
        Pickled, as arguments are, and replaces the value kept under this name. All values of one
        task together may have ``ownership.checkpoint.max-bytes`` (1 MiB), by the configuration of
        the worker.

    Returns
    -------
    awaitable or None
        On a thread with a running event loop, as in a coroutine task, the result must be awaited.

    Raises
    ------
    Superseded
        When this is not the current attempt of the task any more: another attempt was started
        elsewhere, or the task was cancelled. The kept values are not touched.
    ClosedOwner
        When the owner is gone, or this worker closes.
    ValueError
        When the values would have too many bytes.
    NotSerializable
        When the value cannot be pickled, or holds a future: nothing would keep the future's
        object alive.
    RuntimeError
        Outside of a task that dask_ownership runs.

    Examples
    --------
    >>> def train(epochs):
    ...     epoch, weights = restore("state", (0, None))
    ...     while epoch < epochs:
    ...         weights = one_epoch(weights)  # submits tasks and waits for them
    ...         epoch += 1
    ...         checkpoint("state", (epoch, weights))
    ...     return weights
    >>> client.submit(train, 100)  # doctest: +SKIP
    """
    entry = _task("checkpoint")
    _check(name)
    try:
        with finding() as found:
            pickled = dumps(value)
    except Exception as error:
        raise NotSerializable(
            f"could not pickle the checkpoint {name!r} of {entry.key!r} to send it to its owner: "
            f"{error!r}"
        ) from error
    if found:
        raise NotSerializable(
            f"the checkpoint {name!r} of {entry.key!r} holds the future {found[0].key!r}, which a "
            "checkpoint does not keep alive: keep its value (future.result()) instead"
        )
    answer = _send(entry, name, pickled)
    try:
        # On an event loop, blocking would stop all coroutine tasks of the worker.
        asyncio.get_running_loop()
    except RuntimeError:
        _raise(entry, answer.result())
        return None
    return _answered(entry, answer)


def restore(name: str, default: Any = None) -> Any:
    """Return the value that this task, or an earlier attempt, kept last with `checkpoint`.

    The values came with the task: no process is asked.

    Parameters
    ----------
    name : str
    default : object
        Returned when no value is kept under that name.

    Raises
    ------
    NotSerializable
        When the value cannot be unpickled here.
    RuntimeError
        Outside of a task that dask_ownership runs.
    """
    entry = _task("restore")
    _check(name)
    pickled = restored(entry).get(name)
    if pickled is None:
        return default
    try:
        return loads(pickled)
    except Exception as error:
        raise NotSerializable(
            f"the checkpoint {name!r} of {entry.key!r} could not be unpickled at worker "
            f"{entry.session.runtime.worker.address}: {error!r}; is what it imports installed "
            "there?"
        ) from error


def _task(asked: str) -> Entry:
    """Return the entry of the task that the caller runs in; ``asked`` is the caller's name."""
    entry = current_entry()
    if entry is None:
        raise RuntimeError(
            f"{asked}() is for tasks that dask_ownership runs, and nothing of that kind runs "
            "here; threads that a task starts by itself are in no task"
        )
    return entry


def _check(name: Any) -> None:
    """Raise TypeError when the name of a checkpoint is not a string."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a checkpoint is a str, not {name!r}")


def _send(entry: Entry, name: str, pickled: bytes) -> Answer[Failure | None]:
    """Send a pickled value to the owner of a task, and return the future of the owner's answer."""
    answer: Answer[Failure | None] = Answer()
    # A caller that stops waiting does not take the value back.
    answer.set_running_or_notify_cancel()
    limit = value_of("ownership.checkpoint.max-bytes")
    executor = entry.session.runtime
    # The size of all values of the task is checked and changed under one lock, because threads of
    # one task may call `checkpoint` at the same time.
    with executor.lock:
        size = executor.core.checkpoint_size(entry, name, pickled)
        if size <= limit:
            executor.core.save_checkpoint(entry, name, pickled, answer.set_result)
    if size > limit:
        raise ValueError(
            f"with {name!r} ({len(pickled):,d} bytes) the checkpoints of {entry.key!r} would have "
            f"{size:,d} bytes, and ownership.checkpoint.max-bytes allows {limit:,d}: keep large "
            "state in a file, and its name here"
        )
    executor.flushing.soon()
    return answer


def _raise(entry: Entry, failure: Failure | None) -> None:
    """Raise the error that an owner's answer stands for; None is success."""
    if failure is not None:
        raise from_failure(entry.key, failure)


async def _answered(entry: Entry, answer: Answer[Failure | None]) -> None:
    """Wait for an owner's answer in a coroutine."""
    _raise(entry, await asyncio.wrap_future(answer))
