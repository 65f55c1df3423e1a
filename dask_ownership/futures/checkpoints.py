"""Checkpoints: small state that a task keeps outside of the process that may fail."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future as Answer
from typing import Any

import dask
from dask.utils import parse_bytes

from dask_ownership.core.executor.checkpoints import restored
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.errors import NotSerializable, from_failure
from dask_ownership.runtime.importing import loads
from dask_ownership.runtime.serialize import dumps, finding
from dask_ownership.runtime.task import current_entry


def checkpoint(name: str, value: Any) -> Any:
    """Keep a small value outside of this task's process, for a later attempt of the task.

    The owner of the task keeps it, which is the process that submitted the task; nothing else
    is needed. When this returns the owner has it. When the task has to run again, because its
    worker died or because it failed and has ``retries``, `restore` gives what was kept last
    under each name. All is dropped when the task ends with a value or is cancelled: a value
    that is made again from its lineage is made without checkpoints.

    The task keeps its slot meanwhile: it waits for one round trip to its owner.

    Parameters
    ----------
    name : str
    value : object
        It is pickled, as arguments are, and replaces what was kept under this name. All of
        one task together may have ``ownership.checkpoint.max-bytes`` (1 MiB), by the
        configuration of the worker.

    Returns
    -------
    awaitable or None
        On a thread whose event loop runs, as in a coroutine task, it must be awaited.

    Raises
    ------
    Superseded
        When this is not the current attempt of the task any more: another one was started
        elsewhere, or it was cancelled. What was kept is not touched.
    ClosedOwner
        When the owner is gone, or this worker closes.
    ValueError
        When it would be too much.
    NotSerializable
        When the value cannot be pickled, or holds a future: nothing would keep what that
        stands for.
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
        asyncio.get_running_loop()
    except RuntimeError:
        _raise(entry, answer.result())
        return None
    return _answered(entry, answer)


def restore(name: str, default: Any = None) -> Any:
    """What this task, or an earlier attempt of it, kept last with `checkpoint`.

    It came with the task: nobody is asked.

    Parameters
    ----------
    name : str
    default : object
        What to give when nothing is kept under that name.

    Raises
    ------
    NotSerializable
        When it cannot be unpickled here.
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
    entry = current_entry()
    if entry is None:
        raise RuntimeError(
            f"{asked}() is for tasks that dask_ownership runs, and nothing of that kind runs "
            "here; threads that a task starts by itself are in no task"
        )
    return entry


def _check(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a checkpoint is a str, not {name!r}")


def _send(entry: Entry, name: str, pickled: bytes) -> Answer[Failure | None]:
    """Send it to the task's owner; what the owner says comes when it comes."""
    answer: Answer[Failure | None] = Answer()
    answer.set_running_or_notify_cancel()  # who stops waiting does not take it back
    limit = int(parse_bytes(dask.config.get("ownership.checkpoint.max-bytes")))
    executor = entry.session.runtime
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
    if failure is not None:
        raise from_failure(entry.key, failure)


async def _answered(entry: Entry, answer: Answer[Failure | None]) -> None:
    _raise(entry, await asyncio.wrap_future(answer))
