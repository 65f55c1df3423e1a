"""A worker of the virtual cluster: the real executor, a store, and an owner for its tasks."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dask_ownership.core import messages as m
from dask_ownership.core import session as ex
from dask_ownership.core.checkpoints import restored
from dask_ownership.core.executor import Executor
from dask_ownership.core.identity import child_key
from dask_ownership.core.messages import Key, ValueName
from dask_ownership.core.row import STORED, Borrowed, Failure, Options, Row
from dask_ownership.core.session import Entry
from dask_ownership.testing import travel
from dask_ownership.testing.locks import Locks
from dask_ownership.testing.network import Pipe, packable
from dask_ownership.testing.owner import SECOND, SILENCE, VirtualOwner
from dask_ownership.testing.task import VALUE, Frame, Task
from dask_ownership.testing.travel import VirtualFuture

if TYPE_CHECKING:
    from dask_ownership.testing.virtual import VirtualCluster


PATIENCE = 90_000.0
"""Virtual microseconds for which a task that can go on waits for a slot."""

LONG = 10_000.0
"""Virtual microseconds after which a wait for a lock of the cluster gives the slot up."""

START = pickle.dumps((0, 0))
"""Where a task of many steps begins: the step, and what the steps have added."""


def names_of(home: str, rows: Iterable[Row]) -> list[tuple[str, Key]]:
    """Owners and keys of the objects that rows stand for, of those that have not ended."""
    return [
        (row.place[0], row.place[3]) if isinstance(row, Borrowed) else (home, row.key)
        for row in rows
        if not row.done
    ]


class VirtualWorker:
    """An executor, its store and the owner of what its tasks submit."""

    def __init__(
        self,
        cluster: VirtualCluster,
        address: str,
        slots: int,
        resources: dict[str, float] | None = None,
        life: int = 1,
    ) -> None:
        self.cluster = cluster
        self.address = address
        self.slots = slots
        self.core = Executor(slots, resources)
        incarnation = f"owner-of-{address}" + (f".{life}" if life > 1 else "")
        self.core.home = incarnation
        self.store: dict[Any, bytes] = {}
        self.owner = VirtualOwner(cluster, incarnation, home=address)
        self._dialled: set[str] = set()
        self.pipes: dict[str, Pipe] = {}
        self.watching = False
        self.ended_at = 0.0
        self.locks = Locks()
        self.has_locks: dict[Entry, tuple[str, str]] = {}
        self.beyond: set[Entry] = set()
        self.leaving = False
        self.alive = True

    @property
    def frozen(self) -> bool:
        """Whether this process is stopped."""
        return self.owner.frozen

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Do something in this process after a while, when it is not frozen then."""
        self.owner.later(delay, call)

    def step(self) -> None:
        """Start what can start, fetch, free and flush, as the runtime does."""
        core = self.core
        while (go_on := core.queue.resume_next()) is not None:
            go_on()
        # The runtime wakes no thread when the executor says that nothing can begin.
        while (
            core.queue.busy < core.queue.slots
            and core.queue.startable
            and (work := core.queue.next_work()) is not None
        ):
            self._start(work)
        fetches, core.fetches = core.fetches, []
        for entry in fetches:
            self.later(self.cluster.delay(), lambda e=entry: self._fetch(e, 0))  # type: ignore[misc]
        freed, core.freed = core.freed, []
        for name in freed:
            self.store.pop(name, None)
        sought, core.sought = core.sought, []
        for entry, keys in sought:
            for key in keys:
                self._made(entry, key)
        interrupted, core.interrupted = core.interrupted, []
        for entry in interrupted:
            parent = (entry.session.owner, entry.key, entry.attempt)
            self.owner.core.cancel_children(parent, "its parent was cancelled")
            self.cluster.dirty.add(self.owner)
        self._carry_posts()
        for name in core.undelivered:
            if name not in self._dialled:
                self._dialled.add(name)
                self.later(self.cluster.delay(), partial(self._dial, name))
        posts, core.posts = core.posts, []
        for message in posts:
            self.cluster.network.count_post(self.owner, message)
            self.owner.core.posting.receive([message])
            self.cluster.dirty.add(self.owner)
        for pipe in self.pipes.values():
            session = pipe.session
            if session.outbox:
                messages, session.outbox = session.outbox, []
                fresh, session.fresh = session.fresh, []
                cannot: list[Any] = []
                batch = pipe.there.pack(packable(messages, cannot))
                core.packed(session, batch[0], fresh)
                self.cluster.send(pipe, batch, to_worker=False)
                for message in cannot:
                    core.unsendable(session, message, travel.dumps("it cannot be packed")[0])
                    self.cluster.dirty.add(self)
            elif pipe.there.unsaid:
                self.cluster.send(pipe, pipe.there.pack([]), to_worker=False)
        assert core.queue.busy <= core.queue.slots + len(self.beyond), (
            self.address,
            core.queue.busy,
        )
        if (core.queue.crowd.full or not core.queue.exclusion.idle) and not self.watching:
            self.watching = True
            self.later(SECOND / 10, self._watch)

    def _carry_posts(self) -> None:
        """Have the executor pass on what the owner beside it has to say."""
        posting = self.owner.core.posting
        posts, posting.posts = posting.posts, []
        for message in posts:
            self.core.deliver(message)

    def _dial(self, owner: str) -> None:
        """The scheduler says whether one to whom something could not be delivered is gone."""
        self._dialled.discard(owner)
        if self.alive and not self.cluster.roster.expects(owner, self.cluster.seconds):
            self.core.undeliverable(owner)
            self.cluster.dirty.add(self)

    def _watch(self) -> None:
        """Look whether more may begin, as the runtime does."""
        self.watching = False
        self.core.queue.crowd.relieve((self.cluster.now - self.ended_at) / 1e6)
        self.core.queue.exclusion.look(self.cluster.seconds)
        self._look_at_awaited()
        self.cluster.dirty.add(self)

    def _look_at_awaited(self) -> None:
        """Have what parked tasks wait for start first."""
        rows = [row for entry in self.core.queue.crowd.waiting for row in entry.awaits]
        for row in rows:  # which grows meanwhile
            rows.extend(one for one in row.dependencies if one not in rows)
        self.core.queue.awaited(names_of(self.core.home, rows))
        if self.core.queue.crowd.full:
            self.owner.core.hurry(rows, self.cluster.now)
            self.cluster.dirty.add(self.owner)

    def _park(self, entry: Entry, rows: Iterable[Row] = ()) -> None:
        self.beyond.discard(entry)
        entry.awaits = tuple(rows)
        self.core.queue.parked(entry)
        if self.core.queue.crowd.full:
            self.core.queue.awaited(names_of(self.core.home, entry.awaits))

    def _want_slot(self, entry: Entry, go_on: Callable[[], None]) -> None:
        """Go on when there is a slot, and without one when that takes too long."""
        entry.awaits = ()
        self.core.queue.wants_slot(go_on, entry)
        self.later(PATIENCE, partial(self._lacks_slot, entry, go_on))
        self.cluster.dirty.add(self)

    def _lacks_slot(self, entry: Entry, go_on: Callable[[], None]) -> None:
        if self.alive and self.core.queue.stops_waiting(go_on, entry):
            self.beyond.add(entry)
            go_on()
            self.cluster.dirty.add(self)

    def _release_slot(self, entry: Entry) -> None:
        """A task ended."""
        self.core.queue.released_slot()
        self.beyond.discard(entry)
        self.ended_at = self.cluster.now
        local, of_cluster = self.has_locks.pop(entry, ("", ""))
        if of_cluster:
            self.later(self.cluster.delay(), lambda: self.cluster.locks.release(of_cluster, entry))
        if local:
            self.locks.release(local, entry)
        self.cluster.dirty.add(self)

    def accept(self, yes: bool) -> None:
        """Pause, or go on."""
        self.core.set_accepting(yes, self.slots)
        self.cluster.dirty.add(self)

    def forget_functions(self) -> None:
        """Lose what owners sent once, as when there are too many to keep."""
        for session in self.core.sessions.values():
            for number in list(session.functions):
                session.forget_function(number)

    def _start(self, entry: Entry) -> None:
        if entry.function not in entry.session.functions:
            self.core.give_back(entry, m.UNKNOWN_FUNCTION)
            self._release_slot(entry)
            return
        wanted = self.cluster.wants(entry)
        task, came = travel.loads(self.owner, entry.payload, wanted)
        inputs = []
        for dependency in entry.dependencies:
            if isinstance(dependency, bytes):
                value, futures = travel.loads(self.owner, dependency, wanted)
            elif dependency.state == ex.HELD:
                value, futures = dependency.value
            elif dependency.state == ex.COPIED:
                value, futures = travel.loads(self.owner, dependency.value, wanted)
            elif dependency.state == ex.KEPT:
                value, futures = travel.loads(self.owner, self.store[dependency.stored], wanted)
            else:
                self.cluster.assert_unwanted(entry.session.owner, entry, dependency)
                missing = ((dependency.key, dependency.attempt, ()),)
                self.core.give_back(entry, m.MISSING, missing)
                self._release_slot(entry)
                return
            inputs.append(travel.number(value))
            came = [*came, *futures]
        self.cluster.started[entry.session.owner, entry.key] += 1
        timeout = entry.options.get("timeout") if entry.options else None
        if timeout is not None:
            self.later(timeout * 1e6, partial(self._expire, entry))
        plain = not (task.children or task.lingers or came or task.uses == "raise")
        # The frame of the task: what it still has while it waits.
        frame = Frame(task, inputs, came)

        def run() -> None:
            if self.alive and task.kills:
                self.cluster.replace(self.address)
            elif self.alive:
                if plain:
                    self._finish(entry, task, inputs)
                else:
                    self._descend(entry, frame)

        def begin() -> None:
            if task.steps:
                step, total = pickle.loads(restored(entry).get("state", START))
                self.cluster.check_restored(entry, step)
                self._take_step(entry, frame, step, total)
            else:
                self.later(task.duration, run)

        self._take_locks(entry, task, begin)

    def _take_locks(self, entry: Entry, task: Task, begin: Callable[[], None]) -> None:
        """Begin when a task has its locks: that of the process first, with its slot."""
        self.has_locks[entry] = (task.local_lock, task.cluster_lock)

        def has_local() -> None:
            if task.cluster_lock and self.alive:
                self.later(self.cluster.delay(), partial(self._ask_cluster, entry, task, begin))
            else:
                begin()

        if task.local_lock:
            self.locks.acquire(task.local_lock, entry, has_local)
        else:
            has_local()

    def _ask_cluster(self, entry: Entry, task: Task, begin: Callable[[], None]) -> None:
        """Ask the scheduler for a lock, and give the slot up when that lasts."""
        parked = over = False

        def lasts() -> None:
            nonlocal parked
            if self.alive and not over:
                parked = True
                self._park(entry)
                self.cluster.dirty.add(self)

        def granted() -> None:
            self.later(self.cluster.delay(), arrives)

        def arrives() -> None:
            nonlocal over
            over = True
            if not self.alive:
                self.cluster.locks.release(task.cluster_lock, entry)
            elif parked:
                self._want_slot(entry, begin)
            else:
                begin()

        self.later(LONG, lasts)
        self.cluster.locks.acquire(task.cluster_lock, entry, granted)

    def _take_step(self, entry: Entry, frame: Frame, step: int, total: int) -> None:
        """Go on with a task of many steps, and keep where it is after each."""
        task = frame.task
        if step == task.steps and task.kills:
            self.cluster.replace(self.address)
            return
        if step == task.steps:
            frame.task = replace(task, constant=task.constant + total, steps=0)
            self._descend(entry, frame)
            return

        def taken() -> None:
            if self.alive:
                self.cluster.steps_taken += 1
                state = pickle.dumps((step + 1, total + step))
                self.core.savings.save(entry, "state", state, kept)
                self.cluster.dirty.add(self)

        def kept(failure: Failure | None) -> None:
            if failure is None:
                self.cluster.note_kept(entry, step + 1)
                self._take_step(entry, frame, step + 1, total + step)
            else:
                self.cluster.superseded += 1
                arrived = [future.row for future in frame.came]
                frame.came = []
                self._fail(entry, failure.detail, arrived)

        self.later(task.duration, taken)

    def _descend(self, entry: Entry, frame: Frame) -> None:
        """Submit the children and wait for them, and for futures, without a slot."""
        task = frame.task
        parent = (entry.session.owner, entry.key, entry.attempt)
        seen: dict[bytes, int] = {}
        if self.cluster.runs((entry.identity, "children")) > task.makes:
            task = frame.task = replace(task, children=())
        rows = []
        children = list(task.children)
        if task.uses == "child" and frame.came:
            children.append(Task(1, 5.0, carries=tuple(frame.came), uses="read"))
        for child in children:
            fingerprint = travel.fingerprint(child)
            occurrence = seen[fingerprint] = seen.get(fingerprint, -1) + 1
            key = child_key("child", entry.identity, fingerprint, occurrence)
            options = Options(
                depth=entry.depth + 1, parent=parent, heir=entry.heir, within=entry.identity
            )
            rows.append(self.owner.submit(key, child, (), options))
            if entry.sought is not None:
                self._made(entry, key)
        made = [VirtualFuture(self.owner, row) for row in rows]
        delegates = task.uses == "delegate" and bool(frame.came or made)
        frame.waited = [] if task.escape or delegates else rows
        if task.uses == "read":
            frame.waited = [*frame.waited, *(future.row for future in frame.came)]
        frame.returned = [
            *(made if task.escape else ()),
            *(frame.came if task.uses in ("return", "raise") else ()),
        ]
        if delegates:
            frame.returned = [*frame.came, *made][:1]
        frame.made = made
        left = sum(1 for row in frame.waited if not row.done)
        if not left and not task.lingers:
            self._ascend(entry, frame)
            return
        self._park(entry, frame.waited)
        if task.lingers:
            left += 1
            self.later(task.lingers, lambda: one_done())

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._go_on(entry, frame)

        for row in frame.waited:
            if not row.done:
                self.owner.when_done(row, one_done)
        self.cluster.dirty.add(self)

    def _made(self, entry: Entry, key: Key) -> None:
        """A child may be one that is sought: name it."""
        row = self.owner.core.table.find(key)
        if row is not None:
            future = VirtualFuture(self.owner, row)
            self.owner.core.retention.escapes(row)
            self.core.made(entry, key, self.owner.core.table.origin_of(row), [future])
            self.cluster.dirty.update((self, self.owner))

    def _go_on(self, entry: Entry, frame: Frame) -> None:
        if self.alive:
            self._want_slot(entry, partial(self._ascend, entry, frame))

    def _settled(self, row: Row) -> bool:
        """Whether a value can be read, or never will be."""
        if row.state == STORED:
            return bool(self.cluster.copies(self.owner, row))
        return row.done

    def _ascend(self, entry: Entry, frame: Frame) -> None:
        """What was waited for ended: end the task."""
        if not all(map(self._settled, frame.waited)):
            # Lost since it ended: it is made again, and waited for without a slot.
            frame.looks += 1
            if frame.looks % 50 == 0:
                for row in frame.waited:
                    if not self._settled(row):
                        self.owner.look_again(row)
            self._park(entry, frame.waited)
            self.later(1_000.0, partial(self._go_on, entry, frame))
            return
        values: list[int] = []
        failed = False
        for row in frame.waited:
            value = self.cluster.outcome(self.owner, row)
            if isinstance(value, int):
                values.append(value)
            else:
                failed = True
                if (self.owner.name, row.key) in self.cluster.lost or value == "lost":
                    self.cluster.lost.add((entry.session.owner, entry.key))
        self.cluster.dirty.add(self.owner)
        came, returned = frame.came, frame.returned
        frame.came, frame.returned, frame.made = [], [], []
        arrived = [future.row for future in came]
        task = frame.task
        if failed:
            self._fail(entry, "a child failed", arrived)
        elif task.uses == "delegate" and returned:
            self._delegate(entry, task, returned[0], arrived)
        elif task.uses == "raise":
            self._fail(entry, (0, tuple(returned)), arrived)
        else:
            total = task.constant + sum(frame.inputs) + sum(values)
            ends = Task(
                constant=total, large=task.large, fails=task.fails, unpackable=task.unpackable
            )
            self._finish(entry, ends, [], returned, arrived)

    def _finish(
        self,
        entry: Entry,
        task: Task,
        inputs: list[int],
        returned: Sequence[VirtualFuture] = (),
        arrived: Sequence[Row] = (),
    ) -> None:
        """End a task with its value, once the futures that came to it are counted."""
        name = (entry.session.owner, entry.key)
        if self.cluster.runs(name) <= task.fails:
            self._fail(entry, "it is meant to fail", arrived)
            return
        number = task.constant + sum(inputs)
        value = (number, tuple(returned)) if returned else number
        pickled, found = travel.dumps(value)
        inside = (tuple([self.owner.core.table.origin_of(f.row) for f in found]),)
        entry.contains = found
        state, live = ex.HELD, (value, travel.inside(value))
        if task.large:
            self.put(entry, pickled)
            message: m.Message = (m.STORED, entry.key, entry.attempt, 100_000, None, task.duration)
            state, live = ex.KEPT, None  # type: ignore[assignment]
        else:
            if task.unpackable == VALUE:
                pickled += VALUE.encode()
            if number % 3 == 0:
                pickled += bytes(1000)  # long enough to be sent once for several tasks
            message = (m.DONE, entry.key, entry.attempt, pickled, task.duration)
            if found:
                message += inside

        def succeed() -> None:
            if self.alive:
                self.core.succeeded(entry, message, state, live)
                self.cluster.dirty.add(self)

        self._release_slot(entry)
        self._when_all_is_said(entry, arrived, succeed)

    def _delegate(
        self, entry: Entry, task: Task, future: VirtualFuture, arrived: Sequence[Row]
    ) -> None:
        """End a task: its value is to be that of a future."""
        if self.cluster.runs((entry.session.owner, entry.key)) <= task.fails:
            self._fail(entry, "it is meant to fail", arrived)
            return
        self.owner.core.retention.escapes(future.row)
        origins = (self.owner.core.table.origin_of(future.row),)
        entry.contains = [future]
        message = (m.DELEGATED, entry.key, entry.attempt, None, task.duration, origins)
        self._release_slot(entry)

        def end() -> None:
            if self.alive:
                self.core.failed(entry, message)
                self.cluster.dirty.add(self)

        self._when_all_is_said(entry, arrived, end)

    def _fail(self, entry: Entry, why: Any, arrived: Sequence[Row] = ()) -> None:
        """End a task with an error, once the futures that came to it are counted."""
        pickled, found = travel.dumps(why)
        message: m.Message = (m.FAILED, entry.key, entry.attempt, pickled, 1.0)
        if found:
            entry.contains = found
            message += (tuple([self.owner.core.table.origin_of(f.row) for f in found]),)

        def fail() -> None:
            if self.alive:
                self.core.failed(entry, message)
                self.cluster.dirty.add(self)

        self._release_slot(entry)
        self._when_all_is_said(entry, arrived, fail)

    def _when_all_is_said(
        self, entry: Entry, arrived: Sequence[Row], call: Callable[[], None]
    ) -> None:
        """Call when what came is counted, and the task's owner keeps it for its children."""

        def say() -> None:
            if self.alive:
                self.owner.core.posting.flush()
                self._carry_posts()
                self.owner.core.retention.when_kept(entry.session.owner, entry.task, call)
                self.cluster.dirty.update((self, self.owner))

        self.owner.core.borrowing.when_counted(arrived, say)

    def _expire(self, entry: Entry) -> None:
        """The time of a task is up, if it still runs."""
        if self.alive:
            pickled, _ = travel.dumps("its time is up")
            self.core.expired(entry, (m.FAILED, entry.key, entry.attempt, pickled, 1.0))
            self.cluster.dirty.add(self)

    def put(self, entry: Entry, value: bytes) -> None:
        """Keep a value under a name that no other value ever has."""
        entry.stored = (entry.session.owner, entry.key, self.cluster.number())
        self.store[entry.stored] = value

    def stored(self, name: ValueName) -> bytes | None:
        """The value of an owner that is kept here, or None."""
        entry = self.core.find_value(*name)
        return self.store[entry.stored] if entry is not None else None

    def _fetch(self, entry: Entry, index: int, absent: tuple[str, ...] = ()) -> None:
        if entry.state != ex.FETCHING or not self.alive:
            return
        if index >= len(entry.addresses):
            self.core.fetch_failed(entry, absent)
            self.cluster.dirty.add(self)
            return
        address = entry.addresses[index]
        peer = self.cluster.workers.get(address)
        value = peer.stored(entry.value_name) if peer is not None else None

        def arrive() -> None:
            if not self.alive:
                return
            if value is None:
                # A dead one does not answer, and so says nothing of the value.
                said = absent if peer is None else (*absent, address)
                self._fetch(entry, index + 1, said)
            else:
                _, entry.contains = travel.loads(self.owner, value)
                rows = [future.row for future in entry.contains]
                self.owner.core.borrowing.when_counted(rows, lambda: fetched(value))
            self.cluster.dirty.add(self)

        def fetched(value: bytes) -> None:
            if self.alive:
                if entry.state == ex.FETCHING:
                    self.put(entry, value)
                self.core.fetched(entry)
                self.cluster.dirty.add(self)

        parted = self.cluster.network.parted
        if peer is not None and (peer.frozen or parted(self.owner.name, peer.owner.name)):
            # It does not answer, which says nothing of the value: another is asked then.
            self.later(SILENCE, lambda: self._fetch(entry, index + 1, absent))
            return
        self.later(self.cluster.delay(), arrive)
