"""Reconstruction: what a dead process owned is made again by the tasks that submitted it.

Asking
    A borrower whose owner is gone borrows from the nearest heir that lives
    (`references.retention`), with the *path* from a task of the heir to the object (``BORROW``).
    The heir makes a *question* of it: a row that waits.
Repeating
    If the task runs at the moment, the worker is asked to look out for that child
    (``WATCH_CHILDREN``); else it is run once more in a row of its own, which changes nothing of
    the first. The worker names the child when it is submitted (``CHILD_SUBMITTED``), and the
    borrower is told to borrow it there (``MOVED``), or to ask there for the rest of the path. When
    the task has ended without making it, the question fails: ``owner-lost``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from dask_ownership.core.owner.recovery.lineage import Lineages
from dask_ownership.core.owner.references.borrowing import Borrowing, counted
from dask_ownership.core.owner.references.lending import Lending
from dask_ownership.core.owner.references.peers import Peer, Peers
from dask_ownership.core.owner.references.retention import Retention
from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.lifecycle import Lifecycle, why
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import QUESTION, SOUGHT, Borrowed, Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Origin, OwnerRef, Process
from dask_ownership.core.protocol.names import Path, path_from, same_task
from dask_ownership.core.protocol.states import (
    DORMANT,
    FORGOTTEN,
    INLINE,
    LOST,
    PUSHED,
    STORED,
    WAITING,
)

NOTHING: tuple[Row | None, tuple[Row, ...], dict[Key, Row]] = (None, (), {})


class Search:
    """The children that are sought of one task while it runs.

    Attributes
    ----------
    questions : dict
        Key of each child to the rows that wait for it.
    made : dict
        Those that it has made, which stay until it ends.
    late : set
        Those that were asked for when it was at a worker already, which may hear of it too late.
    repeats : Row or None
        The task that it runs again; None when it runs for its own value.
    """

    __slots__ = ("late", "made", "questions", "repeats")

    def __init__(self, repeats: Row | None) -> None:
        self.questions: dict[Key, list[Row]] = {}
        self.made: dict[Key, Row] = {}
        self.late: set[Key] = set()
        self.repeats = repeats


class Question:
    """One object that is looked for.

    Attributes
    ----------
    path : Path
        From a task here to the object.
    place : OwnerRef or None
        Where it, or the next task on the path, was found.
    rest : Path or None
        The path from there, when that is a task.
    task : Row or None
        The one that runs, or will, of which the child is sought.
    """

    __slots__ = ("owner_ref", "path", "rest", "task")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner_ref: OwnerRef | None = None
        self.rest: Path | None = None
        self.task: Row | None = None


class Reconstruction(RowListener):
    """What one process looks for again, on behalf of borrowers whose owners are gone.

    Parameters
    ----------
    lifecycle : Lifecycle
    peers : Peers
    lineages : Lineages
    retention : Retention
    borrowing : Borrowing
    lending : Lending
    alias : Function
        The function of rows whose value is that of another: running one makes nothing.
    submit : callable
        Has new rows run.
    is_gone : callable
        Whether an incarnation is gone.
    call_off_copies : callable
        Ends what was to copy a row, whose value is not made here again.

    Attributes
    ----------
    searches : dict
        Tasks that run, or will, to what is sought of them.
    questions : dict
        Rows that stand for what is looked for.
    repeats : dict
        Tasks to those that run them again.
    doubted : set of str
        Incarnations of processes that others say are gone.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        peers: Peers,
        *,
        lineages: Lineages,
        retention: Retention,
        borrowing: Borrowing,
        lending: Lending,
        alias: Function,
        submit: Callable[[Iterable[Row]], None],
        is_gone: Callable[[str], bool],
        call_off_copies: Callable[[Row], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._table = lifecycle.table
        self._peers = peers
        self._lineages = lineages
        self._retention = retention
        self._borrowing = borrowing
        self._lending = lending
        self._alias = alias
        self._submit = submit
        self._is_gone = is_gone
        self._call_off_copies = call_off_copies
        self.searches: dict[Row, Search] = {}
        self.questions: dict[Row, Question] = {}
        self.repeats: dict[Row, Row] = {}
        self.doubted: set[str] = set()
        self._children: tuple[Row | None, tuple[Row, ...], dict[Key, Row]] = NOTHING
        peers.when_gone.append(self._on_gone)

    def finished(self, row: Row) -> None:
        """A task of which children are sought may have ended."""
        self.submits_no_more(row)

    def ended(self, row: Row) -> None:
        """A question may have ended, or a task of which children are sought."""
        if row in self.questions:
            self._dropped(row)
        self.submits_no_more(row)

    def forgotten(self, row: Row) -> None:
        """Nobody asks a question any more, perhaps."""
        self.ended(row)

    def _on_gone(self, peer: Peer) -> None:
        """A process died: what was found there is looked for again."""
        incarnation = peer.process[0]
        self.doubted.discard(incarnation)
        for row, question in list(self.questions.items()):
            if question.owner_ref is not None and question.owner_ref[0] == incarnation:
                self._look_again(row, question)

    # ---- asking ----

    def ask(self, key: Key, path: Path) -> Row:
        """Somebody asks for what a dead process owned: the row that waits for it, with one use."""
        row = Row(key, None, None, (), 0)
        self._table.adopt_for_use(row)
        question = self._ask(row, path)
        self._look(row, question)
        return row

    def _ask(self, row: Row, path: Path) -> Question:
        row.roles |= QUESTION
        question = self.questions[row] = Question(path)
        return question

    def recover(self, row: Row) -> bool:
        """The last copy of what was taken over is gone: look for it as for what a dead owner
        had. False when no task here led to it."""
        origin: Origin | None = row.options.adopted
        level = origin
        while level is not None and level[0] != self._peers.process[0]:
            level = level[4]
        if origin is None or level is None or row in self.questions:
            return False
        self._lifecycle.withdraw(row)
        self._call_off_copies(row)
        question = self._ask(row, path_from(origin, level))
        self._look(row, question)
        return True

    def asked_again(self, peer: Peer, row: Row, number: int, gone: str) -> None:
        """A question was asked that may be answered: say so, unless what was said is gone."""
        if gone and not self._is_gone(gone):
            self.doubted.add(gone)  # this process has not heard of it yet
        question = self.questions[row]
        if question.owner_ref is None:
            return
        if question.owner_ref[0] == gone:
            self._look_again(row, question)
        else:
            self._answer_one(peer, row, number, question)

    def _found(self, row: Row, question: Question, child: Row) -> None:
        """The child of the task is there: tell who asked, or go on along the path."""
        if row.state != WAITING:
            return
        self._table.use_all((child,))
        row.contains += (child,)
        below = question.path[2:]
        if isinstance(child, Borrowed):
            question.owner_ref = child.owner_ref[:4]
            question.rest = child.path
            if below:
                question.rest = (*(child.path or (child.owner_ref[3],)), *below)
                question.owner_ref = (*child.owner_ref[:3], row.key)
        elif below:
            question.path = (child.key, *below)
            self._look(row, question)
            return
        else:
            question.owner_ref = (*self._peers.process, child.key)
        for peer, number in self._lending.borrowers_of(row):
            self._answer_one(peer, row, number, question)

    def _answer_one(self, peer: Peer, row: Row, number: int, question: Question) -> None:
        assert question.owner_ref is not None
        self._lending.say_moved(peer, row.key, number, question.owner_ref, None, question.rest)

    def _fail(self, row: Row, reason: str) -> None:
        key = self.questions[row].path[-1]
        self._lifecycle.end_with_dependents(row, LOST, Failure("owner-lost", key, reason))

    def _dropped(self, row: Row) -> None:
        """A question ended, or nobody asks any more; a task that runs for it alone ends too."""
        question = self.questions.pop(row)
        row.roles &= ~QUESTION
        if not self.questions:
            self._children = NOTHING
        task = question.task
        search = self.searches.get(task) if task is not None else None
        asked = search.questions.get(question.path[1]) if search is not None else None
        if task is None or search is None or asked is None or row not in asked:
            return
        asked.remove(row)
        if not asked:
            del search.questions[question.path[1]]
        if not search.questions:
            self._end_search(task)
            self._leave(task, search)

    # ---- looking ----

    def _look(self, row: Row, question: Question) -> None:
        """Find the child, have it looked out for, or run the task again."""
        path = question.path
        task = self._table.rows.get(path[0])
        if task is None:
            self._fail(row, f"the task {path[0]!r} that led to it is not known there any more")
            return
        new = False
        # Also one that was to take its value over from a worker that died as it was told to.
        delegated = WAITING <= task.state < INLINE and task.function is self._alias
        if task.done or task.state == DORMANT or delegated:
            there = self._inside(task, path[1], delegated)
            if there is not None:
                self._found(row, question, there)
                return
            repeat = self.repeats.get(task)
            if repeat is None:
                repeat = self._repeat(row, task)
                new = True
            if repeat is None:
                return
            task = repeat
        search = self.searches.get(task)
        if search is None:
            search = self._search(task)
        made = search.made.get(path[1])
        if made is not None:
            if self._lives(made):
                self._found(row, question, made)
                return
            del search.made[path[1]]  # made at a worker that died since
            self._lifecycle.release_uses((made,))
        asked = search.questions.setdefault(path[1], [])
        asked.append(row)
        question.task = task
        if new:
            self._submit([task])  # last, because it may end at once
        elif len(asked) == 1 and task.state == PUSHED:
            search.late.add(path[1])
            self.seek(task, (path[1],))

    def _look_again(self, row: Row, question: Question) -> None:
        question.owner_ref = question.rest = None
        found, row.contains = row.contains, ()
        self._lifecycle.release_uses(found)
        self._look(row, question)

    def _inside(self, task: Row, key: Key, delegated: bool) -> Row | None:
        """A child whose future is in the value of a task, unless its owner is gone."""
        rows = task.dependencies if delegated else task.contains
        if self._children[0] is not task or self._children[1] is not rows:
            # There may be very many, and each of them is asked for when their owner is gone.
            name = self._table.origin_of(task)
            children = {}
            for row in rows:
                origin = self._table.origin_of(row)
                heir = origin[4]
                # One that came from elsewhere may have the same key.
                if same_task(heir, name):
                    children[origin[3]] = row
            self._children = (task, rows, children)
        child = self._children[2].get(key)
        return child if child is not None and self._lives(child) else None

    def _lives(self, row: Row) -> bool:
        """Whether a child that was made is still with its owner."""
        if not isinstance(row, Borrowed):
            return row.state != FORGOTTEN
        owner: Process = row.owner_ref[:3]
        if owner[0] == self._peers.process[0] or owner[0] in self.doubted:
            return False
        return not self._peers.peer(owner).gone

    # ---- repeating ----

    def _repeat(self, row: Row, task: Row) -> Row | None:
        """A row that runs a task once more, not submitted yet; None when that cannot be."""
        lifecycle = self._lifecycle
        lineage = task.lineage
        source: Any = lineage if lineage is not None else task
        function: Function | None = source.function
        once = not restarts.may(restarts.REPEATED, task.options)
        if function is None or function is self._alias or once:
            why = (
                self._lineages.why_not(task)
                if once or task in self._lineages.given_up
                else (
                    "how to run it was not kept, because no future of what it submitted was known "
                    "to be elsewhere"
                )
            )
            self._fail(row, f"the task {task.key!r} that led to it cannot run again: {why}")
            return None
        options = replace(
            source.options,
            repeats=task.key,
            parent=None,
            retries=0,
            replicas=None,  # all of its children, and no value
        )
        lifecycle.numbers += 1
        key = ("repeat", task.key, lifecycle.numbers)
        repeat = Row(key, function, source.payload, source.dependencies, task.order, options)
        repeat.contains = source.contains
        self._table.adopt(repeat)
        tried = lifecycle.attempts.of(task)
        if tried.died:  # it is a suspect here, too
            record = lifecycle.attempts.change(repeat)
            record.died, record.deaths = tried.died, tried.deaths
        self._search(repeat, task)
        wanted = self.questions[row].path[-1]
        lifecycle.log(task, "repeated", f"for {wanted!r}, whose owner is gone")
        return repeat

    def seek(self, task: Row, keys: tuple[Key, ...] | None = None) -> None:
        """Have the worker that runs a task look out for children of it."""
        if task.state == PUSHED:
            if keys is None:
                keys = tuple(self.searches[task].questions)
            if keys:
                task.worker.outbox.append((m.WATCH_CHILDREN, task.key, task.attempt, keys))

    def on_made(self, view: WorkerView, task: Row, child: Key, origin: Origin) -> None:
        """A worker named a child that was sought."""
        took = counted(view, m.made_name(child), task.attempt)
        search = self.searches.get(task)
        if search is None or child in search.made:
            took()
            return
        rows = self._borrowing.rows_of((origin,))
        for row in rows:
            if isinstance(row, Borrowed) and row.state < INLINE:
                self._borrowing.borrow_at(row, origin[:4])
        self._borrowing.when_acknowledged(rows, took)
        if not rows:
            return
        search.made[child] = rows[0]
        for row in search.questions.pop(child, ()):
            question = self.questions.get(row)
            if question is not None:
                self._found(row, question, rows[0])

    @staticmethod
    def on_made_late(view: WorkerView, key: Key, attempt: int, child: Key, origin: Origin) -> None:
        """A worker named a child of an attempt that is over: nobody looks for it any more."""
        view.outbox.append((m.REFS_COUNTED, m.made_name(child), attempt))

    def submits_no_more(self, task: Row) -> None:
        """A task has ended, or has delegated: no child that is sought of it comes any more."""
        if task not in self.searches:
            return
        search = self._end_search(task)
        for child, rows in search.questions.items():
            for row in rows:
                question = self.questions.get(row)
                if question is None:
                    continue
                if search.repeats is None or child in search.late:
                    self._look(row, question)
                    continue
                reason = f"the task {search.repeats.key!r} that led to it was run again and "
                if task.state <= STORED:
                    reason += f"did not submit {child!r} again"
                else:
                    reason += f"failed: {why(task, task.value)}"
                self._fail(row, reason)
        self._leave(task, search)

    def _search(self, task: Row, repeats: Row | None = None) -> Search:
        """Look for children of a task, which does not end before it must."""
        if repeats is None:
            self._table.use_all((task,))
        else:
            self._table.handles_to_uses((task,))
            self.repeats[repeats] = task
        task.roles |= SOUGHT
        self._retention.keep(repeats or task)
        search = self.searches[task] = Search(repeats)
        return search

    def _end_search(self, task: Row) -> Search:
        search = self.searches.pop(task)
        task.roles &= ~SOUGHT
        if search.repeats is not None:
            del self.repeats[search.repeats]
        return search

    def _leave(self, task: Row, search: Search) -> None:
        """Nothing is sought of a task any more; one that runs for that alone is let go of."""
        self._retention.let_go(search.repeats or task)
        self._lifecycle.release_uses((*search.made.values(), task))
