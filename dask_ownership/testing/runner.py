"""Runs the tasks of one worker of the virtual cluster, in virtual time."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.checkpoints import restored
from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.names import ADDRESS, child_key
from dask_ownership.core.protocol.states import STORED
from dask_ownership.testing import travel
from dask_ownership.testing.owner import VirtualOwner
from dask_ownership.testing.parking import Parking
from dask_ownership.testing.store import Store
from dask_ownership.testing.task import VALUE, Frame, Task, fingerprint
from dask_ownership.testing.travel import VirtualFuture
from dask_ownership.testing.world import World

START = pickle.dumps((0, 0))
"""Pickled state in which a task of many steps begins: the step, and the sum of earlier steps."""


class Runner:
    """Does what the `Task` of each entry says, in virtual time.

    A task takes its time, submits its children, waits for them and ends. Functions that are called
    later check whether the process has ended meanwhile.

    Parameters
    ----------
    world : World
    owner : VirtualOwner
        The owner in the worker's process.
    core : ExecutorCore
    parking : Parking
    store : Store
    wants_step : callable
        Has the worker take a step.
    """

    def __init__(
        self,
        world: World,
        owner: VirtualOwner,
        core: ExecutorCore,
        parking: Parking,
        store: Store,
        wants_step: Callable[[], None],
    ) -> None:
        self.world = world
        self.owner = owner
        self.core = core
        self.parking = parking
        self.store = store
        self.wants_step = wants_step

    def start(self, entry: Entry) -> None:
        """Begin a task with a slot, or give the task back when a part of it is not here."""
        if entry.function not in entry.session.functions:
            self.core.lifecycle.could_not_start(entry, m.UNKNOWN_FUNCTION)
            self.parking.release_slot(entry)
            return
        wanted = self.world.observer.wants(entry)
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
                value, futures = travel.loads(
                    self.owner, self.store.values[dependency.stored], wanted
                )
            else:
                self.world.observer.assert_unwanted(entry.session.owner, entry, dependency)
                missing = ((dependency.key, dependency.attempt, ()),)
                self.core.lifecycle.could_not_start(entry, m.MISSING, missing)
                self.parking.release_slot(entry)
                return
            inputs.append(travel.number(value))
            came = [*came, *futures]
        self.world.record.started[entry.session.owner, entry.key] += 1
        timeout = entry.options.get("timeout") if entry.options else None
        if timeout is not None:
            self.owner.later(timeout * 1e6, partial(self._expire, entry))
        # A plain task ends without children, waiting or futures.
        plain = not (task.children or task.lingers or came or task.uses == "raise")
        # The task keeps its inputs and futures in a frame while it waits.
        frame = Frame(task, inputs, came)

        def run() -> None:
            if self.owner.alive and task.kills:
                self.world.replace(self.owner.process[ADDRESS])
            elif self.owner.alive:
                if plain:
                    self._finish(entry, task, inputs)
                else:
                    self._descend(entry, frame)

        def begin() -> None:
            if task.steps:
                step, total = pickle.loads(restored(entry).get("state", START))
                self.world.observer.check_restored(entry, step)
                self._take_step(entry, frame, step, total)
            else:
                self.owner.later(task.duration, run)

        self.parking.take_locks(entry, task, begin)

    def _take_step(self, entry: Entry, frame: Frame, step: int, total: int) -> None:
        """Take one step of a task of many steps, and save a checkpoint after it."""
        task = frame.task
        if step == task.steps and task.kills:
            self.world.replace(self.owner.process[ADDRESS])
            return
        if step == task.steps:
            # After the last step the task is one without steps, which adds their sum.
            frame.task = replace(task, constant=task.constant + total, steps=0)
            self._descend(entry, frame)
            return

        def taken() -> None:
            if self.owner.alive:
                self.world.record.steps_taken += 1
                state = pickle.dumps((step + 1, total + step))
                self.core.savings.save(entry, "state", state, kept)
                self.wants_step()

        def kept(failure: Failure | None) -> None:
            if failure is None:
                self.world.observer.note_kept(entry, step + 1)
                self._take_step(entry, frame, step + 1, total + step)
            else:
                self.world.record.superseded += 1
                arrived = [future.row for future in frame.came]
                frame.came = []
                self._fail(entry, failure.detail, arrived)

        self.owner.later(task.duration, taken)

    def _descend(self, entry: Entry, frame: Frame) -> None:
        """Submit the children, and wait without a slot for them and for futures that are read."""
        task = frame.task
        parent = (entry.session.owner, entry.key, entry.attempt)
        # As in `submit_child`: a key names the call, and which occurrence of the call it is.
        seen: dict[bytes, int] = {}
        if self.world.record.submitted(entry.identity) > task.makes:
            task = frame.task = replace(task, children=())
        rows = []
        children = list(task.children)
        if task.uses == "child" and frame.came:
            children.append(Task(1, 5.0, carries=tuple(frame.came), uses="read"))
        for child in children:
            what = fingerprint(child)
            occurrence = seen[what] = seen.get(what, -1) + 1
            key = child_key("child", entry.identity, what, occurrence)
            options = Options(
                depth=entry.depth + 1, parent=parent, heir=entry.heir, within=entry.identity
            )
            rows.append(self.owner.submit(key, child, (), options))
            if entry.watched is not None:
                self.child_submitted(entry, key)
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
        # Without anything to wait for, the task keeps its slot until its end.
        if not left and not task.lingers:
            self._ascend(entry, frame)
            return
        self.parking.park(entry, frame.waited)
        if task.lingers:
            left += 1
            self.owner.later(task.lingers, lambda: one_done())

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._go_on(entry, frame)

        for row in frame.waited:
            if not row.done:
                self.owner.when_done(row, one_done)
        self.wants_step()

    def child_submitted(self, entry: Entry, key: Key) -> None:
        """Name a child of a task to the task's owner, if the owner looks for the child."""
        row = self.owner.core.table.find(key)
        if row is not None:
            future = VirtualFuture(self.owner, row)
            self.owner.core.retention.export(row)
            self.core.child_submitted(entry, key, self.owner.core.table.origin_of(row), [future])
            self.wants_step()
            self.owner.wants_step()

    def _go_on(self, entry: Entry, frame: Frame) -> None:
        """Have a task ask for a slot again, and end then."""
        if self.owner.alive:
            self.parking.want_slot(entry, partial(self._ascend, entry, frame))

    def _settled(self, row: Row) -> bool:
        """Return whether a row has a value that can be read, or has ended without a value."""
        if row.state == STORED:
            return bool(self.world.observer.copies(self.owner, row))
        return row.done

    def _ascend(self, entry: Entry, frame: Frame) -> None:
        """End a task when all rows that it waited for have ended, or wait again for lost ones."""
        if not all(map(self._settled, frame.waited)):
            # A value was lost since its row ended, and is made again: wait, without a slot. The
            # owner may not know of the loss, and hears of it from a reader.
            frame.looks += 1
            if frame.looks % 50 == 0:
                for row in frame.waited:
                    if not self._settled(row):
                        self.owner.look_again(row)
            self.parking.park(entry, frame.waited)
            self.owner.later(1_000.0, partial(self._go_on, entry, frame))
            return
        values: list[int] = []
        failed = False
        for row in frame.waited:
            value = self.world.observer.outcome(self.owner, row)
            if isinstance(value, int):
                values.append(value)
            else:
                failed = True
                if (self.owner.name, row.key) in self.world.record.lost or value == "lost":
                    self.world.record.lost.add((entry.session.owner, entry.key))
        self.owner.wants_step()
        # The frame gives its futures up: events that have not happened yet may keep the frame.
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
        """End a task with its value, once its owner may hear of it (`_when_all_is_said`)."""
        name = (entry.session.owner, entry.key)
        if self.world.record.ran(name) <= task.fails:
            self._fail(entry, "it is meant to fail", arrived)
            return
        number = task.constant + sum(inputs)
        value = (number, tuple(returned)) if returned else number
        pickled, found = travel.dumps(value)
        inside = (tuple([self.owner.core.table.origin_of(f.row) for f in found]),)
        entry.contains = found
        state, live = ex.HELD, (value, travel.inside(value))
        if task.large:
            self.store.put(entry, pickled)
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
            if self.owner.alive:
                self.core.lifecycle.succeeded(entry, message, state, live)
                self.wants_step()

        # The slot is free at once, as in `Endings.ended`; the answer may have to wait.
        self.parking.release_slot(entry)
        self._when_all_is_said(entry, arrived, succeed)

    def _delegate(
        self, entry: Entry, task: Task, future: VirtualFuture, arrived: Sequence[Row]
    ) -> None:
        """End a task whose value is to be the value of a future."""
        if self.world.record.ran((entry.session.owner, entry.key)) <= task.fails:
            self._fail(entry, "it is meant to fail", arrived)
            return
        self.owner.core.retention.export(future.row)
        origins = (self.owner.core.table.origin_of(future.row),)
        entry.contains = [future]
        message = (m.DELEGATED, entry.key, entry.attempt, None, task.duration, origins)
        self.parking.release_slot(entry)

        def end() -> None:
            if self.owner.alive:
                # A delegated task keeps no value here: for the executor it ends as a failed one.
                self.core.lifecycle.failed(entry, message)
                self.wants_step()

        self._when_all_is_said(entry, arrived, end)

    def _fail(self, entry: Entry, why: Any, arrived: Sequence[Row] = ()) -> None:
        """End a task with an error, once its owner may hear of it (`_when_all_is_said`)."""
        pickled, found = travel.dumps(why)
        message: m.Message = (m.FAILED, entry.key, entry.attempt, pickled, 1.0)
        if found:
            entry.contains = found
            message += (tuple([self.owner.core.table.origin_of(f.row) for f in found]),)

        def fail() -> None:
            if self.owner.alive:
                self.core.lifecycle.failed(entry, message)
                self.wants_step()

        self.parking.release_slot(entry)
        self._when_all_is_said(entry, arrived, fail)

    def _when_all_is_said(
        self, entry: Entry, arrived: Sequence[Row], call: Callable[[], None]
    ) -> None:
        """Call once arrived futures are counted and the owner keeps the task, as in `Endings`."""

        def say() -> None:
            if self.owner.alive:
                # RETAIN_PARENT leaves before the answer, see `Endings`.
                self.owner.core.posting.flush()
                self.owner.carry_posts(self.core)
                self.owner.core.retention.when_retained(entry.session.owner, entry.task, call)
                self.wants_step()
                self.owner.wants_step()

        self.owner.core.borrowing.when_acknowledged(arrived, say)

    def _expire(self, entry: Entry) -> None:
        """Fail a task whose ``timeout`` is over, if the task still runs."""
        if self.owner.alive:
            pickled, _ = travel.dumps("its time is up")
            self.core.lifecycle.expired(entry, (m.FAILED, entry.key, entry.attempt, pickled, 1.0))
            self.wants_step()
