"""Reconstruction: objects of a dead owner are made again by the tasks that submitted them.

Asking
    A borrower whose owner is gone borrows the object from the nearest living heir
    (`references.retention`), with the *path* from a task of the heir to the object (``BORROW``).
    For the path the heir makes a *question*: a row that waits for the object.
Repeating
    If the heir's task runs at the moment, the heir asks the worker to look out for the child on
    the path (``WATCH_CHILDREN``). Else the heir runs the task once more, in a row of its own (the
    *repeat*), which leaves the task's first row alone. The worker names the child when the task
    submits it (``CHILD_SUBMITTED``). Then the heir tells the borrower to borrow the child from its
    new owner, or to ask there for the rest of the path (``MOVED``). When the task has ended without
    submitting the child, the question fails as ``owner-lost``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dask_ownership.core.owner.recovery.lineage import Lineages
from dask_ownership.core.owner.references.borrowing import Borrowing, refs_counted
from dask_ownership.core.owner.references.lending import Lending
from dask_ownership.core.owner.references.peers import Peer, Peers
from dask_ownership.core.owner.references.retention import Retention
from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.lifecycle import Lifecycle, why
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import QUESTION, SEARCHED, Borrowed, Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Origin, OwnerRef
from dask_ownership.core.protocol.names import (
    HEIR,
    INCARNATION,
    KEY,
    Path,
    owner_ref_of,
    path_from,
    process_of,
    same_task,
)
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


@dataclass(slots=True, eq=False, repr=False)
class Search:
    """The children of one task that are looked for, while the task runs or waits to run."""

    #: The row whose task runs again; None when the task runs for its own value.
    repeats: Row | None
    #: By key of a child: the questions that wait for the child.
    questions: dict[Key, list[Row]] = field(default_factory=dict, init=False)
    #: Children that the task has submitted. They are kept until the task ends.
    submitted: dict[Key, Row] = field(default_factory=dict, init=False)
    #: Children that were asked for when the task was at a worker already. The worker may hear of
    #: them after the task has submitted them.
    late: set[Key] = field(default_factory=set, init=False)


@dataclass(slots=True, eq=False, repr=False)
class Question:
    """One object that borrowers ask for, and how far the search for it has come."""

    #: The keys from a task of this process to the object.
    path: Path
    #: Where the object is owned now, or where to ask for the rest of the path; None until a child
    #: is found.
    owner_ref: OwnerRef | None = field(default=None, init=False)
    #: The path to ask for at ``owner_ref``; None when ``owner_ref`` is the object itself.
    rest: Path | None = field(default=None, init=False)
    #: The row whose task runs, or will run, and is to submit the child.
    task: Row | None = field(default=None, init=False)


class Reconstruction(RowListener):
    """Finds or remakes objects of dead owners, for the borrowers that ask this process.

    It meets nearly all parts of an owner, which are given to it: hence the many attributes.

    Parameters
    ----------
    lifecycle : Lifecycle
        Ends questions, and counts references.
    peers : Peers
        Tells of processes that are gone.
    lineages : Lineages
        Says why a task cannot run again.
    retention : Retention
        Keeps tasks while children of theirs are looked for.
    borrowing : Borrowing
        Borrows the children that are found at other processes.
    lending : Lending
        Knows the borrowers of questions.
    alias : Function
        The function of rows that take over the value of another row. Such a row has no task that
        could submit a child.
    submit : callable
        Has new rows run.
    is_gone : callable
        Whether an incarnation is gone.
    call_off_copies : callable
        Cancels the copies of a row whose value is not made here again.

    Attributes
    ----------
    searches : dict of Row to Search
        By task that runs or will run: the children that are looked for.
    questions : dict of Row to Question
        By row that borrowers wait for: the question.
    repeats : dict of Row to Row
        By row: the repeat, in which its task runs again.
    doubted : set of str
        Incarnations of processes that borrowers say are gone, before this process has heard so.
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
        # The latest result of `_inside`: a task, rows, and the children among them by key.
        self._children: tuple[Row | None, tuple[Row, ...], dict[Key, Row]] = NOTHING
        peers.when_gone.append(self._on_gone)

    def finished(self, row: Row) -> None:
        """End the search for children of a task that has a value."""
        self.submits_no_more(row)

    def ended(self, row: Row) -> None:
        """Drop a question that has ended, or end the search for children of an ended task."""
        if row in self.questions:
            self._dropped(row)
        self.submits_no_more(row)

    def forgotten(self, row: Row) -> None:
        """Drop a question without borrowers, or end the search for children of a forgotten task."""
        self.ended(row)

    def _on_gone(self, peer: Peer) -> None:
        """Look again for all objects that were found at a dead peer."""
        incarnation = peer.process[INCARNATION]
        self.doubted.discard(incarnation)
        for row, question in list(self.questions.items()):
            if question.owner_ref is not None and question.owner_ref[INCARNATION] == incarnation:
                self._look_again(row, question)

    # ---- asking ----

    def ask(self, key: Key, path: Path) -> Row:
        """Look for an object of a dead owner along ``path``.

        Return the row of the question, which stands under ``key`` and has one task reference.
        """
        row = Row(key, None, None, (), 0)
        self._table.adopt_for_task(row)
        question = self._ask(row, path)
        self._look(row, question)
        return row

    def _ask(self, row: Row, path: Path) -> Question:
        """Make a row the row of a question."""
        row.roles |= QUESTION
        question = self.questions[row] = Question(path)
        return question

    def recover(self, row: Row) -> bool:
        """Look for an object that this process took over and whose last copy is gone.

        Return False when no task of this process led to the object.
        """
        origin: Origin | None = row.options.adopted
        # The levels of an origin are the tasks that led to the object, the nearest first.
        level = origin
        while level is not None and level[INCARNATION] != self._peers.process[INCARNATION]:
            level = level[HEIR]
        # A row in ``questions`` is looked for already.
        if origin is None or level is None or row in self.questions:
            return False
        self._lifecycle.withdraw(row)
        self._call_off_copies(row)
        question = self._ask(row, path_from(origin, level))
        self._look(row, question)
        return True

    def asked_again(self, peer: Peer, row: Row, number: int, gone: str) -> None:
        """Answer a peer that borrows a question, if the object is found already.

        ``gone`` is the incarnation of the owner that the peer found dead. If the object was found
        at that owner, the search starts again.
        """
        if gone and not self._is_gone(gone):
            self.doubted.add(gone)  # this process has not heard of the death yet
        question = self.questions[row]
        if question.owner_ref is None:
            return
        if question.owner_ref[INCARNATION] == gone:
            self._look_again(row, question)
        else:
            self._answer_one(peer, row, number, question)

    def _found(self, row: Row, question: Question, child: Row) -> None:
        """Take note that the child of a question's task is there.

        Tell the borrowers where to ask next, or go on along the path when the child is a task of
        this process.
        """
        if row.state != WAITING:
            return
        self._table.add_task_refs((child,))
        row.contains += (child,)
        # The path is (task, child, ...): the keys below the child are still to be found.
        below = question.path[2:]
        if isinstance(child, Borrowed):
            question.owner_ref = owner_ref_of(child.owner_ref)
            question.rest = child.path
            if below:
                # The child's owner has to look for the rest, as a question under the same key.
                question.rest = (*(child.path or (child.owner_ref[KEY],)), *below)
                question.owner_ref = (*process_of(child.owner_ref), row.key)
        elif below:
            question.path = (child.key, *below)
            self._look(row, question)
            return
        else:
            question.owner_ref = (*self._peers.process, child.key)
        for peer, number in self._lending.borrowers_of(row):
            self._answer_one(peer, row, number, question)

    def _answer_one(self, peer: Peer, row: Row, number: int, question: Question) -> None:
        """Tell one borrower of a question where to ask next (`MOVED`)."""
        assert question.owner_ref is not None
        self._lending.say_moved(peer, row.key, number, question.owner_ref, None, question.rest)

    def _fail(self, row: Row, reason: str) -> None:
        """End a question as ``owner-lost``, with all rows that wait for it."""
        key = self.questions[row].path[-1]
        self._lifecycle.end_with_dependents(row, LOST, Failure("owner-lost", key, reason))

    def _dropped(self, row: Row) -> None:
        """Remove a question; a repeat that runs for no other question ends, too."""
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
        """Find the child of a question, have a worker look out for it, or run the task again.

        When the task cannot run again, the question fails.
        """
        path = question.path
        task = self._table.rows.get(path[0])
        if task is None:
            self._fail(row, f"the task {path[0]!r} that led to it is not known there any more")
            return
        new = False
        # A task that delegated is an alias, and submits no more children. This includes an alias
        # at the worker that is to pass the value on: when the worker dies, the alias waits again.
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
        made = search.submitted.get(path[1])
        if made is not None:
            if self._lives(made):
                self._found(row, question, made)
                return
            del search.submitted[path[1]]  # the worker that owned the child has died since
            self._lifecycle.release_task_refs((made,))
        asked = search.questions.setdefault(path[1], [])
        asked.append(row)
        question.task = task
        if new:
            self._submit([task])  # last, because the repeat may end at once
        elif len(asked) == 1 and task.state == PUSHED:
            # The task runs: a child submitted before may be gone when the worker hears of this.
            search.late.add(path[1])
            self.watch_children(task, (path[1],))

    def _look_again(self, row: Row, question: Question) -> None:
        """Forget where the object of a question was found, and look for it anew."""
        question.owner_ref = question.rest = None
        found, row.contains = row.contains, ()
        self._lifecycle.release_task_refs(found)
        self._look(row, question)

    def _inside(self, task: Row, key: Key, delegated: bool) -> Row | None:
        """Return the child of a task whose future is in the task's value; None if there is none.

        A child whose owner is gone does not count. ``delegated`` says that the task delegated, so
        that the future is its dependency.
        """
        rows = task.dependencies if delegated else task.contains
        if self._children[0] is not task or self._children[1] is not rows:
            # There may be very many children, and when their owner dies each is asked for. So the
            # dict is made once and serves all questions.
            name = self._table.origin_of(task)
            children = {}
            for row in rows:
                origin = self._table.origin_of(row)
                heir = origin[HEIR]
                # A future of another task's child may have the same key.
                if same_task(heir, name):
                    children[origin[KEY]] = row
            self._children = (task, rows, children)
        child = self._children[2].get(key)
        return child if child is not None and self._lives(child) else None

    def _lives(self, row: Row) -> bool:
        """Return whether a child's owner lives and has the child, as far as this process knows."""
        if not isinstance(row, Borrowed):
            return row.state != FORGOTTEN
        # An heir looks for the child, along a path that may well lead through the task here. If the
        # answer were to ask that heir, each of the two would send the borrowers to the other.
        if row.path is not None and (row.state < INLINE or row.state == LOST):
            return False
        owner = row.owner_ref[INCARNATION]
        if owner == self._peers.process[INCARNATION] or owner in self.doubted:
            return False
        return not self._peers.peer(process_of(row.owner_ref)).gone

    # ---- repeating ----

    def _repeat(self, row: Row, task: Row) -> Row | None:
        """Return the repeat of a task, which is not submitted yet.

        When the task cannot run again, fail the question of ``row`` and return None.
        """
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
        options = source.options._replace(
            repeats=task.key,
            parent=None,
            retries=0,
            replicas=None,  # a repeat is for all children and has no use for its value
        )
        lifecycle.numbers += 1
        key = ("repeat", task.key, lifecycle.numbers)
        repeat = Row(key, function, source.payload, source.dependencies, task.order, options)
        repeat.contains = source.contains
        self._table.adopt(repeat)
        tried = lifecycle.attempts.of(task)
        if tried.died:  # a suspect is a suspect in its repeat, too
            record = lifecycle.attempts.change(repeat)
            record.died, record.deaths = tried.died, tried.deaths
        self._search(repeat, task)
        wanted = self.questions[row].path[-1]
        lifecycle.log(task, "repeated", f"for {wanted!r}, whose owner is gone")
        return repeat

    def watch_children(self, task: Row, keys: tuple[Key, ...] | None = None) -> None:
        """Have the worker that runs a task look out for children of the task (`WATCH_CHILDREN`).

        ``keys`` are the keys of the children; None stands for all that are looked for.
        """
        if task.state == PUSHED:
            if keys is None:
                keys = tuple(self.searches[task].questions)
            if keys:
                task.worker.outbox.append((m.WATCH_CHILDREN, task.key, task.attempt, keys))

    def on_child_submitted(self, view: WorkerView, task: Row, child: Key, origin: Origin) -> None:
        """Handle CHILD_SUBMITTED: borrow a child that is looked for from its new owner.

        The questions that wait for the child are answered.
        """
        tell = refs_counted(view, m.child_name(child), task.attempt)
        search = self.searches.get(task)
        if search is None or child in search.submitted:
            tell()  # the child is not looked for any more, or was named before
            return
        rows = self._borrowing.rows_of((origin,))
        for row in rows:
            # A row may still be borrowed from the dead owner, or from an heir.
            if isinstance(row, Borrowed) and row.state < INLINE:
                self._borrowing.borrow_at(row, owner_ref_of(origin))
        self._borrowing.when_acknowledged(rows, tell)
        if not rows:
            return
        search.submitted[child] = rows[0]
        for row in search.questions.pop(child, ()):
            question = self.questions.get(row)
            if question is not None:
                self._found(row, question, rows[0])

    @staticmethod
    def on_child_submitted_late(
        view: WorkerView, key: Key, attempt: int, child: Key, origin: Origin
    ) -> None:
        """Handle CHILD_SUBMITTED of an attempt that is over: the worker may release the child."""
        view.outbox.append((m.REFS_COUNTED, m.child_name(child), attempt))

    def submits_no_more(self, task: Row) -> None:
        """End the search for children of a task that has ended or has delegated.

        A question whose task was run again for the child fails: the task did not submit the child.
        A question looks again if the task ran for its own value, or if the worker may have heard
        too late that the child is looked for.
        """
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
        """Begin a search for children of a task, which keeps the task until the search ends.

        ``repeats`` is the first row when ``task`` is a repeat.
        """
        if repeats is None:
            self._table.add_task_refs((task,))
        else:
            # No future has a repeat: its one local reference becomes that of the search.
            self._table.local_to_task_refs((task,))
            self.repeats[repeats] = task
        task.roles |= SEARCHED
        # A task that is kept does not lose its lineage when it ends: another search may follow.
        self._retention.keep(repeats or task)
        search = self.searches[task] = Search(repeats)
        return search

    def _end_search(self, task: Row) -> Search:
        """Remove the search for children of a task and return it; `_leave` comes next."""
        search = self.searches.pop(task)
        task.roles &= ~SEARCHED
        if search.repeats is not None:
            del self.repeats[search.repeats]
        return search

    def _leave(self, task: Row, search: Search) -> None:
        """Release a task and the children it has submitted, so that a repeat is forgotten."""
        self._retention.let_go(search.repeats or task)
        self._lifecycle.release_task_refs((*search.submitted.values(), task))
