"""What ran where and when: owned tasks in Dask's task stream.

``get_task_stream``, ``performance_report`` and the dashboard read the buffer of the
scheduler's ``TaskStreamPlugin``, which is there from when somebody asked for it. From then on
workers note each owned task that ends, and the scheduler takes the notes with all else that it
asks workers (`dask_ownership.monitoring.feed`): twice a second, less often from many workers,
and before it answers a client. Until then a task costs one look at an attribute.

Who asked for the stream (`READERS`) gets all that ended, as far as a worker keeps it: `KEPT` notes;
when more tasks end between two rounds the oldest are dropped. While only pages show it a sample
is noted, evenly over the time, so that rectangles that nobody can tell apart hold up neither the
tasks nor the scheduler. The time of short tasks (`SHORT`) that are not in it counts for the name
of the next one that is: all names together have their exact time, each its own as far as a
sampling profiler would tell.
"""

from __future__ import annotations

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
"""Notes that a worker keeps."""

REMEMBERED = 1000
"""Transfers that are remembered until a task that waited for them ends; the same for tasks that
read, wrote or unpickled something that took long, until they end."""

SHORT = 0.005
"""Seconds: what takes less may be one of too many to look at each."""

AT_ONCE = 1.0
"""Seconds for which a worker that had little to do may note without a pause."""

TALLIED = 1000
"""Names of tasks whose times are told apart; what is beyond them is counted as `OTHERS`."""

SHOWN = 600
"""Notes of all workers together in a second, when only pages show them."""

BEFORE = ("disk-read", "deserialize")
"""What a task does before its function is called."""

READERS = ("get_task_stream", "get_task_stream_index", "performance_report")
"""Operations of the scheduler that read the buffer."""

Step: TypeAlias = tuple[str, float, float, str]
"""What was done, its start and stop (of the worker's clock), and where a value came from."""

Note: TypeAlias = tuple[Any, int, bool, int, bytes, str, tuple[Step, ...]]
"""Key, thread, success, bytes, the type of the value (pickled, and its name; empty of a failure
and of a type that cannot be unpickled), and the steps in their order."""


Noting = TypeVar("Noting", bound=Callable[..., None])


def harmless(method: Noting) -> Noting:
    """Never raises: what is noted of a task must not change what becomes of it."""

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
    """What ran at one worker.

    Parameters
    ----------
    watch : Watch
        Of the executor whose tasks are noted.
    group_of : callable
        The name under which a key is counted.

    Attributes
    ----------
    noting : bool
    failed : bool
        Whether something could not be noted, which is logged once.
    tallies : dict of str to dict
        By name: how many seconds tasks took for each action while somebody looked.
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
        self.watch.by(None)

    def note(self, entry: Entry, outcome: Outcome, started: float) -> None:
        """A task ended in this thread, or on the loop. Before that is said to its owner."""
        stopped = time()
        # Where many end this is all that most of them cost.
        if (
            stopped < self._next
            and stopped - started < SHORT
            and not self._steps
            and not (self._transfers and entry.dependencies)
        ):
            self._skipped += stopped - started
        else:
            self._look_at(entry, outcome, started, stopped)

    @harmless
    def _look_at(self, entry: Entry, outcome: Outcome, started: float, stopped: float) -> None:
        steps = self._steps_of(entry) if self._steps or self._transfers else []
        if outcome.message is None:
            return  # it was given back
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
                # What was not used up before may be used now.
                self._next = max(self._next, stopped - AT_ONCE) + self._gap
        if not noted:
            return
        steps.append(("compute", began, ended, ""))
        note = (entry.key, get_ident(), *_described(outcome), tuple(sorted(steps, key=_start)))
        with self._lock:
            self._notes.append(note)

    def _steps_of(self, entry: Entry) -> list[Step]:
        """What a task that ended did besides computing, and what it waited for."""
        steps = self._steps.pop(entry, [])
        if self._transfers:
            found = (self._transfers.pop(d, None) for d in entry.dependencies if type(d) is Entry)
            steps += [transfer for transfer in found if transfer is not None]
        return steps

    @harmless
    def step(self, entry: Entry, action: str, began: float) -> None:
        """A task did something else than computing, until now. In its thread."""
        now = time()
        before = self._steps.get(entry)
        if before:
            began = max(began, before[-1][2])  # unpickling arguments includes reading values
        if now - began > SEEN:
            if before is None:
                if len(self._steps) >= REMEMBERED:
                    self._steps.clear()  # of tasks that ended when nobody looked any more
                before = self._steps.setdefault(entry, [])
            before.append((action, began, now, ""))

    @harmless
    def fetched(self, entry: Entry, seconds: float, source: str) -> None:
        """A value arrived, for tasks that wait for it. Loop thread."""
        if len(self._transfers) >= REMEMBERED:
            self._transfers.clear()  # of tasks that were cancelled
        now = time()
        self._transfers[entry] = ("transfer", now - seconds, now, source)

    def tallied(self) -> dict[str, dict[str, float]]:
        """The tallies, as they are now."""
        with self._lock:
            return {name: dict(tally) for name, tally in self.tallies.items()}

    def take(self, watch: bool, note: bool, gap: float) -> list[Note]:
        """What was noted; whether to count and to note from now on, and how far apart at least."""
        self.noting = note
        looked_at = watch or note
        self.watch.by(self if looked_at else None)
        with self._lock:
            self._gap = gap
            self._next = min(self._next, time() + gap)
            notes = list(self._notes)
            self._notes.clear()
        if not looked_at:
            self._transfers.clear()
            self._steps.clear()
        return notes


def _start(step: Step) -> float:
    return step[1]


def _described(outcome: Outcome) -> tuple[bool, int, bytes, str]:
    """Whether a task succeeded, how large its value is, and that one's type as in `Note`."""
    message = outcome.message
    if message[0] == m.STORED:
        try:
            kind = pickle.loads(message[4])
        except Exception:
            # It can be pickled and not unpickled: that of a lock, for example.
            return True, message[3] or 0, b"", ""
        return True, message[3] or 0, message[4], kind if type(kind) is str else typename(kind)
    if message[0] == m.DONE:
        name = typename(type(outcome.value))
        try:
            return True, len(message[3]), dumps(type(outcome.value)), name
        except Exception:
            return True, len(message[3]), dumps(name), name
    return message[0] != m.FAILED, 0, b"", ""


class TaskStream:
    """What ran at the workers, in the scheduler's buffer.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    fetch : callable
        A coroutine function that has workers asked for notes now.
    """

    def __init__(self, scheduler: Any, fetch: Callable[[], Awaitable[None]]) -> None:
        self.scheduler = scheduler
        self._fetch = fetch
        self._read = False
        for name in READERS:
            if name in scheduler.handlers:
                scheduler.handlers[name] = self._reader(scheduler.handlers[name])

    @property
    def wanted(self) -> bool:
        """Whether workers are to note what runs."""
        wanted = "task-stream" in self.scheduler.plugins
        self._read = self._read and wanted
        return wanted

    def gap(self, workers: int) -> float:
        """Seconds between two tasks that each of so many workers notes, on average."""
        return 0.0 if self._read else workers / SHOWN

    def _reader(self, stock: Any) -> Any:
        @wraps(stock)
        async def read(*args: Any, **kwargs: Any) -> Any:
            self.scheduler._task_stream_plugin()
            self._read = True
            await self._fetch()
            answer = stock(*args, **kwargs)
            return await answer if isawaitable(answer) else answer

        return read

    def took(self, workers: Iterable[str], answers: Iterable[Any]) -> None:
        """Workers told what they noted; None of one that did not answer."""
        plugin = self.scheduler.plugins.get("task-stream")
        if plugin is None:
            return
        records = [
            self._record(worker, answer["delay"], note)
            for worker, answer in zip(workers, answers, strict=True)
            if answer is not None
            for note in answer["notes"]
        ]
        # In the order in which the tasks ended.
        records.sort(key=lambda record: record["startstops"][-1]["stop"])
        plugin.buffer.extend(records)
        plugin.index += len(records)

    @staticmethod
    def _record(worker: str, delay: float, note: Note) -> dict[str, Any]:
        """One task, as the stream has it; ``delay`` is how far the worker's clock is behind."""
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
