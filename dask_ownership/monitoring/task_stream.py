"""Owned tasks in Dask's task stream: which task ran where and when.

``get_task_stream``, ``performance_report`` and the dashboard read the buffer of the scheduler's
``TaskStreamPlugin``, which exists from the first request for the stream. From then on workers note
each owned task that ends, and the scheduler takes the notes with all other reports of workers
(`dask_ownership.monitoring.feed`): twice a second, less often from many workers, and before it
answers a client. Until then a task costs one look at an attribute.

A client that asks for the stream (`READERS`) gets all tasks that ended, as far as a worker keeps
them: `KEPT` notes; when more tasks end between two rounds the oldest notes are dropped. While only
pages show the stream a worker notes a sample, evenly over the time, so that rectangles too many to
tell apart hold up neither the tasks nor the scheduler. The time of short tasks (`SHORT`) outside of
the sample is added to the name of the next task in the sample: the sum over all names is exact, and
the time of each name is as exact as in a sampling profiler.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from inspect import isawaitable
from threading import Lock, get_ident
from time import time
from typing import Any, TypeAlias, TypeVar, cast

from dask.utils import typename

from dask_ownership.core.executor.session import Entry
from dask_ownership.core.protocol import messages as m
from dask_ownership.monitoring.census import OTHERS
from dask_ownership.runtime.executor.watch import Watch
from dask_ownership.runtime.serialize import dumps
from dask_ownership.runtime.task import SEEN, Outcome

logger = logging.getLogger(__name__)

KEPT = 20_000
"""Notes that a worker keeps between two rounds."""

CLOCK_SET = 0.2
"""Seconds by which the delay of a worker's clock changes at least when the clock was set."""

REMEMBERED = 1000
"""Transfers, and tasks with long steps, that a worker remembers.

A transfer is remembered until a task that waited for the value ends; a task that took long to read,
write or unpickle, until the task ends.
"""

SHORT = 0.005
"""Seconds: tasks that take less may be too many to look at each."""

AT_ONCE = 1.0
"""Seconds of unused sample that a worker may make up for at once, after it had little to do."""

TALLIED = 1000
"""Names of tasks whose times are told apart; tasks of further names are counted as `OTHERS`."""

SHOWN = 600
"""Notes of all workers together in a second, while only pages show the stream."""

BEFORE = ("disk-read", "deserialize")
"""Actions of a task before its function is called."""

READERS = ("get_task_stream", "get_task_stream_index", "performance_report")
"""Operations of the scheduler that read the buffer."""

Step: TypeAlias = tuple[str, float, float, str]
"""Action, start and stop (by the worker's clock), and the worker that a value came from."""

Note: TypeAlias = tuple[Any, int, bool, int, bytes, str, tuple[Step, ...]]
"""Key, thread, success, bytes, pickled type of the value, name of the type, steps in order.

Type and name are empty for a failure and for a type that cannot be unpickled.
"""


Noting = TypeVar("Noting", bound=Callable[..., None])


def harmless(method: Noting) -> Noting:
    """Make a method of `Notes` log errors in place of raising them.

    What is noted about a task must not change the task's outcome.
    """

    @wraps(method)
    def note(self: Notes, entry: Entry, *args: Any) -> None:
        try:
            method(self, entry, *args)
        except Exception:
            if not self.failed:
                self.failed = True
                logger.warning(
                    "the task stream lacks %r and maybe others", entry.key, exc_info=True
                )

    return cast(Noting, note)


class Notes:
    """Notes of the tasks that ended at one worker, and sums of their times.

    Parameters
    ----------
    watch : Watch
        Of the executor whose tasks are noted.
    group_of : callable
        Returns the name under which a key is counted.

    Attributes
    ----------
    watch, group_of
        The parameters.
    noting : bool
        Whether tasks are noted for the stream, and not only counted in ``tallies``.
    failed : bool
        Whether a task could not be noted; only the first such error is logged.
    tallies : dict of str to dict
        By name: how many seconds tasks took for each action while the worker was watched.
    """

    def __init__(self, watch: Watch, group_of: Callable[[Any], str]) -> None:
        self.watch = watch
        self.group_of = group_of
        self.noting = False
        self.failed = False
        self.tallies: dict[str, dict[str, float]] = {}
        self._lock = Lock()
        self._notes: deque[Note] = deque(maxlen=KEPT)
        self._transfers: dict[Entry, Step] = {}
        self._steps: dict[Entry, list[Step]] = {}
        self._gap = 0.0
        self._next = 0.0
        self._skipped = 0.0

    def close(self) -> None:
        """Have the executor tell this object no more."""
        self.watch.by(None)

    def note(self, entry: Entry, outcome: Outcome, started: float) -> None:
        """Note a task that ended, in its thread or on the loop, before its owner is told."""
        stopped = time()
        # When many short tasks end, these two comparisons are all that most of them cost.
        if (
            stopped < self._next
            and stopped - started < SHORT
            # A task with steps or transfers is always looked at, so that these are taken out.
            and not self._steps
            and not (self._transfers and entry.dependencies)
        ):
            self._skipped += stopped - started
        else:
            self._look_at(entry, outcome, started, stopped)

    @harmless
    def _look_at(self, entry: Entry, outcome: Outcome, started: float, stopped: float) -> None:
        """Add the time of a task to the tallies, and note the task if the sample has room."""
        steps = self._steps_of(entry) if self._steps or self._transfers else []
        if outcome.message is None:
            return  # the task was given back to its owner: it did not run
        # Reading and unpickling come before the function is called, writing after: the rest is
        # compute.
        began, ended = started, stopped
        for action, start, stop, _ in steps:
            if action in BEFORE:
                began = max(began, stop)
            elif action == "disk-write":
                ended = min(ended, start)
        name = self.group_of(entry.key)
        with self._lock:
            tally = self.tallies.get(name)
            if tally is None:
                if len(self.tallies) >= TALLIED:
                    name = OTHERS
                tally = self.tallies.setdefault(name, {"compute": 0.0})
            tally["compute"] += ended - began + self._skipped
            self._skipped = 0.0
            for action, start, stop, _ in steps:
                tally[action] = tally.get(action, 0.0) + stop - start
            noted = self.noting and stopped >= self._next
            if stopped >= self._next:
                # Time in which the worker noted less than the sample allows may be made up for,
                # `AT_ONCE` seconds of it at most.
                self._next = max(self._next, stopped - AT_ONCE) + self._gap
        if not noted:
            return
        steps.append(("compute", began, ended, ""))
        note = (entry.key, get_ident(), *_described(outcome), tuple(sorted(steps, key=_start)))
        with self._lock:
            self._notes.append(note)

    def _steps_of(self, entry: Entry) -> list[Step]:
        """Return the steps of an ended task besides computing, with the transfers of its inputs."""
        steps = self._steps.pop(entry, [])
        if self._transfers:
            found = (self._transfers.pop(d, None) for d in entry.dependencies if type(d) is Entry)
            steps += [transfer for transfer in found if transfer is not None]
        return steps

    @harmless
    def step(self, entry: Entry, action: str, began: float) -> None:
        """Remember an action other than computing that ends now. In the task's thread."""
        now = time()
        before = self._steps.get(entry)
        if before:
            began = max(began, before[-1][2])  # unpickling arguments includes reading values
        if now - began > SEEN:
            if before is None:
                if len(self._steps) >= REMEMBERED:
                    self._steps.clear()  # left by tasks that ended after the last viewer had gone
                before = self._steps.setdefault(entry, [])
            before.append((action, began, now, ""))

    @harmless
    def fetched(self, entry: Entry, seconds: float, source: str) -> None:
        """Remember the transfer of a value for which tasks wait. Loop thread."""
        if len(self._transfers) >= REMEMBERED:
            self._transfers.clear()  # left by tasks that were cancelled
        now = time()
        self._transfers[entry] = ("transfer", now - seconds, now, source)

    def tallied(self) -> dict[str, dict[str, float]]:
        """Return a copy of the tallies."""
        with self._lock:
            return {name: dict(tally) for name, tally in self.tallies.items()}

    def take(self, watch: bool, note: bool, gap: float) -> list[Note]:
        """Return the notes since the last call, and set what to note from now on.

        Parameters
        ----------
        watch : bool
            Whether to add times to the tallies.
        note : bool
            Whether to note tasks for the stream.
        gap : float
            Seconds between two noted tasks, on average, at least.
        """
        self.noting = note
        looked_at = watch or note
        self.watch.by(self if looked_at else None)
        with self._lock:
            self._gap = gap
            # A worker that waited for a longer gap does not wait longer than the new gap.
            self._next = min(self._next, time() + gap)
            notes = list(self._notes)
            self._notes.clear()
        if not looked_at:
            self._transfers.clear()
            self._steps.clear()
        return notes


def _start(step: Step) -> float:
    """Return when a step began."""
    return step[1]


def _described(outcome: Outcome) -> tuple[bool, int, bytes, str]:
    """Return whether a task succeeded, the size of its value, and the value's type as in `Note`."""
    message = outcome.message
    if message[m.KIND] == m.STORED:
        _, _, _, nbytes, pickled_type, _ = message
        try:
            kind = pickle.loads(pickled_type)
        except Exception:
            # Some types can be pickled and not unpickled: the type of a lock, for example.
            return True, nbytes or 0, b"", ""
        return True, nbytes or 0, pickled_type, kind if type(kind) is str else typename(kind)
    if message[m.KIND] == m.DONE:
        _, _, _, pickled, *_ = message
        name = typename(type(outcome.value))
        try:
            return True, len(pickled), dumps(type(outcome.value)), name
        except Exception:
            return True, len(pickled), dumps(name), name
    return message[m.KIND] != m.FAILED, 0, b"", ""


class TaskStream:
    """Puts the notes of workers into the task stream of the scheduler.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    fetch : callable
        Coroutine function that asks all workers for their notes now.

    Attributes
    ----------
    scheduler : distributed.Scheduler
    """

    def __init__(self, scheduler: Any, fetch: Callable[[], Awaitable[None]]) -> None:
        """Wrap the scheduler's operations that read the stream."""
        self.scheduler = scheduler
        self._fetch = fetch
        self._read = False
        self._delays: dict[str, float] = {}
        for name in READERS:
            if name in scheduler.handlers:
                scheduler.handlers[name] = self._reader(scheduler.handlers[name])

    @property
    def wanted(self) -> bool:
        """Whether workers are to note tasks."""
        wanted = "task-stream" in self.scheduler.plugins
        # A plugin that was removed and added again has no reader yet.
        self._read = self._read and wanted
        return wanted

    def gap(self, workers: int) -> float:
        """Return the seconds between two noted tasks at each of so many workers, on average."""
        return 0.0 if self._read else workers / SHOWN

    def _reader(self, stock: Any) -> Any:
        """Return an operation that fetches all notes, then answers as the stock one does."""

        @wraps(stock)
        async def read(*args: Any, **kwargs: Any) -> Any:
            # This adds the plugin to the scheduler if the stream was not read before.
            self.scheduler._task_stream_plugin()
            self._read = True
            await self._fetch()
            answer = stock(*args, **kwargs)
            return await answer if isawaitable(answer) else answer

        return read

    async def recorded(self, seconds: float) -> list[dict[str, Any]]:
        """Return the stream after so many seconds in which workers note all tasks."""
        plugin = self.scheduler._task_stream_plugin()
        before, self._read = self.wanted and self._read, True
        try:
            await self._fetch()
            await asyncio.sleep(seconds)
            await self._fetch()
        finally:
            self._read = before
        return list(plugin.buffer)

    def took(self, workers: Iterable[str], answers: Iterable[Any]) -> None:
        """Add the notes of workers to the stream.

        Parameters
        ----------
        workers : iterable of str
        answers : iterable
            The answer of each worker, in the same order; None for a worker that did not answer.
        """
        plugin = self.scheduler.plugins.get("task-stream")
        if plugin is None:
            return
        records = [
            self._record(worker, self._delay_of(worker, answer["delay"]), note)
            for worker, answer in zip(workers, answers, strict=True)
            if answer is not None
            for note in answer["notes"]
        ]
        # Dask's buffer is in the order in which tasks ended.
        records.sort(key=lambda record: record["startstops"][-1]["stop"])
        plugin.buffer.extend(records)
        # Clients remember the index up to which they have read the stream.
        plugin.index += len(records)

    def _delay_of(self, worker: str, measured: float) -> float:
        """Return how far the clock of a worker is behind; small changes are errors of measuring.

        With another delay in each answer, tasks of one thread would overlap.
        """
        known = self._delays.get(worker)
        if known is None or abs(measured - known) >= CLOCK_SET:
            known = self._delays[worker] = measured
        return known

    @staticmethod
    def _record(worker: str, delay: float, note: Note) -> dict[str, Any]:
        """Return a note in the form of Dask's stream.

        ``delay`` is how far the clock of the worker is behind the clock of the scheduler.
        """
        key, thread, good, nbytes, kind, name, steps = note
        startstops = []
        for action, start, stop, source in steps:
            startstop = {"action": action, "start": start + delay, "stop": stop + delay}
            if source:
                startstop["source"] = source
            startstops.append(startstop)
        record = {
            "key": key,
            "worker": worker,
            "thread": thread,
            "status": "OK" if good else "error",
            "startstops": startstops,
            "nbytes": nbytes,
        }
        if name:
            record.update(type=kind, typename=name, metadata={})
        return record
